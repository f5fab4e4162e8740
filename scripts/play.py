#!/usr/bin/env python
"""Watches a trained policy live and gives it goals: `python scripts/play.py RUN_DIR`, or with `--web` in a browser.

Enter draws a new goal, Backspace a new episode, Space pauses. In the browser, Ctrl and a click put the goal there.
"""

import dataclasses
import os
import socket
import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from envs.render import Scene  # noqa: E402
from scripts.trained import TrainedConfig, load_or_refuse  # noqa: E402
from src.output import error_line, run_command  # noqa: E402
from src.player import Player  # noqa: E402
from utils import FAILED, REFUSED, ConfigError  # noqa: E402

HELP = "Enter: new goal   Backspace: new episode   Space: pause"
SPACE, ENTER, BACKSPACE = 32, 257, 259  # key codes of GLFW


@dataclasses.dataclass(frozen=True)
class PlayConfig(TrainedConfig):
    """Shows a trained policy live in MuJoCo's viewer, with goals that you choose."""

    web: bool = False
    """Serve MuJoCo's web viewer; needs no screen, no OpenGL and no internet."""
    host: str = "127.0.0.1"
    """Address that the web viewer listens at: by itself this machine only. `::` is every interface; the viewer has no
    password, so whoever reaches the port can use it."""
    port: int = 0
    """Port of the web viewer; 0 is the first free one from 8080."""
    seed: int = 0
    """Where starts, goals and sampled actions come from."""


class Stage:
    """A player and the scene that shows it.

    Attributes:
      model, data: what a viewer draws.
      paused: whether the policy waits.
      speed: env seconds per second.
    """

    def __init__(self, player: Player):
        self.player = player
        self.scene = Scene(player.env)
        self.model, self.data = self.scene.model, self.scene.data
        self.paused, self.speed, self._due = False, 1.0, 0.0
        self._look_at_everything()
        self._show()

    def _look_at_everything(self) -> None:
        """Lets the viewers' own camera, which starts from the model's statistics, see where goals may lie."""
        poses, goals = [], []
        for _ in range(32):
            self.player.new_episode()
            poses.append(self.player.q)
            goals.append(self.player.goal)
        camera = self.scene.camera(np.array(poses), np.array(goals))
        self.model.stat.center, self.model.stat.extent = camera.lookat, camera.distance / 1.5
        self.model.vis.global_.azimuth, self.model.vis.global_.elevation = camera.azimuth, camera.elevation

    def _show(self) -> None:
        self.scene.pose(self.player.q, self.player.goal)
        self.shown_goal = self.data.mocap_pos[-1].copy()
        self.scene.forward()

    def advance(self) -> bool:
        """Acts if an action is due, after taking over a goal that was moved in the viewer; whether anything changed."""
        place = self.data.mocap_pos[-1, :2]
        if np.any(place != self.shown_goal[:2]):
            self.new_goal(place)
        now = time.monotonic()
        if self.paused or now < self._due:
            return False
        period = self.player.seconds_per_action / self.speed
        punctual = now - self._due < period
        self._due = (self._due if punctual else now) + period  # what was missed is not made up for
        self.player.act()
        self.data.time += self.player.seconds_per_action
        self._show()
        return True

    def new_goal(self, place: tuple[float, float] | np.ndarray | None = None) -> None:
        """Commands another goal, at (2,) x, y if they are given."""
        goal = self.player.goal.copy()
        axes = min(2, len(goal), self.player.env.goal_place_dim)
        goal[:axes] = goal[:axes] if place is None else place[:axes]
        self.player.new_goal(None if place is None else goal)
        self._show()

    def new_episode(self) -> None:
        """Begins another episode."""
        self.player.new_episode()
        self._show()

    def score(self) -> str:
        """How long the goal was held, as a line."""
        return f"near the goal for {self.player.near:,} of {self.player.steps:,} steps"


def play_on_screen(stage: Stage) -> None:
    """MuJoCo's desktop viewer, until its window is closed."""
    import mujoco.viewer

    pressed: list[int] = []  # the viewer calls from a thread of its own
    with mujoco.viewer.launch_passive(
        stage.model, stage.data, key_callback=pressed.append, show_left_ui=False, show_right_ui=False
    ) as viewer:
        while viewer.is_running():
            with viewer.lock():
                while pressed:
                    press(stage, pressed.pop(0))
                stage.advance()
            viewer.set_texts((None, None, HELP, stage.score()))
            viewer.sync()
            time.sleep(0.002)


def press(stage: Stage, key: int) -> None:
    """What a key of the desktop viewer does."""
    if key == ENTER:
        stage.new_goal()
    elif key == BACKSPACE:
        stage.new_episode()
    elif key == SPACE:
        stage.paused = not stage.paused


def play_on_web(stage: Stage, host: str, port: int) -> None:
    """MuJoCo's web viewer, until Ctrl-C."""
    from mujoco.studio import launch_web
    from mujoco.studio.viewer_protocol import ViewerConfig

    from src.web_player import listening_at, plugins

    config = ViewerConfig(title="CRL", gfx="web", http_port=port)
    with listening_at(host):
        launch_web.run(config, model=stage.model, data=stage.data, plugins=plugins(stage))


def check(config: PlayConfig) -> None:
    """Raises ConfigError for what cannot be carried out."""
    if not config.web and sys.platform == "linux" and not (os.environ.keys() & {"DISPLAY", "WAYLAND_DISPLAY"}):
        raise ConfigError("there is no screen here (DISPLAY is not set): add --web to watch in a browser")
    if not 0 <= config.port < 2**16:
        raise ConfigError(f"--port {config.port} is out of range: 0 to {2**16 - 1}")
    try:
        socket.getaddrinfo(config.host, config.port)
    except OSError as error:
        raise ConfigError(f"--host {config.host}: {error.strerror}; 127.0.0.1 is this machine, :: every one") from None


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 no viewer, 2 refused."""
    loaded = load_or_refuse(PlayConfig, args, "play.py", check)
    if loaded is None:
        return REFUSED
    config, program, agent_state = loaded
    print("compiling ...", flush=True)
    stage = Stage(Player(program, agent_state, config.seed))
    print(HELP, flush=True)
    try:
        play_on_web(stage, config.host, config.port) if config.web else play_on_screen(stage)
    except RuntimeError as error:  # the port is taken, mjpython is missing
        print(error_line(error), file=sys.stderr)
        return FAILED
    return 0


if __name__ == "__main__":
    sys.exit(run_command(main))
