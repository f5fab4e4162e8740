"""What the scripts that look at a trained policy share: the flags that choose it, and how it is loaded."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from envs.jax_platform import all_devices
from src.command_line import parse, read_whole
from src.policy import load_trained
from src.process import enable_compilation_cache
from src.program import Program


@dataclasses.dataclass(frozen=True)
class PolicyConfig:
    """Which policy."""

    run_dir: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN_DIR"), Path]]
    """The run's folder."""
    params: str = "last"
    """`last`, the policy of the last evaluation; `best`, the one with the most time near the goal; the env steps of one
    that `--keep_policies` kept; or a .npz file."""

    @property
    def policy_name(self) -> str:
        """What files about the policy are called: last, best, its env steps, or a file's name without the ending."""
        stem = Path(self.params).stem
        env_steps = read_whole(stem)
        return stem if env_steps is None else str(env_steps)

    def load(self) -> tuple[Program, Any]:
        """Program and agent state; raises ValueError as `load_trained`."""
        return load_trained(Path(self.run_dir), self.params)


@dataclasses.dataclass(frozen=True)
class TrainedConfig(PolicyConfig):
    """Which policy, and where it acts."""

    eval_env: str | None = None
    """Environment to act in, of the same sizes; None is the one the run is evaluated on."""
    eval_gen_distances: str = ""
    """How far goals are from starts in a maze ENV_gen, in cells, such as 1,3; empty: as in the run's evaluation, or all
    ways of another `--eval_env`."""

    def load(self) -> tuple[Program, Any]:
        return load_trained(Path(self.run_dir), self.params, self.eval_env, self.eval_gen_distances)


_Config = TypeVar("_Config", bound=PolicyConfig)


def load_or_refuse(
    config_class: type[_Config], args: list[str], prog: str, check: Callable[[_Config], None]
) -> tuple[_Config, Program, Any] | None:
    """The request, the program of its run and the agent state; None, after a line that says why, if it cannot be
    carried out."""
    try:
        config = parse(config_class, args, prog=prog)
        check(config)
        all_devices()
        trained = config.load()
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    enable_compilation_cache()
    return config, *trained
