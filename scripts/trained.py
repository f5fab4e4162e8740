"""What the scripts that look at a trained policy share: the flags that choose it, and how it is loaded."""

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from src.command_line import parse
from src.devices import all_devices
from src.policy import PARAMS_FILES, load_trained
from src.process import enable_compilation_cache
from src.program import Program


@dataclasses.dataclass(frozen=True)
class TrainedConfig:
    """Which policy, and where it acts."""

    run_dir: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="RUN_DIR"), Path]]
    """The run's folder."""
    params: Literal[*PARAMS_FILES] = "last"
    """The policy of the last evaluation, or the one with the most time near the goal."""
    eval_env: str | None = None
    """Environment to act in, of the same sizes; None is the one the run is evaluated on."""
    eval_gen_distances: str = ""
    """How far goals are from starts in a maze ENV_gen, in cells, such as 1,3; empty: as in the run's evaluation, or all
    ways of another `--eval_env`."""


_Config = TypeVar("_Config", bound=TrainedConfig)


def load_or_refuse(
    config_class: type[_Config], args: list[str], prog: str, check: Callable[[_Config], None]
) -> tuple[_Config, Program, Any] | None:
    """The request, the program of its run and the agent state; None, after a line that says why, if it or `check`
    raises a ValueError."""
    try:
        config = parse(config_class, args, prog=prog)
        check(config)
        all_devices()
        trained = load_trained(Path(config.run_dir), config.params, config.eval_env, config.eval_gen_distances)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return None
    enable_compilation_cache()
    return config, *trained
