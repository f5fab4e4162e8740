"""The contract of every environment: a body to control, a goal to reach, and the goal kept as data.

The commanded goal is drawn with the start state, lives in `EnvState.goal` and is appended to the observation; physics
never sees it. Shapes here are those of one environment; `envs.wrappers.VectorEnv` adds the leading axis of N envs.
"""

import abc
import contextlib
import ctypes.util
import dataclasses
import functools
import importlib
import io
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple
from unittest import mock
from xml.etree import ElementTree

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from utils import unknown


def without_missing_opengl(chosen: str) -> str:
    """The value of `MUJOCO_GL` to go on with: `chosen`, or "disabled" if that names a library that is not installed.

    MuJoCo could not even be imported then, but only pictures need OpenGL.
    """
    library = {"egl": "EGL", "osmesa": "OSMesa"}.get(chosen.lower())
    if library is None or sys.platform != "linux":
        return chosen
    try:
        ctypes.CDLL(ctypes.util.find_library(library) or f"lib{library}.so")
    except OSError:
        print(
            f"warning: nothing can be drawn, MUJOCO_GL={chosen} needs lib{library}, which is missing", file=sys.stderr
        )
        return "disabled"
    return chosen


if os.environ.get("MUJOCO_GL"):
    os.environ["MUJOCO_GL"] = without_missing_opengl(os.environ["MUJOCO_GL"])
with contextlib.redirect_stdout(io.StringIO()):  # MJX prints that its optional engine, Warp, is not installed
    import brax

BACKENDS = ("generalized", "mjx", "positional", "spring")


@struct.dataclass
class EnvState:
    """One environment between two actions.

    Attributes:
      pipeline_state: what the physics engine carries from step to step.
      state: (state_dim,) the observation without its goal.
      goal: (goal_dim,) the commanded goal of this episode.
      reward: () of the last step.
      done: () 1 when the episode is over, by termination or by its time limit.
      truncation: () 1 when only the time limit ended it.
      metrics: name -> () of the last step; zero after a reset.
      steps: () env steps since the episode began, action repeats included.
      traj_id: () number of the trajectory; counts the episodes this env has begun.
    """

    pipeline_state: Any
    state: jax.Array
    goal: jax.Array
    reward: jax.Array
    done: jax.Array
    truncation: jax.Array
    metrics: dict[str, jax.Array]
    steps: jax.Array
    traj_id: jax.Array

    @property
    def obs(self) -> jax.Array:
        """(..., state_dim + goal_dim) state ++ goal."""
        return jnp.concatenate([self.state, self.goal], axis=-1)


class Sizes(NamedTuple):
    """How long an environment's vectors are: state, action, goal, and all that the physics engine carries."""

    state: int
    action: int
    goal: int
    physics: int = 0


@dataclasses.dataclass(frozen=True)
class Physics:
    """How one backend integrates a model: `n_frames` steps of `timestep` seconds make one control step.

    `gear` replaces the gear of every actuator (one number, or one a joint in the model's order); `option` holds
    attributes of MuJoCo's <option>, `disable` names of the flags to switch off.
    """

    timestep: float
    n_frames: int
    gear: float | tuple[float, ...] | None = None
    option: dict[str, str] = dataclasses.field(default_factory=dict)
    disable: tuple[str, ...] = ()


