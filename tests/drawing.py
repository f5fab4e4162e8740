"""For the tests of what is drawn: a probe env with a MuJoCo model, and runs of it."""

from pathlib import Path

import jax
import mujoco
import numpy as np
import pytest
from conftest import ProbeEnv, flags, registered, tiny
from flax import struct

import training
from envs.render import open_renderer

POINT_MODEL = """
<mujoco>
  <worldbody>
    <geom name="floor" type="plane" size="2 2 1"/>
    <geom type="box" size="0.1 0.2 0.1" pos="0.5 0.5 0.1"/>
    <body name="point" pos="0 0 0.1">
      <joint name="x" type="slide" axis="1 0 0"/>
      <joint name="y" type="slide" axis="0 1 0"/>
      <geom type="sphere" size="0.1" mass="1"/>
    </body>
  </worldbody>
  <actuator><motor joint="x"/><motor joint="y"/></actuator>
</mujoco>
"""


@struct.dataclass
class PointState:
    """The probe's pipeline state with the joint positions `q` that engines have."""

    position: jax.Array
    tag: jax.Array
    life: jax.Array

    def __getitem__(self, name: str) -> jax.Array:
        return getattr(self, name)

    @property
    def q(self) -> jax.Array:
        return self.position


class DrawnProbe(ProbeEnv):
    """`ProbeEnv` with a MuJoCo model: a ball on two slides, and a wall at (0.5, 0.5) that stops nothing."""

    model_xml = POINT_MODEL

    def _begin(self, sys, q, qd):
        return PointState(**super()._begin(sys, q, qd))

    def _move(self, sys, pipeline_state, control):
        return PointState(**super()._move(sys, pipeline_state, control))


def can_draw() -> bool:
    """Whether there is an OpenGL library that draws without a screen."""
    try:
        open_renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8).close()
    except RuntimeError:
        return False
    return True


needs_opengl = pytest.mark.skipif(not can_draw(), reason="no OpenGL library that draws without a screen")


def drawn_run(output_dir: Path, probe=DrawnProbe, **changes) -> Path:
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
