"""What a run shows of itself while it trains: a video of the policy now and then, and pictures at its end."""

import functools
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from src.loop import Position
from src.output import survives
from src.program import Program, on_one_device


class Showcase:
    """Draws into run folders; what cannot be drawn costs one warning."""

    def __init__(self, program: Program, announce: Callable[[str], None]):
        """`announce` receives what was drawn, where, and how long training waited for it, as a line."""
        self.program = on_one_device(program)
        self.announce = announce
        self.can_film = True

    def due(self, position: Position) -> bool:
        """Whether there is something to draw at this evaluation. All processes answer alike: they fetch it together."""
        config, eval_at = self.program.config, self.program.schedule.eval_at
        evaluations = sum(at <= position.training_steps for at in eval_at)
        regular = config.video_every and evaluations % config.video_every == 0
        return config.render and bool(regular or self._is_last(position))

    def _is_last(self, position: Position) -> bool:
        return position.training_steps >= self.program.schedule.eval_at[-1]

    def show(self, run_dir: Path, agent_state: Any, position: Position, env_steps: int) -> None:
        """Writes RUN_DIR/videos/ENV_STEPS.mp4 and .gif, and at the last evaluation RUN_DIR/*.png."""
        if self.can_film or self._is_last(position):
            survives("drawing", functools.partial(self._show, run_dir, agent_state, self._is_last(position), env_steps))

    def _show(self, run_dir: Path, agent_state: Any, is_last: bool, env_steps: int) -> None:
        # Imported here: training needs none of the libraries that drawing does.
        from src.insight import draw_all
        from src.video import film, record, write_film

        started = time.monotonic()
        recording = record(self.program, agent_state)
        drawn: list[Path] = []

        def draw_pictures() -> None:
            drawn.extend(draw_all(run_dir, self.program, agent_state, recording.episodes)[0])

        def draw_video() -> None:
            drawn.extend(write_film(run_dir / "videos" / f"{env_steps:012d}", film(self.program, recording)))

        if is_last:
            survives("pictures", draw_pictures)
        self.can_film = self.can_film and survives("video", draw_video)
        if drawn:
            names = ", ".join(str(path.relative_to(run_dir)) for path in drawn)
            self.announce(f"drawn       in {time.monotonic() - started:.0f} s into {run_dir}: {names}\n")
