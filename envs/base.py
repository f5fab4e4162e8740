"""The contract of every environment: something to control, a goal to reach, and the goal kept as data.

The commanded goal is drawn with the start, lives in `EnvState.goal` and is appended to the observation; what steps the
environment never sees it. Shapes here are those of one environment; `envs.wrappers.VectorEnv` adds the leading axis of
N envs. Environments with a physics engine derive from `envs.physics.PhysicsEnv`.
"""

import abc
import functools
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class EnvState:
    """One environment between two actions; all but `pipeline_state` is float32 or int32, whatever JAX's defaults."""

    pipeline_state: Any  # what the environment carries from step to step: for most, the state of a physics engine
    state: jax.Array  # (state_dim,) the observation without its goal
    goal: jax.Array  # (goal_dim,) the commanded goal of this episode
    reward: jax.Array  # () of the last step
    done: jax.Array  # () 1 when the episode is over, by termination or by its time limit
    truncation: jax.Array  # () 1 when only the time limit ended it
    metrics: dict[str, jax.Array]  # name -> () of the last step; zero after a reset
    steps: jax.Array  # () env steps since the episode began, action repeats included
    traj_id: jax.Array  # () number of the trajectory; counts the episodes of this env, from 0

    @property
    def obs(self) -> jax.Array:
        """(..., state_dim + goal_dim) state ++ goal."""
        return jnp.concatenate([self.state, self.goal], axis=-1)


class Sizes(NamedTuple):
    """How long an environment's vectors are: state, action, goal, and all of `pipeline_state`."""

    state: int
    action: int
    goal: int
    physics: int = 0


