"""The registry of algorithms: `ALGORITHMS` maps a name to what the loop needs of it."""

from src.algorithm import Method
from src.algorithms.crl import CRLConfig

ALGORITHMS: dict[str, Method] = {"crl": Method(CRLConfig)}
