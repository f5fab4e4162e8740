"""The registry of algorithms: `ALGORITHMS` maps a name to its flags and its constructor."""

from src.algorithm import Method
from src.algorithms import crl

ALGORITHMS: dict[str, Method] = {"crl": Method(crl.CRLConfig, crl.make, crl.workspace)}
