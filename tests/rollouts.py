"""Rollouts from chosen physical states, for the tests of environments: (N, ...) envs, (T, N, ...) steps."""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from envs import ENVS
from envs.base import EnvState
from envs.check import QUICK_COMPILE
from envs.physics import PhysicsEnv


def start_and_goal(env: PhysicsEnv) -> Callable[[jax.Array], tuple[jax.Array, jax.Array, jax.Array]]:
    """Key -> q, qd, goal of an episode."""

    def draw(key):
        goal = env.sample_goal(key)
        return *env.sample_start(key, goal), goal

    return draw


def random_ants(env: PhysicsEnv, rng: np.random.Generator, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, q), (N, qd) moving ants in random poses with their torsos above `xy` (N, 2); other bodies at rest."""
    count = len(xy)
    yaw, tilt = rng.uniform(0, 2 * np.pi, count), rng.normal(0, 0.1, (2, count))
    quaternion = np.stack([np.cos(yaw / 2), *tilt, np.sin(yaw / 2)], axis=1)
    q = np.tile(np.array(env.sys.init_q), (count, 1))
    q[:, :2] = xy
    q[:, 2] = rng.uniform(0.4, 0.8, count)
    q[:, 3:7] = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    q[:, 7:15] += rng.uniform(-0.4, 0.4, (count, 8))
    qd = np.zeros((count, env.sys.qd_size()))
    qd[:, :14] = rng.normal(0, 1, (count, 14))
    qd[:, :2] *= 2
    return q, qd


def random_humanoids(env: PhysicsEnv, rng: np.random.Generator, xy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(N, q), (N, qd) moving humanoids in random poses, half of them upright, with their torsos above `xy` (N, 2)."""
    count = len(xy)
    quaternion = rng.normal(size=(count, 4))
    quaternion[::2, 1:3] *= 0.1
    q = np.zeros((count, env.sys.q_size()))
    q[:, :2] = xy
    q[:, 2] = rng.uniform(1.1, 1.8, count)
    q[:, 3:7] = quaternion / np.linalg.norm(quaternion, axis=1, keepdims=True)
    low, high = (np.array(limit)[6:] for limit in env.sys.dof.limit)
    q[:, 7:] = rng.uniform(low, high, (count, len(low)))
    qd = rng.normal(0, 1, (count, env.sys.qd_size()))
    qd[:, :2] *= 3
    return q, qd


@functools.partial(jax.jit, static_argnums=0)
def _roll(env: PhysicsEnv, q: jax.Array, qd: jax.Array, goal: jax.Array, actions: jax.Array) -> EnvState:
    shapes = jax.eval_shape(jax.vmap(env.reset), jax.random.split(jax.random.key(0), len(q)))

    def place(q, qd):
        # Twice: a maze puts its walls around the torso, and the generalized engine finds contacts at the end of a step.
        pipeline_state = env.engine.init(env.sys, q, qd)
        return env.engine.init(env.step_system(pipeline_state), q, qd)

    pipeline_state = jax.vmap(place)(q, qd)
    env_state = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes).replace(
        pipeline_state=pipeline_state, state=jax.vmap(env.observe)(pipeline_state, actions[0]), goal=goal
    )

    def step(env_state, action):
        env_state = jax.vmap(env.step)(env_state, action)
        return env_state, env_state

    return jax.lax.scan(step, env_state, actions)[1]


def roll(env: PhysicsEnv, q, qd, goal, actions) -> EnvState:
    """The states after each of `actions` (T, N, action_size), from joint positions and velocities (N, ...)."""
    args = [jnp.asarray(leaf, jnp.float32) for leaf in (q, qd, goal, actions)]
    quick = QUICK_COMPILE if len(q) * len(actions) < 1000 else None
    return _roll.lower(env, *args).compile(compiler_options=quick)(*args)


# The first name of each family: its variants differ in layout or goals, not in how they meet a backend.
FAMILIES = {getattr(constructor, "func", constructor): name for name, constructor in reversed(ENVS.items())}
# The first name of each file of envs/: what one runs by default, where the slow tests run every family or every name.
FIRST_OF_FILE = {family.__module__: name for family, name in FAMILIES.items()}
