"""When is the goal reached? Hazards, their likelihood and their value, and what is near the goal: pure functions of
arrays.

Time is counted in actions and cut into bins; the hazard of a bin is the chance, at each of its steps, that the goal is
reached there for the first time, given that it was not before. Step 0 is a bin of its own. Shapes: B batch, W the last
step that counts, G goal entries, `bins` as many as there are.
Papers: hazards https://arxiv.org/abs/2605.31273, time, separation and occupancy https://arxiv.org/abs/2609.36238.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

_PRECISION = jax.lax.Precision.HIGHEST  # sums over hundreds of steps


class Bins(NamedTuple):
    """Bins of steps side by side: the `first` step of each and its `length` in steps, NumPy arrays (bins,)."""

    first: np.ndarray
    length: np.ndarray


def _bins(edges: set[int], end: int) -> Bins:
    first = np.array(sorted(edges))
    return Bins(first, np.diff(first, append=end))


def hazard_bins(window: int, number: int) -> Bins:
    """Bins of the steps 0 to W: 0 alone, then bins whose lengths grow geometrically, from `number` edges that may
    coincide; 0 makes every step a bin of its own."""
    later = (round(1 + window ** (j / number)) for j in range(number + 1)) if number else range(1, window + 1)
    return _bins({0, 1} | {edge for edge in later if edge < window or not number}, window + 1)


def occupancy_bins(window: int, number: int = 32) -> Bins:
    """Bins of the steps 0 to W - 1 whose lengths grow geometrically, from `number` edges that may coincide."""
    edges = (round(window ** (j / number)) for j in range(number + 1))
    return _bins({0} | {edge for edge in edges if edge < window}, window)


def count_steps(bins: Bins, last: jax.Array) -> jax.Array:
    """(B, bins) how many of the steps from the first up to `last` (B,) are in each bin."""
    return jnp.clip(last[:, None] - bins.first + 1, 0, bins.length)


def sums_before(x: jax.Array) -> jax.Array:
    """(..., n) sums of all that comes before, along the last axis: two products with small triangles. XLA makes of a
    `cumsum` of a thousand columns what takes a CPU minutes to compile, and long to run."""
    size = x.shape[-1]
    side = math.isqrt(size - 1) + 1
    padding = [(0, 0)] * (x.ndim - 1) + [(0, side * side - size)]
    square = jnp.pad(x, padding).reshape(*x.shape[:-1], side, side)
    before = np.triu(np.ones((side, side), np.float32), 1)
    in_row = jnp.matmul(square, before, precision=_PRECISION)
    rows = jnp.matmul(jnp.sum(square, axis=-1), before, precision=_PRECISION)
    return (in_row + rows[..., None]).reshape(*x.shape[:-1], side * side)[..., :size]


def log_likelihood(bins: Bins, logits: jax.Array, first_hit: jax.Array, known: jax.Array) -> jax.Array:
    """(B,) log-likelihood of what was seen: that the goal was reached first at step `first_hit` (B,), or, where that is
    -1, at none of the steps up to `known` (B,), -1 if nothing is known. `logits` (B, bins) are of the hazards."""
    if logits.shape != (*first_hit.shape, len(bins.first)):
        raise ValueError(f"{len(bins.first)} bins of {first_hit.shape} rows need as many logits, got {logits.shape}")
    seen = first_hit >= 0
    without = count_steps(bins, jnp.where(seen, first_hit - 1, known))
    offset = first_hit[:, None] - bins.first
    hit = seen[:, None] & (offset >= 0) & (offset < bins.length)
    return jnp.sum(without * jax.nn.log_sigmoid(-logits) + jnp.where(hit, jax.nn.log_sigmoid(logits), 0.0), axis=-1)


def arrival_value(bins: Bins, logits: jax.Array, discounting: float) -> jax.Array:
    """(...) minus the discounted time until the goal is reached: minus the sum over steps k < W of discounting^k times
    the chance that it was not reached up to k. Each bin is a finite geometric series."""
    log_discount, log_miss = math.log(discounting), jax.nn.log_sigmoid(-logits)
    window = bins.first[-1] + bins.length[-1] - 1
    length = np.minimum(bins.length, window - bins.first)
    start = sums_before(bins.length * log_miss) + bins.first * log_discount + log_miss
    log_ratio = log_discount + log_miss
    return -jnp.sum(jnp.exp(start) * jnp.expm1(length * log_ratio) / jnp.expm1(log_ratio), axis=-1)


# What chrono adds.


def mean_where(where: jax.Array, x: jax.Array) -> jax.Array:
    """() the mean of the entries chosen; 0 if there are none."""
    return jnp.sum(jnp.where(where, x, 0.0)) / jnp.maximum(jnp.sum(where), 1)


def time_loss(distance: jax.Array, first_hit: jax.Array, pace: float) -> jax.Array:
    """Huber loss of distances (B,) against `pace` times the steps, over the rows whose goal came later than now."""
    return mean_where(first_hit >= 1, optax.losses.huber_loss(distance, pace * first_hit, delta=1.0))


def separation_loss(distances: jax.Array, apart: jax.Array, missed: jax.Array, reach: float) -> jax.Array:
    """How far distances (B, B) of rows and goals fall short of `reach`, on average over the goals of other rows that
    are `apart` (B, B) from the row's own, and over the own ones of the rows that `missed` (B,) theirs."""
    own = jnp.eye(distances.shape[0], dtype=bool)
    return mean_where(jnp.where(own, missed[:, None], apart), jax.nn.relu(reach - distances))


class Occupancy(NamedTuple):
    """How much of each bin of the time ahead was spent near the goal, 0 to 1, and in which bins any step is known;
    (B, bins) each."""

    share: jax.Array
    known: jax.Array


def occupancy(bins: Bins, distance: jax.Array, radius: float, last: jax.Array, died: jax.Array) -> Occupancy:
    """The occupancy by distances (B, W) from the goal at the steps ahead. Steps after the stored one `last` (B,) are
    unknown, but after a death (B,) known to be spent nowhere. Near counts in thirds: within the radius, its half, its
    quarter."""
    steps = np.arange(distance.shape[1])
    near = sum((distance <= radius / 2**halving).astype(jnp.float32) for halving in range(3)) / 3
    stored = jnp.where(steps <= last[:, None], near, 0.0)
    of_bin = (steps[:, None] >= bins.first) & (steps[:, None] < bins.first + bins.length)
    known = count_steps(bins, jnp.where(died, distance.shape[1] - 1, last))
    total = jnp.matmul(stored, of_bin.astype(np.float32), precision=_PRECISION)
    return Occupancy(total / jnp.maximum(known, 1), known > 0)


def occupancy_loss(logits: jax.Array, target: Occupancy) -> jax.Array:
    """Binary cross-entropy of logits (B, bins) over the bins in which any step is known."""
    return mean_where(target.known, optax.losses.sigmoid_binary_cross_entropy(logits, target.share))


def occupancy_value(bins: Bins, logits: jax.Array, discounting: float) -> jax.Array:
    """(...) the discounted time near the goal, that of step 0 left out."""
    weight = discounting**bins.first * (1 - discounting**bins.length) / (1 - discounting)
    weight = np.where(bins.first > 0, weight, 0.0).astype(np.float32)
    return jnp.sum(jax.nn.sigmoid(logits) * weight, axis=-1)
