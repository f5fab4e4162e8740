"""Replay on the device: a ring of steps per env, and hindsight goals in O(1) per sample.

Shapes: T rows of the ring (its time axis), N envs, B batch. A trajectory is a run of rows of one env with one
`traj_id`. No goals, rewards or discounts are stored: a goal is a later state.
"""

import math

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class Rows:
    """Steps of N envs: `state` (T, N, state_dim), `action` (T, N, action_size), `traj_id` (T, N) int32."""

    state: jax.Array
    action: jax.Array
    traj_id: jax.Array


@struct.dataclass
class BufferState:
    """The ring: its `rows`, the `position` the next row goes to, and how many rows per env are filled (`size`)."""

    rows: Rows
    position: jax.Array
    size: jax.Array


@struct.dataclass
class FutureIndex:
    """What sampling needs to know of the ring's content, made once per training step by `index_futures`.

    Attributes:
      num_future: (T, N) rows that follow in the same trajectory; 0 where none is stored.
      drawable: (W,) uint32, one bit a row in the order t * N + n, the lowest first: can it be drawn (num_future > 0)?
      rank: (W,) how many rows up to and including those of this word can be drawn.
    """

    num_future: jax.Array
    drawable: jax.Array
    rank: jax.Array


@struct.dataclass
class Batch:
    """Training pairs: `state` (B, state_dim), `action` (B, action_size), `future_state` (B, state_dim)."""

    state: jax.Array
    action: jax.Array
    future_state: jax.Array


def init(capacity: int, num_envs: int, state_dim: int, action_size: int) -> BufferState:
    """An empty ring of `capacity` rows per env."""
    rows = Rows(
        state=jnp.zeros((capacity, num_envs, state_dim)),
        action=jnp.zeros((capacity, num_envs, action_size)),
        traj_id=jnp.full((capacity, num_envs), -1, jnp.int32),
    )
    return BufferState(rows=rows, position=jnp.zeros((), jnp.int32), size=jnp.zeros((), jnp.int32))


def insert(buffer_state: BufferState, rows: Rows) -> BufferState:
    """Writes U new rows per env, overwriting the oldest; the capacity must be a multiple of U.

    Raises:
      ValueError: U does not divide the capacity, or the shapes of the rows differ from the ring's.
    """
    capacity, added = buffer_state.rows.traj_id.shape[0], rows.traj_id.shape[0]
    if capacity % added:
        raise ValueError(f"a ring of {capacity} rows cannot take {added} rows at a time: not a divisor")
    for ring, new in zip(jax.tree.leaves(buffer_state.rows), jax.tree.leaves(rows), strict=True):
        if ring.shape[1:] != new.shape[1:]:
            raise ValueError(f"rows of shape {new.shape} do not fit a ring of shape {ring.shape}")

    def write(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new.astype(ring.dtype), buffer_state.position, axis=0)

    return BufferState(
        rows=jax.tree.map(write, buffer_state.rows, rows),
        position=(buffer_state.position + added) % capacity,
        size=jnp.minimum(buffer_state.size + added, capacity),
    )


def index_futures(buffer_state: BufferState) -> FutureIndex:
    """Finds the end of every row's trajectory. One pass over the (T, N) trajectory ids."""
    traj_id = buffer_state.rows.traj_id
    capacity = traj_id.shape[0]
    time = jnp.arange(capacity, dtype=jnp.int32)[:, None]
    newest = (buffer_state.position - 1) % capacity
    ends = (traj_id != jnp.roll(traj_id, -1, axis=0)) | (time == newest)
    # The next end at or after each row; rows after the last end wrap around to the first one. There is always one: the
    # newest row ends its trajectory, so neither the ring's seam nor an unfilled row is ever crossed.
    end = jax.lax.cummin(jnp.where(ends, time, 2 * capacity), axis=0, reverse=True)
    end = jnp.where(end < capacity, end, end[0] + capacity)
    num_future = jnp.where(traj_id >= 0, end - time, 0)
    drawable = _pack((num_future > 0).reshape(-1))
    rank = jnp.cumsum(jax.lax.population_count(drawable).astype(jnp.int32), dtype=jnp.int32)
    return FutureIndex(num_future=num_future, drawable=drawable, rank=rank)


def _pack(bits: jax.Array) -> jax.Array:
    """Booleans as words of 32 bits, the first of each in its lowest bit."""
    words = jnp.pad(bits, (0, -bits.size % 32)).reshape(-1, 32)
    return jnp.sum(jnp.where(words, jnp.uint32(1) << jnp.arange(32, dtype=jnp.uint32), 0), axis=1, dtype=jnp.uint32)


def _nth_bit(word: jax.Array, n: jax.Array) -> jax.Array:
    """Where the bit is that has `n` set bits below it, in words that have more than `n`."""
    at = jnp.zeros_like(n)
    for width in (16, 8, 4, 2, 1):
        below = jax.lax.population_count(word & jnp.uint32((1 << width) - 1)).astype(jnp.int32)
        above = n >= below
        at, n, word = at + above * width, n - above * below, jnp.where(above, word >> width, word)
    return at


def truncated_geometric(u: jax.Array, num_future: jax.Array, discounting: float) -> jax.Array:
    """k in 1..num_future with P(k) proportional to discounting^k, from u uniform in [0, 1): the inverse of its CDF."""
    log_discount = math.log(discounting)  # in float64: float32 rounds a discount near 1 to 1
    k = 1 + jnp.floor(jnp.log1p(u * jnp.expm1(num_future * log_discount)) / log_discount).astype(jnp.int32)
    return jnp.clip(k, 1, num_future)


def sample_pairs(
    key: jax.Array, index: FutureIndex, shape: tuple[int, ...], discounting: float
) -> tuple[jax.Array, jax.Array]:
    """Draws flat row numbers (t * N + n) of `shape`: uniform rows that have a future, and a future row for each."""
    row_key, future_key = jax.random.split(key)
    capacity, num_envs = index.num_future.shape
    draw = jax.random.randint(row_key, shape, 0, index.rank[-1])
    at = jnp.searchsorted(index.rank, draw, side="right").astype(jnp.int32)
    word = index.drawable[at]
    before = index.rank[at] - jax.lax.population_count(word).astype(jnp.int32)
    row = 32 * at + _nth_bit(word, draw - before)
    num_future = index.num_future.reshape(-1)[row]
    k = truncated_geometric(jax.random.uniform(future_key, shape), num_future, discounting)
    time, env = jnp.divmod(row, num_envs)
    # In this order no number exceeds that of the rows, which int32 can just hold.
    return row, (time + k) % capacity * num_envs + env


def gather(rows: Rows, row: jax.Array, future_row: jax.Array) -> Batch:
    """The training pairs at (B,) flat row numbers; copies only these rows."""
    time, env = jnp.divmod(row, rows.traj_id.shape[1])
    future_time, future_env = jnp.divmod(future_row, rows.traj_id.shape[1])
    return Batch(
        state=rows.state[time, env],
        action=rows.action[time, env],
        future_state=rows.state[future_time, future_env],
    )