class GoalEnv(abc.ABC):
    """Base of all environments. A subclass states the class attributes and fills the hooks; nothing else.

    Raises:
      ValueError: a backend for an environment that has none, or goal indices outside the state.
    """

    state_dim: ClassVar[int]  # size of the state part of the observation
    action_size: ClassVar[int]  # size of the action, in [-1, 1]
    goal_indices: ClassVar[tuple[int, ...]]  # which state entries the goal speaks of; the achieved goal is these
    goal_dist: ClassVar[float]  # success is a distance between achieved and commanded goal below this, in their unit
    dwell: ClassVar[int] = 1  # achieved goals in a row that have to match before the critics of time call it reached
    other_thresholds: ClassVar[dict[str, float]] = {}  # further success metrics, e.g. {"success_easy": 2.0}
    # At most this many first entries of a goal are x, y, z of a place, or of several: pictures show them.
    goal_place_dim: ClassVar[int] = 3
    # From where pictures look, azimuth and elevation in degrees; None: from so far above that no wall hides much.
    view: ClassVar[tuple[float, float] | None] = None
    # Whether a goal means something only with the start that is drawn with it, so that no other can be proposed.
    goal_needs_start: ClassVar[bool] = False
    dt: float  # seconds that a step takes in the environment
    backend: str | None = None  # the physics engine that steps it, if it needs any
    model_xml: str | None = None  # a MuJoCo model to draw it with, whose joint positions `pose` returns

    def __init__(self, backend: str | None = None, use_dense_reward: bool = False):
        name = type(self).__name__
        if backend is not None:
            raise ValueError(f"{name} has no physics engine: leave the backend {backend!r} out")
        if not set(self.goal_indices) <= set(range(self.state_dim)):
            raise ValueError(f"{name}: goal_indices {self.goal_indices} must lie in 0 to {self.state_dim - 1}")
        self.use_dense_reward = use_dense_reward

    @property
    def goal_dim(self) -> int:
        return len(self.goal_indices)

    @property
    def goal_moves(self) -> bool:
        """Whether the goal follows something, so that no other can be commanded within an episode."""
        return type(self).follow is not GoalEnv.follow

    @property
    def obs_size(self) -> int:
        return self.state_dim + self.goal_dim

    @functools.cached_property
    def sizes(self) -> Sizes:
        carried = jax.tree.leaves(jax.eval_shape(self.reset, jax.random.key(0)).pipeline_state)
        return Sizes(self.state_dim, self.action_size, self.goal_dim, sum(leaf.size for leaf in carried))

    # Hooks.

    @abc.abstractmethod
    def sample_goal(self, key: jax.Array) -> jax.Array:
        """(goal_dim,) the goal of an episode whose reset has this key."""

    @abc.abstractmethod
    def sample_start(self, key: jax.Array, goal: jax.Array) -> Any:
        """What `init_pipeline` begins with, drawn for a goal. Gets the same key as `sample_goal`: split it alike, and
        use another part."""

    @abc.abstractmethod
    def init_pipeline(self, start: Any) -> Any:
        """The pipeline state at a start."""

    @abc.abstractmethod
    def step_pipeline(self, pipeline_state: Any, action: jax.Array) -> Any:
        """The pipeline state `dt` seconds later."""

    @abc.abstractmethod
    def observe(self, pipeline_state: Any, action: jax.Array) -> jax.Array:
        """(state_dim,) the state after `action` (zeros after a reset)."""

    @abc.abstractmethod
    def step_metrics(self, before: EnvState, after: EnvState, action: jax.Array) -> dict[str, jax.Array]:
        """What the environment reports of a step besides `dist` and the success flags. Of `after`, pipeline state and
        state are those after the step."""

    @abc.abstractmethod
    def dense_reward(self, before: EnvState, after: EnvState, action: jax.Array) -> jax.Array:
        """() the shaped reward of `--use_dense_reward`; `after` has its metrics, "dist" among them."""

    def terminated(self, pipeline_state: Any) -> jax.Array:
        """() whether the episode ends before its time limit. Never, unless a subclass says so."""
        return jnp.zeros((), bool)

    def follow(self, pipeline_state: Any, goal: jax.Array) -> jax.Array:
        """(goal_dim,) the commanded goal once the pipeline has moved on: the same, unless it follows something. The
        step itself is judged by the goal before it, for which the action was chosen."""
        return goal

    def goal_norm(self, difference: jax.Array) -> jax.Array:
        """(...) the distance between two goals, of which (..., goal_dim) is the difference."""
        return jnp.linalg.norm(difference, axis=-1)

    def pose(self, env_state: EnvState) -> jax.Array:
        """(..., nq) joint positions of `model_xml`, for env states with any leading axes; (..., 0) without a model."""
        return jnp.zeros((*env_state.done.shape, 0))

    # The functions that the rest of the code calls.

    def goal_distance(self, state: jax.Array, goal: jax.Array) -> jax.Array:
        """Distance between the achieved goal of `state` (..., state_dim) and `goal` (..., goal_dim)."""
        return self.goal_norm(state[..., jnp.array(self.goal_indices)] - goal)

    def reset(self, key: jax.Array, goal: jax.Array | None = None) -> EnvState:
        """A new episode from `key`, towards `goal` (goal_dim,) or, if there is none, one of the environment's own.

        Raises:
          ValueError: a goal of another size than `goal_indices`.
        """
        if goal is None:
            goal = self.sample_goal(jax.random.clone(key))  # the start uses another part of the same key
        goal = jnp.asarray(goal, jnp.float32)
        if goal.shape != (self.goal_dim,):
            raise ValueError(
                f"{type(self).__name__}: goal_indices {self.goal_indices} name {self.goal_dim} entries, but the goal "
                f"has shape {goal.shape}"
            )
        pipeline_state = self.init_pipeline(self.sample_start(key, goal))
        no_action, zero = jnp.zeros(self.action_size, jnp.float32), jnp.zeros((), jnp.float32)
        env_state = EnvState(
            pipeline_state=pipeline_state,
            state=jnp.asarray(self.observe(pipeline_state, no_action), jnp.float32),
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
        return self._after(env_state, self.step_pipeline(env_state.pipeline_state, action), action)

    def _after(self, before: EnvState, pipeline_state: Any, action: jax.Array) -> EnvState:
        """The env state once the pipeline has moved on to `pipeline_state`."""
        state = jnp.asarray(self.observe(pipeline_state, action), jnp.float32)
        after = before.replace(pipeline_state=pipeline_state, state=state)
        dist = self.goal_distance(state, before.goal)
        metrics = self.step_metrics(before, after, action) | {"dist": dist, "success": dist < self.goal_dist}
        metrics |= {name: dist < limit for name, limit in self.other_thresholds.items()}
        after = after.replace(metrics={name: jnp.asarray(value, jnp.float32) for name, value in metrics.items()})
        reward = self.dense_reward(before, after, action) if self.use_dense_reward else after.metrics["success"]
        goal, done = self.follow(pipeline_state, before.goal), self.terminated(pipeline_state)
        numbers = {"goal": goal, "reward": reward, "done": done}
        return after.replace(**{name: jnp.asarray(value, jnp.float32) for name, value in numbers.items()})
