"""The registry of algorithms: `ALGORITHMS` maps a name to its flags and its constructor."""

from src.algorithm import Method
from src.algorithms import chrono, crl, gcsl, ppo, sac, srl, td3

ALGORITHMS: dict[str, Method] = {
    "crl": Method(crl.CRLConfig, crl.make, crl.workspace),
    "sac": Method(sac.SACConfig, sac.make, sac.workspace),
    "td3": Method(td3.TD3Config, td3.make, td3.workspace),
    "ppo": Method(ppo.PPOConfig, ppo.make, ppo.workspace),
    "gcsl": Method(gcsl.GCSLConfig, gcsl.make, gcsl.workspace),
    "srl": Method(srl.SRLConfig, srl.make, srl.workspace),
    "chrono": Method(chrono.ChronoConfig, chrono.make, chrono.workspace),
}
