"""For the tests of what is drawn: whether anything can be, runs that draw, and where their colours are."""

from pathlib import Path

import mujoco
import numpy as np
import pytest
from conftest import ProbeEnv, flags, registered, tiny

import training
from envs.render import open_renderer


def can_draw() -> bool:
    """Whether there is an OpenGL library that draws without a screen."""
    try:
        open_renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except RuntimeError:
        return False
    return True


needs_opengl = pytest.mark.skipif(not can_draw(), reason="no OpenGL library that draws without a screen")


def drawn_run(output_dir: Path, probe=ProbeEnv, **changes) -> Path:
    """The folder of a run of a moment on the env `probe`."""
    with registered(probe=probe):
        assert training.main(flags(tiny(output_dir=str(output_dir), **changes))) == 0
    (run_dir,) = (path.parent for path in output_dir.rglob("config.json"))
    return run_dir


def pixels(pictures: np.ndarray, colour: str) -> np.ndarray:
    """(...) bool, the pixels (..., 3) of the goal ("green") or of the robot ("orange")."""
    red, green, blue = np.moveaxis(pictures.astype(int), -1, 0)
    found = {"green": (green > red + 40) & (green > blue + 40), "orange": (red > green + 40) & (green > blue + 10)}
    return found[colour]
