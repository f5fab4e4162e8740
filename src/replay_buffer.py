"""Replay on the device: a ring of whatever rows an algorithm keeps, drawn from uniformly.

Shapes: T rows of the ring (its time axis), N envs. A trajectory is a run of rows of one env with one `traj_id`. A row
is named by its flat number t * N + n.
"""

from typing import Any

import jax
import jax.numpy as jnp
from flax import struct


@struct.dataclass
class BufferState:
    """The ring: its `rows`, a dataclass of arrays (T, N, ...) with a field `traj_id`, the `position` the next row goes
    to, and how many rows per env are filled (`size`)."""

    rows: Any
    position: jax.Array
    size: jax.Array


@struct.dataclass
class FutureIndex:
    """What sampling needs to know of the ring's content, made once per training step by `index_futures`.

    Attributes:
      num_future: (T, N) rows that follow in the same trajectory; 0 where none is stored.
      drawable: (W,) uint32, one bit per row in the order t * N + n, the lowest first: can it be drawn?
      rank: (W,) how many rows up to and including those of this word can be drawn.
    """

    num_future: jax.Array
    drawable: jax.Array
    rank: jax.Array


def init(capacity: int, row: Any) -> BufferState:
    """An empty ring of `capacity` rows per env, for rows like `row` (arrays or shapes, (N, ...) each)."""
    rows = jax.tree.map(lambda leaf: jnp.zeros((capacity, *leaf.shape), leaf.dtype), row)
    rows = rows.replace(traj_id=jnp.full_like(rows.traj_id, -1))
    return BufferState(rows=rows, position=jnp.zeros((), jnp.int32), size=jnp.zeros((), jnp.int32))


def insert(buffer_state: BufferState, rows: Any) -> BufferState:
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


def index_futures(buffer_state: BufferState, least: int = 1) -> FutureIndex:
    """Finds the end of every row's trajectory; rows with `least` later ones can be drawn. One pass over the (T, N)
    trajectory ids."""
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
    drawable = _pack(((traj_id >= 0) & (num_future >= least)).reshape(-1))
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


def sample_rows(key: jax.Array, index: FutureIndex, shape: tuple[int, ...]) -> jax.Array:
    """Draws flat row numbers of `shape`, uniform over the rows that can be drawn."""
    draw = jax.random.randint(key, shape, 0, index.rank[-1])
    at = jnp.searchsorted(index.rank, draw, side="right").astype(jnp.int32)
    word = index.drawable[at]
    before = index.rank[at] - jax.lax.population_count(word).astype(jnp.int32)
    return 32 * at + _nth_bit(word, draw - before)


def later_row(row: jax.Array, k: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """The flat number of the row that follows `row` by k steps in a ring of `shape` (T, N)."""
    capacity, num_envs = shape
    time, env = jnp.divmod(row, num_envs)
    # In this order no number exceeds that of the rows, which int32 can just hold.
    return (time + k) % capacity * num_envs + env


def take(rows: Any, row: jax.Array) -> Any:
    """The rows at flat numbers of any shape; copies only these. `rows` is an array (T, N, ...) or a tree of them."""

    def at(leaf: jax.Array) -> jax.Array:
        time, env = jnp.divmod(row, leaf.shape[1])
        return leaf[time, env]

    return jax.tree.map(at, rows)
