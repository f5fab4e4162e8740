"""All registries that flags choose from, by the kind that a field names: `Annotated[str, Choice("env")]`."""

from envs import ENVS
from envs.physics import BACKENDS
from src.algorithms import ALGORITHMS
from src.critics import CRITICS
from src.goals import GOAL_RULES, PROPOSALS
from src.hindsight import HER_RULES
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS
from src.networks import NETWORKS
from utils import Registries

WANDB_MODES = ("online", "offline")

REGISTRIES: Registries = {
    "algorithm": ALGORITHMS,
    "env": ENVS,
    "backend": BACKENDS,
    "goal proposal": PROPOSALS,
    "goal rule": GOAL_RULES,
    "hindsight rule": HER_RULES,
    "critic": CRITICS,
    "contrastive loss": CONTRASTIVE_LOSSES,
    "energy": ENERGY_FNS,
    "network": NETWORKS,
    "W&B mode": WANDB_MODES,
}
