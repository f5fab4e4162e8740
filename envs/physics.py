"""Environments that a physics engine steps: a model in XML, how it is integrated, and the engines by name.

A new engine is a function that makes an `Engine`, and a line in `ENGINES`.
"""

import abc
import contextlib
import dataclasses
import functools
import importlib
import io
import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np

from envs.base import EnvState, GoalEnv
from utils import unknown

with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that its optional engine, Warp, is not installed
    import brax


@dataclasses.dataclass(frozen=True)
class Physics:
    """How one backend integrates a model: `n_frames` steps of `timestep` seconds make one control step.

    `gear` replaces the gear of every actuator (one number, or one per joint in the model's order); `option` holds
    attributes of MuJoCo's <option>, `disable` names of the flags to switch off.
    """

    timestep: float
    n_frames: int
    gear: float | tuple[float, ...] | None = None
    option: dict[str, str] = dataclasses.field(default_factory=dict)
    disable: tuple[str, ...] = ()


class Engine(NamedTuple):
    """What a physics engine does for an environment, whatever the environment is.

    Attributes:
      load: the text of a model -> its system, brax's `System` or what offers as much of it as environments read.
      init: system, q, qd -> pipeline state, with the joint positions `q` and velocities `qd`, and the links' poses `x`
        and velocities `xd` in the world as brax has them.
      step: system, pipeline state, control, n_frames -> pipeline state after one control step.
      physics_of: the backend whose `Physics` it takes where an environment states none of its own for it.
      culls: whether it passes over geoms that are far apart, so that a model may hold any number of them.
    """

    load: Callable[[str], Any]
    init: Callable[[Any, jax.Array, jax.Array], Any]
    step: Callable[[Any, Any, jax.Array, int], Any]
    physics_of: str | None = None
    culls: bool = False


class PhysicsEnv(GoalEnv):
    """Base of environments that a physics engine steps; their start is joint positions and velocities, (q, qd).

    Attributes:
      default_backend: the engine when the user names none.
      physics: backend -> Physics; an engine can step the environment if it is a key, or its `physics_of` is one.
      sys: the model as the engine has loaded it.

    Raises:
      ValueError: a backend that the environment does not support, or a control of another size than the model's motors.
    """

    default_backend: ClassVar[str]
    physics: ClassVar[dict[str, Physics]]

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        super().__init__(use_dense_reward=use_dense_reward)
        self.backend = backend or self.default_backend
        supported = self.supported()
        if self.backend not in supported:
            raise ValueError(unknown("backend", self.backend, supported, f" of {type(self).__name__}"))
        self.engine = ENGINES[self.backend]
        self._physics = supported[self.backend]
        self.dt = self._physics.timestep * self._physics.n_frames
        self.model_xml = apply_physics(self.build_xml(), self._physics)
        self.sys = self.engine.load(self.model_xml)
        self._require_control_of_motors()

    @classmethod
    def supported(cls) -> dict[str, Physics]:
        """Every engine that can step the environment -> how."""
        stated = {name: cls.physics.get(name, cls.physics.get(engine.physics_of)) for name, engine in ENGINES.items()}
        return {name: physics for name, physics in stated.items() if physics is not None}

    def _require_control_of_motors(self) -> None:
        action = jax.ShapeDtypeStruct((self.action_size,), jnp.float32)
        try:
            control = jax.eval_shape(self.control, action).shape
        except (TypeError, ValueError) as error:
            control = " ".join(str(error).split())[:200]
        if control != (self.sys.act_size(),):
            raise ValueError(
                f"{type(self).__name__}: the model has {self.sys.act_size()} motors, but control() makes of an action "
                f"of {self.action_size} (action_size): {control}"
            )

    # Hooks.

    @abc.abstractmethod
    def build_xml(self) -> ElementTree.Element:
        """The physics model: a MuJoCo XML tree, without goals and with the timing left to `Physics`."""

    def control(self, action: jax.Array) -> jax.Array:
        """(motors,) the control that the engine receives for a policy's (action_size,) action."""
        return action

    def step_system(self, pipeline_state: Any) -> Any:
        """The model used for the coming control step; a maze moves its walls here."""
        return self.sys

    def init_pipeline(self, start: tuple[jax.Array, jax.Array]) -> Any:
        return self.engine.init(self.sys, *start)

    def step_pipeline(self, pipeline_state: Any, action: jax.Array) -> Any:
        sys = self.step_system(pipeline_state)
        control = jnp.asarray(self.control(action), pipeline_state.q.dtype)  # MJX wants it, with JAX_ENABLE_X64 too
        return self.engine.step(sys, pipeline_state, control, self._physics.n_frames)

    def pose(self, env_state: EnvState) -> jax.Array:
        return env_state.pipeline_state.q

    def link(self, body: str) -> int:
        """Where a body stands in the links of a pipeline state; what is fixed to it is part of it.

        Raises:
          ValueError: there is no link of that name.
        """
        if body not in self.sys.link_names:
            raise ValueError(unknown("body", body, self.sys.link_names, f" of {type(self).__name__}"))
        return self.sys.link_names.index(body)


