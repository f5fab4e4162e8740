"""The registry of environments: `ENVS` maps a name to a constructor, `make_env` builds one."""

from envs.ant import Ant
from envs.base import EnvConstructor, GoalEnv, unknown
from envs.reacher import Reacher

ENVS: dict[str, EnvConstructor] = {
    "reacher": Reacher,
    "ant": Ant,
}


def make_env(name: str, backend: str | None = None, use_dense_reward: bool = False) -> GoalEnv:
    """Builds the environment `name` on a physics backend (None: the environment's own).

    Raises:
      ValueError: unknown name, or a backend that the environment does not support.
    """
    if name not in ENVS:
        raise ValueError(unknown("env", name, ENVS))
    return ENVS[name](backend=backend, use_dense_reward=use_dense_reward)
