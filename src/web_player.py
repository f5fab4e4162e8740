"""The two sides of `scripts/play.py --web`: what the policy does in the simulation, and its panel on the page.

MuJoCo's web viewer runs plugins: one side steps, the other draws, and messages go between them.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterator
from typing import Any
from unittest import mock

from mujoco.studio import app, messages, plugin, sim, ux, web_viewer
from mujoco.studio.dear_imgui import dear_imgui as imgui


@dataclasses.dataclass(frozen=True)
class NewGoal(messages.Event):
    """Asks for another goal: at `place`, x and y in metres, or drawn again."""

    place: tuple[float, float] | None = None


@dataclasses.dataclass(frozen=True)
class Score(messages.Snapshot):
    """A line on how the policy fares."""

    text: str


class Policy(plugin.SimPlugin):
    """Steps a `Stage` of scripts/play.py instead of MuJoCo's physics."""

    def __init__(self, stage: Any):
        self.stage = stage

    @messages.handler
    def step(self, event: messages.StepEvent) -> None:
        if self.stage.advance():
            self.handle.send_to_viewer(Score(self.stage.score()))
        time.sleep(0.002)  # the viewer's threads need their turn

    @messages.handler
    def control(self, snapshot: messages.StepControlSnapshot) -> bool:
        self.stage.paused = snapshot.pause_state != sim.PauseState.UNPAUSED
        self.stage.speed = max(snapshot.speed, 0.1) / 100
        return True

    @messages.handler
    def new_goal(self, event: NewGoal) -> bool:
        self.stage.new_goal(event.place)
        return True

    @messages.handler
    def reset(self, event: messages.ResetEvent) -> bool:
        """The viewer's reset, by key or button, is a new episode."""
        self.stage.new_episode()
        return True

    @messages.handler
    def load(self, event: messages.LoadModelEvent) -> bool:
        """The model stays, whatever is dropped onto the page."""
        return True


class Panel(plugin.ViewerPlugin):
    """The policy's window on the page."""

    def __init__(self, text: str):
        self.text = text

    @messages.handler
    def receive(self, score: Score) -> None:
        self.text = score.text

    @messages.handler
    def draw(self, event: messages.BuildGuiEvent) -> None:
        imgui.SetNextWindowPos(imgui.Vec2(16, 76), int(imgui.Cond.Appearing))
        imgui.Begin("Policy", flags=int(imgui.WindowFlags.AlwaysAutoResize))
        enter = imgui.IsKeyChordPressed(imgui.Key.Enter)
        if imgui.Button("New goal (Enter)") or enter:
            self.viewer.send_to_sim(NewGoal())
        imgui.SameLine()
        if imgui.Button("New episode (Backspace)"):
            self.viewer.send_to_sim(messages.ResetEvent())
        imgui.TextUnformatted("Ctrl + click: goal there")
        imgui.TextUnformatted(self.text)
        imgui.End()
        self._take_click()

    def _take_click(self) -> None:
        """Ctrl and a click on anything in the scene puts the goal there."""
        io, viewer = imgui.GetIO(), self.viewer
        if io.WantCaptureMouse or not (io.KeyCtrl and imgui.IsMouseClicked(imgui.MouseButton.Left)):
            return
        width, height = io.DisplaySize.x, io.DisplaySize.y
        place = io.MousePos.x / width, io.MousePos.y / height
        picked = ux.Pick(viewer.model, viewer.data, viewer.camera, *place, width / height, viewer.vis_options)
        if picked.body >= 0:
            viewer.send_to_sim(NewGoal(place=(float(picked.point[0]), float(picked.point[1]))))


def plugins(stage: Any) -> list[plugin.Plugin]:
    """What the web viewer is launched with."""
    hidden = app.Config(show_options=False, show_inspector=False, show_toolbar=True)
    return [app.App(hidden), Policy(stage), Panel(stage.score())]


@contextlib.contextmanager
def listening_at(host: str) -> Iterator[None]:
    """Inside the `with`, a web viewer that opens listens at `host` only. MuJoCo's own listens on every interface, and
    whoever reaches it can use it."""
    bind, banner = web_viewer.web_server.bind_public_socket, web_viewer._print_url_banner
    with (
        mock.patch.object(web_viewer.web_server, "bind_public_socket", lambda _, port=0: bind(host, port)),
        mock.patch.object(web_viewer, "_print_url_banner", lambda _, port: banner(host, port)),
    ):
        yield