# The engines.


def load_system(xml: str) -> Any:
    """Loads a brax System, onto a device of this process."""
    from brax.io import mjcf

    # MJX takes the first device of all, which may be another process's.
    put_model = functools.partial(mjcf.mjx.put_model, device=jax.local_devices()[0])
    with warnings.catch_warnings(), mock.patch.object(mjcf.mjx, "put_model", put_model):
        # brax's notice that it is no longer developed is known and not repeated at every start
        warnings.filterwarnings("ignore", message="Brax System, piplines", category=UserWarning)
        return mjcf.loads(xml)


def num_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def brax_engine(name: str) -> Engine:
    """An engine of brax, which advances frame by frame."""

    def pipeline() -> Any:
        return importlib.import_module(f"brax.{name}.pipeline")  # slow, so only when it is used

    def init(sys: Any, q: jax.Array, qd: jax.Array) -> Any:
        return pipeline().init(sys, q, qd)

    def step(sys: Any, pipeline_state: Any, control: jax.Array, n_frames: int) -> Any:
        frame = pipeline().step
        return jax.lax.scan(lambda carry, _: (frame(sys, carry, control), None), pipeline_state, length=n_frames)[0]

    return Engine(load_system, init, step)


def native_engine() -> Engine:
    """MuJoCo's own engine, of `envs.native`."""

    def function(name: str) -> Callable[..., Any]:
        return lambda *args: getattr(importlib.import_module("envs.native"), name)(*args)

    return Engine(*map(function, ("load", "init", "step")), physics_of="mjx", culls=True)


ENGINES: dict[str, Engine] = {
    "generalized": brax_engine("generalized"),
    "mjx": brax_engine("mjx"),
    "mujoco": native_engine(),
    "positional": brax_engine("positional"),
    "spring": brax_engine("spring"),
}
BACKENDS = tuple(ENGINES)


# Models: XML of the installed brax package, edited at run time.


def brax_asset(name: str) -> ElementTree.Element:
    """The XML tree of a model that brax ships, e.g. "ant"."""
    return ElementTree.parse(Path(brax.__file__).parent / "envs" / "assets" / f"{name}.xml").getroot()


def find(root: ElementTree.Element, tag: str, name: str) -> ElementTree.Element:
    """The element <tag name="..."> of a model.

    Raises:
      KeyError: there is none (an asset of another brax version).
    """
    for element in root.iter(tag):
        if element.get("name") == name:
            return element
    raise KeyError(f"the model has no <{tag} name={name!r}>")


def remove_body(root: ElementTree.Element, name: str) -> None:
    """Removes a body and all below it."""
    body = find(root, "body", name)
    next(parent for parent in root.iter() if body in list(parent)).remove(body)


def collide(root: ElementTree.Element, geoms: tuple[str, ...], contype: int = 1) -> None:
    """Lets geoms be touched by every geom of this contype."""
    for name in geoms:
        find(root, "geom", name).set("conaffinity", str(contype))


def set_numeric(root: ElementTree.Element, name: str, data: str) -> None:
    """Overwrites one of brax's custom numbers, e.g. when a body that had one was removed."""
    find(root, "numeric", name).set("data", data)


def extend_numeric(root: ElementTree.Element, name: str, data: str) -> None:
    """Appends to one of brax's custom numbers, e.g. when a body is added."""
    numeric = find(root, "numeric", name)
    numeric.set("data", f"{numeric.get('data')} {data}")


def apply_physics(root: ElementTree.Element, physics: Physics) -> str:
    """Writes a backend's timing, solver options and gears into a model and returns its XML text."""
    option = root.find("option")
    if option is None:
        option = ElementTree.SubElement(root, "option")
    option.set("timestep", repr(physics.timestep))
    option.attrib.update(physics.option)
    for flag in physics.disable:
        ElementTree.SubElement(option, "flag", {flag: "disable"})
    if physics.gear is not None:
        motors = root.findall("actuator/*")
        for motor, gear in zip(motors, np.broadcast_to(physics.gear, len(motors)), strict=True):
            motor.set("gear", repr(float(gear)))
    return ElementTree.tostring(root, encoding="unicode")


# Places.


def uniform_angle(key: jax.Array) -> jax.Array:
    """() an angle in [0, 2 pi)."""
    return jax.random.uniform(key, maxval=2 * jnp.pi)


def on_circle(radius: jax.Array | float, angle: jax.Array) -> jax.Array:
    """(2,) the point of a circle about the origin."""
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])
