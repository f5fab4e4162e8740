"""Contrastive losses and energies: pure functions of arrays, no environment, config or network inside.

Shapes: B batch, D representation. `logits[i, j]` is the energy of (state-action i, goal j); positives are the diagonal.
Papers: contrastive RL https://arxiv.org/abs/2206.07568, its losses at scale https://arxiv.org/abs/2408.11052.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Energy = Callable[[jax.Array, jax.Array], jax.Array]

# Distances between representations are differences of large squares; TF32 or bfloat16 products would drown them.
_PRECISION = jax.lax.Precision.HIGHEST


# Energies: f(x, y) of representations (..., D), reducing the last axis and broadcasting over the others.


def _safe_sqrt(x: jax.Array) -> jax.Array:
    """Square root of x >= 0 whose gradient at 0 is 0 rather than infinite."""
    positive = x > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, x, 1.0)), 0.0)


def _norm(x: jax.Array) -> jax.Array:
    return _safe_sqrt(jnp.sum(jnp.square(x), axis=-1))


def _unit(x: jax.Array) -> jax.Array:
    """x scaled to length 1; zero stays zero, with a finite gradient."""
    norm = _norm(x)[..., None]
    return x / jnp.where(norm > 0, norm, 1.0)


def l2(x: jax.Array, y: jax.Array) -> jax.Array:
    """-|x - y|, with gradient 0 where x = y."""
    return -_norm(x - y)


def l2_no_sqrt(x: jax.Array, y: jax.Array) -> jax.Array:
    """-|x - y|^2."""
    return -jnp.sum(jnp.square(x - y), axis=-1)


def l1(x: jax.Array, y: jax.Array) -> jax.Array:
    """-sum |x - y|."""
    return -jnp.sum(jnp.abs(x - y), axis=-1)


def dot(x: jax.Array, y: jax.Array) -> jax.Array:
    """The inner product."""
    return jnp.sum(x * y, axis=-1)


def cos(x: jax.Array, y: jax.Array) -> jax.Array:
    """The cosine of the angle between x and y; 0 if either is zero."""
    return dot(_unit(x), _unit(y))


def _metric_residual(x: jax.Array, y: jax.Array, eps: float = 1e-6) -> jax.Array:
    """The quasimetric d(x, y) of metric residual networks (https://arxiv.org/abs/2208.08133); D must be even."""
    if x.shape[-1] % 2:
        raise ValueError(f"energies mrn and mrn_pot split the representation in half; its size {x.shape[-1]} is odd")
    (x1, x2), (y1, y2) = jnp.split(x, 2, axis=-1), jnp.split(y, 2, axis=-1)
    asymmetric = jnp.max(jax.nn.relu(x1 - y1), axis=-1)
    return asymmetric + jnp.sqrt(jnp.sum(jnp.square(x2 - y2), axis=-1) + eps)


def mrn(x: jax.Array, y: jax.Array) -> jax.Array:
    """Minus the metric-residual distance."""
    return -_metric_residual(x, y)


def mrn_pot(x: jax.Array, y: jax.Array) -> jax.Array:
    """Minus the metric-residual distance plus a potential of the goal, mean(y)."""
    return jnp.mean(y, axis=-1) - _metric_residual(x, y)


ENERGY_FNS: dict[str, Energy] = {
    "l2": l2,
    "l2_no_sqrt": l2_no_sqrt,
    "l1": l1,
    "dot": dot,
    "cos": cos,
    "mrn": mrn,
    "mrn_pot": mrn_pot,
}


def _inner_products(x: jax.Array, y: jax.Array) -> jax.Array:
    return jnp.matmul(x, y.T, precision=_PRECISION)


def _squared_distances(x: jax.Array, y: jax.Array) -> jax.Array:
    """(B, B) |x_i - y_j|^2 from one product; rounding can push it below 0, so it is clamped.

    What rounding costs grows with the norms, so an offset that all representations share is taken off first.
    """
    offset = jax.lax.stop_gradient(jnp.mean(y, axis=0))
    x, y = x - offset, y - offset
    squares = jnp.sum(jnp.square(x), axis=-1)[:, None] + jnp.sum(jnp.square(y), axis=-1)[None, :]
    return jnp.maximum(squares - 2 * _inner_products(x, y), 0.0)


# The energies whose (B, B) table is one matrix product instead of a (B, B, D) difference.
_PRODUCT_FORMS: dict[str, Energy] = {
    "l2": lambda x, y: -_safe_sqrt(_squared_distances(x, y)),
    "l2_no_sqrt": lambda x, y: -_squared_distances(x, y),
    "dot": _inner_products,
    "cos": lambda x, y: _inner_products(_unit(x), _unit(y)),
}

# A positive is a small difference of large squares, of which a product keeps few digits: it is computed directly.
_DISTANCES = ("l2", "l2_no_sqrt")
# Those whose table needs a (B, B, D) array.
TABLES_OF_DIFFERENCES = ENERGY_FNS.keys() - _PRODUCT_FORMS.keys()


def pairwise_energy(energy_fn: str, x: jax.Array, y: jax.Array) -> jax.Array:
    """(B, B) energies of every x_i (B, D) with every y_j (B, D)."""
    if x.ndim != 2 or x.shape != y.shape:
        raise ValueError(f"pairwise energies need two (B, D) arrays of one shape, got {x.shape} and {y.shape}")
    if energy_fn in _PRODUCT_FORMS:
        table = _PRODUCT_FORMS[energy_fn](x, y)
        if energy_fn not in _DISTANCES:
            return table
        return jnp.where(off_diagonal(table), table, ENERGY_FNS[energy_fn](x, y)[:, None])
    return ENERGY_FNS[energy_fn](x[:, None], y[None, :])


# Contrastive losses of (B, B) logits. `no_resubs` takes the positive out of every logsumexp.


def off_diagonal(logits: jax.Array) -> jax.Array:
    """(B, B) bool, true for the negatives."""
    if logits.ndim != 2 or logits.shape[0] != logits.shape[1] or logits.shape[0] < 2:
        raise ValueError(f"a contrastive loss needs square logits of at least 2 x 2, got {logits.shape}")
    return ~jnp.eye(logits.shape[0], dtype=bool)


def positives(logits: jax.Array) -> jax.Array:
    """(B,) the diagonal. A masked sum joins the other sums over rows and has a gradient without a scatter, unlike
    `jnp.diagonal`."""
    return jnp.sum(logits, axis=1, where=~off_diagonal(logits))


def row_logsumexp(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """(B,) logsumexp_j L_ij, over the negatives alone with `no_resubs`."""
    negative = off_diagonal(logits)
    return jax.nn.logsumexp(logits, axis=1, where=negative if no_resubs else None)


def infonce(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """mean_i [logsumexp_j L_ij - L_ii] (https://arxiv.org/abs/1807.03748)."""
    return jnp.mean(row_logsumexp(logits, no_resubs) - positives(logits))


def infonce_backward(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """InfoNCE over the columns."""
    # Not infonce(logits.T): the symmetric loss, and the metrics, then sum the same diagonal, and it is summed once.
    return jnp.mean(row_logsumexp(logits.T, no_resubs) - positives(logits))


def symmetric_infonce(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """InfoNCE over the rows plus over the columns."""
    return infonce(logits, no_resubs) + infonce_backward(logits, no_resubs)


def binary(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """Mean sigmoid cross-entropy of all B^2 entries against the identity (https://arxiv.org/abs/2206.07568)."""
    del no_resubs
    sign = jnp.where(off_diagonal(logits), -1.0, 1.0)
    return jnp.mean(jax.nn.softplus(-sign * logits))


def flatnce(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """mean_i exp(c_i - stop_gradient(c_i)), c_i = logsumexp_{j != i} (L_ij - L_ii) (https://arxiv.org/abs/2107.01152).

    Its value is always 1; only its gradient speaks. The positive is never in the sum.
    """
    del no_resubs
    c = row_logsumexp(logits, no_resubs=True) - positives(logits)
    return jnp.mean(jnp.exp(c - jax.lax.stop_gradient(c)))


def flatnce_backward(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """FlatNCE over the columns."""
    return flatnce(logits.T, no_resubs)


def fb(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """mean_i [-L_ii + 0.5 sum_{j != i} L_ij^2 / (B - 1)] (forward-backward, https://arxiv.org/abs/2103.07945)."""
    del no_resubs
    negatives = jnp.where(off_diagonal(logits), jnp.square(logits), 0.0)
    return jnp.mean(-positives(logits) + 0.5 * jnp.sum(negatives, axis=1) / (logits.shape[0] - 1))


def dpo(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """-mean_ij log sigmoid(L_ii - L_ij) (https://arxiv.org/abs/2305.18290)."""
    del no_resubs
    return jnp.mean(jax.nn.softplus(logits - positives(logits)[:, None]))


def ipo(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """mean_ij (L_ii - L_ij - 1)^2 (https://arxiv.org/abs/2310.12036)."""
    del no_resubs
    return jnp.mean(jnp.square(positives(logits)[:, None] - logits - 1.0))


def sppo(logits: jax.Array, no_resubs: bool = False) -> jax.Array:
    """mean_ij w_ij (L_ij - t_ij)^2, t = +1 and w = B on the diagonal, t = -1 and w = 1 off it
    (https://arxiv.org/abs/2405.00675)."""
    del no_resubs
    negative = off_diagonal(logits)
    target = jnp.where(negative, -1.0, 1.0)
    weight = jnp.where(negative, 1.0, float(logits.shape[0]))
    return jnp.mean(weight * jnp.square(logits - target))


CONTRASTIVE_LOSSES: dict[str, Callable[..., jax.Array]] = {
    "infonce": infonce,
    "infonce_backward": infonce_backward,
    "symmetric_infonce": symmetric_infonce,
    "binary": binary,
    "flatnce": flatnce,
    "flatnce_backward": flatnce_backward,
    "fb": fb,
    "dpo": dpo,
    "dp": dpo,  # as the published experiment loop calls it
    "ipo": ipo,
    "sppo": sppo,
}


def logit_metrics(logits: jax.Array) -> dict[str, jax.Array]:
    """What the dashboards show of (B, B) logits, as published (https://arxiv.org/abs/2408.11052): accuracies, means on
    and off the diagonal, and the two halves of `symmetric_infonce`.

    Each is (B,), one value per row, whose mean is the metric.
    """
    negative = off_diagonal(logits)
    rows, columns = row_logsumexp(logits), row_logsumexp(logits.T)
    positive, highest_negative = positives(logits), jnp.max(logits, axis=1, where=negative, initial=-jnp.inf)
    return {
        "binary_accuracy": jnp.mean((logits > 0) == ~negative, axis=1),
        # Not by an argmax, which took 4 % of an update on a CPU.
        "categorical_accuracy": (positive > highest_negative).astype(logits.dtype),
        "logits_pos": positive,
        "logits_neg": jnp.mean(logits, axis=1, where=negative),
        "logsumexp": jnp.square(rows),
        "l_align": -2 * positive,
        "l_unif": rows + columns,
    }


# Actor and temperature.


def actor_loss(alpha: jax.Array, log_prob: jax.Array, energy: jax.Array, disable_entropy: bool = False) -> jax.Array:
    """mean [alpha log pi - f] of (B,) log densities and energies; the first term can be switched off."""
    return jnp.mean(-energy if disable_entropy else alpha * log_prob - energy)


def temperature_loss(alpha: jax.Array, log_prob: jax.Array, target_entropy: float) -> jax.Array:
    """alpha mean(-log pi - target_entropy): alpha falls while the policy is too random, as in
    https://arxiv.org/abs/1812.05905."""
    return alpha * jnp.mean(jax.lax.stop_gradient(-log_prob - target_entropy))


EXPLORATION_SIGNS = {"l2": -1.0, "dot": 1.0}


def exploration_bonus(energy_fn: str, representation: jax.Array) -> jax.Array:
    """Mean norm of phi (B, D) with the sign that `exploration_coef` multiplies: minus for l2, plus for dot.

    Raises:
      ValueError: another energy, for which the norm of phi says nothing.
    """
    if energy_fn not in EXPLORATION_SIGNS:
        raise ValueError(f"exploration_coef needs energy_fn l2 or dot, not {energy_fn}")
    return EXPLORATION_SIGNS[energy_fn] * jnp.mean(_norm(representation))
