"""The registry of algorithms: `ALGORITHMS` maps a name to its flags and its constructor."""

from src.algorithm import Method
from src.algorithms import crl, gcsl, ppo

ALGORITHMS: dict[str, Method] = {
    "crl": Method(crl.CRLConfig, crl.make, crl.workspace),
    "gcsl": Method(gcsl.GCSLConfig, gcsl.make, gcsl.workspace),
    "ppo": Method(ppo.PPOConfig, ppo.make, ppo.workspace),
}
