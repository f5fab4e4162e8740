"""The registry of algorithms: `ALGORITHMS` maps a name to its flags and its constructor."""

from src.algorithm import Method
from src.algorithms import crl
from utils import Config

ALGORITHMS: dict[str, Method] = {"crl": Method(Config, crl.make, crl.workspace)}
