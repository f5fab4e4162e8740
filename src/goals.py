"""Goals: which row a row learns to reach (`GOAL_RULES`, mixtures), and which goals are commanded (`PROPOSALS`).

Shapes: U updates per training step, B batch.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from flax import struct

from src.algorithm import OffPolicyConfig
from src.losses import off_diagonal, pairwise_energy
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
    """Flat numbers of rows, and of the rows that their goals come from; with CrossE, which rows take the goal of their
    nearest neighbour in the batch (`crossed`, bool)."""

    row: jax.Array
    future_row: jax.Array
    crossed: jax.Array | None = None


def draw_pairs(
    config: OffPolicyConfig, goal_rule: str, index: FutureIndex, key: jax.Array, crosse: float = 0.0, spare: int = 0
) -> Pairs:
    """The pairs of all updates of a training step, (U, B): uniform rows, later rows by a goal rule, with `spare` rows
    after them where there are so many; rows are crossed with probability `crosse`."""
    row_key, future_key, *cross_key = jax.random.split(key, 3 if crosse else 2)
    shape = (config.updates_per_training_step(), config.batch_size)
    row = sample_rows(row_key, index, shape)
    num_future = index.num_future.reshape(-1)[row]
    if spare:
        num_future = jnp.maximum(num_future - spare, 1)
    k = GOAL_RULES[goal_rule](jax.random.uniform(future_key, shape), num_future, config.discounting)
    crossed = jax.random.uniform(*cross_key, shape) < crosse if crosse else None
    return Pairs(row, later_row(row, k, index.num_future.shape), crossed)


# Goals of other rows of a batch. Rows come in random order, so that a share of them can be the first or the last ones.


def count(share: float, size: int) -> int:
    """How many of `size` rows a share is; one at least if it is not 0."""
    return max(round(share * size), 1) if share else 0


def mixed(pairs: Pairs, own: float, other: float) -> Pairs:
    """Gives the last `own` of the rows of each (..., B) batch the goal that they have achieved themselves, and the last
    `other` of those before the one that the next row has achieved."""
    if not own and not other:
        return pairs
    size = pairs.row.shape[-1]
    from_end, own_rows = jnp.arange(size)[::-1], count(own, size)
    swapped = jnp.where(from_end < own_rows + count(other, size), jnp.roll(pairs.row, -1, axis=-1), pairs.future_row)
    return pairs.replace(future_row=jnp.where(from_end < own_rows, pairs.row, swapped))


def cross(crossed: jax.Array | None, state: jax.Array, goal: jax.Array) -> jax.Array:
    """(B, goal_dim) goals, where `crossed` (B,) those of the row of the batch whose state (B, state_dim) is nearest."""
    if crossed is None:
        return goal
    closeness = pairwise_energy("l2_no_sqrt", state, state)
    nearest = jnp.argmax(jnp.where(off_diagonal(closeness), closeness, -jnp.inf), axis=1)
    return jnp.where(crossed[:, None], goal[nearest], goal)


def with_other_goals(share: float, *per_goal: jax.Array) -> list[jax.Array]:
    """Gives the first `share` of the rows of each (..., B, D) array the next row's value."""
    if not share:
        return list(per_goal)
    size = per_goal[0].shape[-2]
    swapped = jnp.arange(size) < count(share, size)
    return [jnp.where(swapped[:, None], jnp.roll(value, -1, axis=-2), value) for value in per_goal]


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
