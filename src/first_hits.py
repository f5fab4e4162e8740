"""Data of the algorithms that learn when a goal is reached: of each row and a goal, the first later step at which the
trajectory reaches it, or how long it is known not to.

Goals are sequences of D achieved goals, all of which must match one after the other: 1, or more where an environment
asks for dwelling. Shapes: T rows of the ring, N envs, B batch, W the last step that counts, D goals of a sequence.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs.base import GoalEnv
from src import hazards, planning, replay_buffer
from src.algorithm import Step
from src.goals import Pairs
from src.hazards import Bins, Occupancy


class Outlook(NamedTuple):
    """How far is looked ahead: W steps (`window`), for sequences of D goals (`dwell`), by plans of H actions
    (`action_chunk`), and the bins of the occupancy, if it is asked for."""

    window: int
    dwell: int
    action_chunk: int
    occupancy_bins: Bins | None


@struct.dataclass
class Row:
    """What the replay keeps of a step, (N, ...) each; `terminated` tells where the trajectory ended by death."""

    state: jax.Array
    action: jax.Array
    terminated: jax.Array
    traj_id: jax.Array


@struct.dataclass
class Index:
    """What is worked out once per training step: where trajectories end, and `achieved` (N, T + W + D, goal_dim), the
    achieved goals of each env one after the other, the first ones once more at the end, where the ring closes."""

    futures: replay_buffer.FutureIndex
    achieved: jax.Array


@struct.dataclass
class Batch:
    """What one update learns from.

    Attributes:
      state: (B, state_dim).
      action: (B, H * action_size) the plan that begins there.
      goal: (B, D, goal_dim) achieved goals in a row.
      first_hit: (B,) steps until they are reached for the first time, 0 for now; -1 where that was not seen.
      known: (B,) where it was not seen, the last step at which they are known not to be reached, -1 for none.
      died: (B,) bool, whether the trajectory ended by death.
      occupancy: of the time ahead, near the first goal; None if it is not asked for.
    """

    state: jax.Array
    action: jax.Array
    goal: jax.Array
    first_hit: jax.Array
    known: jax.Array
    died: jax.Array
    occupancy: Occupancy | None


def keep(step: Step) -> Row:
    """The row of a step."""
    return Row(step.state, step.action, step.terminated, step.traj_id)


def index(outlook: Outlook, goal_indices: tuple[int, ...], buffer_state: replay_buffer.BufferState) -> Index:
    """The index of the replay; a row can be drawn if another follows, and all actions of its plan."""
    achieved = buffer_state.rows.state[..., jnp.array(goal_indices)]
    capacity = achieved.shape[0]
    times = jnp.arange(capacity + outlook.window + outlook.dwell) % capacity
    return Index(
        futures=replay_buffer.index_futures(buffer_state, least=max(outlook.action_chunk - 1, 1)),
        achieved=jnp.moveaxis(achieved[times], 0, 1),
    )


def gather(outlook: Outlook, env: GoalEnv, rows: Row, index: Index, pairs: Pairs) -> Batch:
    """The batch of (B,) pairs of a row and the one where its goals begin."""
    window, shape = outlook.window, rows.traj_id.shape
    num_future = replay_buffer.take(index.futures.num_future, pairs.row)
    died = replay_buffer.take(rows.terminated, replay_buffer.later_row(pairs.row, num_future, shape))
    ahead = following(index.achieved, pairs.row, window + outlook.dwell)
    goal = goal_sequence(outlook.dwell, index, pairs.future_row)
    last = num_future - (outlook.dwell - 1)  # the last step at which all goals of a sequence can be compared
    steps = jnp.arange(window + 1)
    hits = matches(env, ahead, goal, window + 1) & (steps <= last[:, None])
    first_hit = jnp.min(jnp.where(hits, steps, window + 1), axis=1)
    near = None
    if outlook.occupancy_bins:
        distance = env.goal_norm(ahead[:, :window] - goal[:, :1])
        near = hazards.occupancy(outlook.occupancy_bins, distance, env.goal_dist, num_future, died)
    return Batch(
        state=replay_buffer.take(rows.state, pairs.row),
        action=planning.take_plan(rows, pairs.row, outlook.action_chunk),
        goal=goal,
        first_hit=jnp.where(first_hit <= window, first_hit, -1),
        known=jnp.where(died, window, jnp.clip(last, -1, window)),  # after a death it never comes
        died=died,
        occupancy=near,
    )


def following(achieved: jax.Array, row: jax.Array, count: int) -> jax.Array:
    """(B, count, goal_dim) the achieved goals from each row (B,) on, as stored: not all of its trajectory."""
    time, env = jnp.divmod(row, achieved.shape[0])

    def slice_of(time: jax.Array, env: jax.Array) -> jax.Array:
        return jax.lax.dynamic_slice(achieved, (env, time, 0), (1, count, achieved.shape[2]))[0]

    return jax.vmap(slice_of)(time, env)


def goal_sequence(dwell: int, index: Index, row: jax.Array) -> jax.Array:
    """(B, D, goal_dim) the achieved goals from each row (B,) on, the last one of the trajectory again where it ends."""
    later = jnp.minimum(jnp.arange(dwell), replay_buffer.take(index.futures.num_future, row)[:, None])
    time, env = jnp.divmod(row, index.achieved.shape[0])
    return index.achieved[env[:, None], time[:, None] + later]


def matches(env: GoalEnv, ahead: jax.Array, goal: jax.Array, steps: int) -> jax.Array:
    """(B, steps) whether the achieved goals that begin at each step ahead are all near those of the sequence."""

    def also(number: jax.Array, so_far: jax.Array) -> jax.Array:
        there = jax.lax.dynamic_slice_in_dim(ahead, number, steps, axis=1)
        wanted = jax.lax.dynamic_slice_in_dim(goal, number, 1, axis=1)
        return so_far & (env.goal_norm(there - wanted) <= env.goal_dist)

    return jax.lax.fori_loop(0, goal.shape[1], also, jnp.ones((goal.shape[0], steps), bool))
