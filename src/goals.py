"""Goals: which later row a row learns from (`GOAL_RULES`), and which goals are commanded (`PROPOSALS`)."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from src.algorithm import OffPolicyConfig
from src.replay_buffer import FutureIndex, later_row, sample_rows

# Rules: how many rows ahead the goal lies, in 1..num_future, from u uniform in [0, 1). Elementwise.

GoalRule = Callable[[jax.Array, jax.Array, float], jax.Array]


def geometric(u: jax.Array, num_future: jax.Array, discounting: float) -> jax.Array:
    """k with P(k) proportional to discounting^k: the inverse of its truncated CDF."""
    log_discount = math.log(discounting)  # in float64: float32 rounds a discount near 1 to 1
    k = 1 + jnp.floor(jnp.log1p(u * jnp.expm1(num_future * log_discount)) / log_discount).astype(jnp.int32)
    return jnp.clip(k, 1, num_future)


def uniform(u: jax.Array, num_future: jax.Array, discounting: float) -> jax.Array:
    """k with equal probability for every later row."""
    del discounting
    return jnp.clip(1 + jnp.floor(u * num_future).astype(jnp.int32), 1, num_future)


def last(u: jax.Array, num_future: jax.Array, discounting: float) -> jax.Array:
    """The last row of the trajectory."""
    del u, discounting
    return num_future


GOAL_RULES: dict[str, GoalRule] = {"geometric": geometric, "uniform": uniform, "last": last}


@struct.dataclass
class Pairs:
    """Flat numbers of rows, and of the later rows that their goals come from."""

    row: jax.Array
    future_row: jax.Array


def draw_pairs(config: OffPolicyConfig, goal_rule: str, index: FutureIndex, key: jax.Array) -> Pairs:
    """The pairs of all updates of a training step, (updates, B): uniform rows, later rows by a goal rule."""
    row_key, future_key = jax.random.split(key)
    shape = (config.updates_per_training_step(), config.batch_size)
    row = sample_rows(row_key, index, shape)
    num_future = index.num_future.reshape(-1)[row]
    k = GOAL_RULES[goal_rule](jax.random.uniform(future_key, shape), num_future, config.discounting)
    return Pairs(row, later_row(row, k, index.num_future.shape))


# Proposals: the goals (P, goal_dim) commanded at P fresh starts. `own` are those that the environment draws.

Proposal = Callable[[jax.Array, Any, jax.Array, tuple[int, ...]], jax.Array]


def achieved(key: jax.Array, buffer_state: Any, own: jax.Array, goal_indices: tuple[int, ...]) -> jax.Array:
    """Goals achieved in rows of the replay, each row equally likely; `own` before it holds any."""
    rows = buffer_state.rows.state
    capacity, num_envs = rows.shape[:2]
    time_key, env_key = jax.random.split(key)
    count = own.shape[0]
    age = jax.random.randint(time_key, (count,), 0, jnp.maximum(buffer_state.size, 1))
    time = (buffer_state.position - 1 - age) % capacity
    env = jax.random.randint(env_key, (count,), 0, num_envs)
    return jnp.where(buffer_state.size > 0, rows[time, env][:, jnp.array(goal_indices)], own)


PROPOSALS: dict[str, Proposal | None] = {"env": None, "achieved": achieved}


# Goals of other rows of a batch.


def with_other_goals(share: float, *per_goal: jax.Array) -> list[jax.Array]:
    """Gives the first `share` of the rows of each (..., B, D) array, one at least if it is not 0, the next row's value;
    rows come in random order."""
    if not share:
        return list(per_goal)
    size = per_goal[0].shape[-2]
    swapped = jnp.arange(size) < max(round(share * size), 1)
    return [jnp.where(swapped[:, None], jnp.roll(value, -1, axis=-2), value) for value in per_goal]