class GoalEnv(abc.ABC):
    """Base of all environments. A subclass states the class attributes and fills the hooks; nothing else.

    Attributes:
      state_dim, action_size: sizes of the state part of the observation and of the action, in [-1, 1].
      goal_indices: which state entries the goal speaks of; the achieved goal is `state[goal_indices]`.
      goal_dist: success is a distance between achieved and commanded goal strictly below this, in the goal's unit.
      other_thresholds: further success metrics by name, e.g. {"success_easy": 2.0}.
      default_backend: the physics backend when the user names none.
      physics: backend -> Physics; its keys are the backends the environment supports.

    Raises:
      ValueError: a backend that the environment does not support, goal indices outside the state, or an action size
        that is not the model's.
    """

    state_dim: ClassVar[int]
    action_size: ClassVar[int]
    goal_indices: ClassVar[tuple[int, ...]]
    goal_dist: ClassVar[float]
    other_thresholds: ClassVar[dict[str, float]] = {}
    default_backend: ClassVar[str]
    physics: ClassVar[dict[str, Physics]]

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        self.backend = backend or self.default_backend
        if self.backend not in self.physics:
            raise ValueError(unknown("backend", self.backend, self.physics, f" of {type(self).__name__}"))
        self.use_dense_reward = use_dense_reward
        self._physics = self.physics[self.backend]
        self.dt = self._physics.timestep * self._physics.n_frames
        self.model_xml = apply_physics(self.build_xml(), self._physics)
        self.sys = load_system(self.model_xml)
        self._pipeline = importlib.import_module(f"brax.{self.backend}.pipeline")
        if not set(self.goal_indices) <= set(range(self.state_dim)):
            raise ValueError(
                f"{type(self).__name__}: goal_indices {self.goal_indices} must lie in 0 to {self.state_dim - 1}"
            )
        if self.action_size != self.sys.act_size():
            raise ValueError(
                f"{type(self).__name__}: action_size is {self.action_size}, the model has {self.sys.act_size()} motors"
            )

    @property
    def goal_dim(self) -> int:
        return len(self.goal_indices)

    @functools.cached_property
    def sizes(self) -> Sizes:
        carried = jax.tree.leaves(jax.eval_shape(self.reset, jax.random.key(0)).pipeline_state)
        return Sizes(self.state_dim, self.action_size, self.goal_dim, sum(leaf.size for leaf in carried))

    @property
    def obs_size(self) -> int:
        return self.state_dim + self.goal_dim

    # Hooks.

    @abc.abstractmethod
    def build_xml(self) -> ElementTree.Element:
        """The physics model: a MuJoCo XML tree, without goals and with the timing left to `Physics`."""

    @abc.abstractmethod
    def sample_start(self, key: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        """Draws joint positions, joint velocities and the commanded goal of a new episode."""

    @abc.abstractmethod
    def observe(self, pipeline_state: Any, action: jax.Array) -> jax.Array:
        """(state_dim,) the state after `action` (zeros after a reset)."""

    @abc.abstractmethod
    def step_metrics(self, before: EnvState, pipeline_state: Any, action: jax.Array) -> dict[str, jax.Array]:
        """What the environment reports of a step besides `dist` and the success flags."""

    @abc.abstractmethod
    def dense_reward(
        self, before: EnvState, dist: jax.Array, metrics: dict[str, jax.Array], action: jax.Array
    ) -> jax.Array:
        """The shaped reward of `--use_dense_reward`; `dist` is the goal distance after the step."""

    def terminated(self, pipeline_state: Any) -> jax.Array:
        """() whether the episode ends before its time limit. Never, unless a subclass says so."""
        return jnp.zeros((), bool)

    def control(self, action: jax.Array) -> jax.Array:
        """The control that the physics receives for a policy's action."""
        return action

    def step_system(self, pipeline_state: Any) -> Any:
        """The model used for the coming control step; a maze moves its walls here."""
        return self.sys

    # The two functions that the rest of the code calls.

    def goal_distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """Distance between the achieved goal of `state` (..., state_dim) and `goal` (..., goal_dim)."""
        return jnp.linalg.norm(state[..., jnp.array(self.goal_indices)] - goal, axis=-1)

    def reset(self, key: jax.Array) -> EnvState:
        """A new episode: start and goal drawn from `key`.

        Raises:
          ValueError: a goal of another size than `goal_indices`.
        """
        q, qd, goal = self.sample_start(key)
        if goal.shape != (self.goal_dim,):
            raise ValueError(
                f"{type(self).__name__}: goal_indices {self.goal_indices} name {self.goal_dim} entries, but "
                f"sample_start draws goals of shape {goal.shape}"
            )
        pipeline_state = self._pipeline.init(self.sys, q, qd)
        no_action = jnp.zeros(self.action_size)
        zero = jnp.zeros(())
        env_state = EnvState(
            pipeline_state=pipeline_state,
            state=self.observe(pipeline_state, no_action),
            goal=goal,
            reward=zero,
            done=zero,
            truncation=zero,
            metrics={},
            steps=jnp.zeros((), jnp.int32),
            traj_id=jnp.zeros((), jnp.int32),
        )
        metrics = jax.eval_shape(lambda: self._after(env_state, pipeline_state, no_action).metrics)
        return env_state.replace(metrics=jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), metrics))

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        """One control step of `dt` seconds with an (action_size,) action in [-1, 1]."""
        if action.shape != (self.action_size,):
            raise ValueError(f"{type(self).__name__} takes actions of shape ({self.action_size},), got {action.shape}")
        sys = self.step_system(env_state.pipeline_state)
        control = self.control(action)

        def frame(pipeline_state, _):
            return self._pipeline.step(sys, pipeline_state, control), None

        pipeline_state, _ = jax.lax.scan(frame, env_state.pipeline_state, length=self._physics.n_frames)
        return self._after(env_state, pipeline_state, action)

    def _after(self, before: EnvState, pipeline_state: Any, action: jax.Array) -> EnvState:
        """The env state once the physics has moved on to `pipeline_state`."""
        state = self.observe(pipeline_state, action)
        dist = self.goal_distance(state, before.goal)
        thresholds = {"success": self.goal_dist, **self.other_thresholds}
        metrics = self.step_metrics(before, pipeline_state, action)
        metrics |= {"dist": dist} | {name: (dist < limit).astype(float) for name, limit in thresholds.items()}
        dense = self.dense_reward(before, dist, metrics, action)
        return before.replace(
            pipeline_state=pipeline_state,
            state=state,
            reward=dense if self.use_dense_reward else metrics["success"],
            done=self.terminated(pipeline_state).astype(float),
            metrics={name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()},
        )


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


def load_system(xml: str) -> Any:
    """Loads a brax System, onto a device of this process."""
    from brax.io import mjcf

    # MJX takes the first device of all, which may be another process's.
    put_model = functools.partial(mjcf.mjx.put_model, device=jax.local_devices()[0])
    with warnings.catch_warnings(), mock.patch.object(mjcf.mjx, "put_model", put_model):
        # brax's notice that it is no longer developed is known and not repeated at every start
        warnings.filterwarnings("ignore", message="Brax System, piplines", category=UserWarning)
        return mjcf.loads(xml)


def uniform_angle(key: jax.Array) -> jax.Array:
    """() an angle in [0, 2 pi)."""
    return jax.random.uniform(key, maxval=2 * jnp.pi)


def on_circle(radius: jax.Array | float, angle: jax.Array) -> jax.Array:
    """(2,) the point of a circle about the origin."""
    return radius * jnp.stack([jnp.cos(angle), jnp.sin(angle)])


EnvConstructor = Callable[..., GoalEnv]
