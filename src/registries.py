"""All registries that flags choose from, by the kind that a field names: `Annotated[str, Choice("env")]`."""

from envs import ENVS
from envs.base import BACKENDS
from src.algorithms import ALGORITHMS
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS
from src.networks import NETWORKS
from utils import Registries

GOAL_RULES = {"geometric": None}
PROPOSALS = {"env": None, "achieved": None}
WANDB_MODES = ("online", "offline")

REGISTRIES: Registries = {
    "algorithm": ALGORITHMS,
    "env": ENVS,
    "backend": BACKENDS,
    "goal proposal": PROPOSALS,
    "goal rule": GOAL_RULES,
    "contrastive loss": CONTRASTIVE_LOSSES,
    "energy": ENERGY_FNS,
    "network": NETWORKS,
    "W&B mode": WANDB_MODES,
}
