#!/usr/bin/env python
"""Draws a video of a trained policy: `python scripts/render.py RUN_DIR`. Writes MP4 and GIF.

python scripts/render.py runs/crl/test/test_ant_s0_20260101-120000 --params best --show best --out imgs/ant
"""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Literal

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts.trained import TrainedConfig, load_or_refuse  # noqa: E402
from src.output import error_line, run_command  # noqa: E402
from src.video import SECONDS, SHOWN, film, record, write_film  # noqa: E402
from utils import FAILED, REFUSED, ConfigError  # noqa: E402


@dataclasses.dataclass(frozen=True)
class RenderConfig(TrainedConfig):
    """Draws a video of a trained policy and the goal it is given."""

    show: Annotated[tuple[Literal["best", "random", "worst"], ...], tyro.conf.UseAppendAction] = ()
    """Episode to show; repeat the flag for more, side by side. None given: all three."""
    seconds: float = SECONDS
    """How long the video is at most; longer episodes run faster."""
    out: Annotated[str | None, Path] = None
    """Where to write, without the ending; None is RUN_DIR/videos and the policy's name, such as last."""


def check(config: RenderConfig) -> None:
    """Raises ConfigError for what cannot be carried out."""
    if not 0.1 <= config.seconds <= 3600:
        raise ConfigError(f"--seconds {config.seconds} is out of range: 0.1 to 3600")


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 nothing to draw with, 2 refused."""
    loaded = load_or_refuse(RenderConfig, args, "render.py", check)
    if loaded is None:
        return REFUSED
    config, program, agent_state = loaded
    stem = Path(config.out or Path(config.run_dir) / "videos" / config.policy_name)
    try:
        paths = write_film(stem, film(program, record(program, agent_state), config.show or SHOWN, config.seconds))
    except (RuntimeError, OSError) as error:
        print(error_line(error), file=sys.stderr)
        return FAILED
    print("\n".join(f"{path}  {path.stat().st_size / 2**20:.2f} MiB" for path in paths))
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
