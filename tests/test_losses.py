"""Energies and losses against slow loops written from their formulas, and against numbers worked by hand."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src import losses

BATCH, REPR = 5, 6


# Reference: the formulas, one pair at a time, in float64.


def _mrn_distance(x, y):
    half = len(x) // 2
    asymmetric = max(max(x[k] - y[k], 0.0) for k in range(half))
    return asymmetric + math.sqrt(sum((x[k] - y[k]) ** 2 for k in range(half, len(x))) + 1e-6)


def _length(x):
    return math.sqrt(sum(v * v for v in x))


SLOW_ENERGIES = {
    "l2": lambda x, y: -math.sqrt(sum((a - b) ** 2 for a, b in zip(x, y, strict=True))),
    "l2_no_sqrt": lambda x, y: -sum((a - b) ** 2 for a, b in zip(x, y, strict=True)),
    "l1": lambda x, y: -sum(abs(a - b) for a, b in zip(x, y, strict=True)),
    "dot": lambda x, y: sum(a * b for a, b in zip(x, y, strict=True)),
    "cos": lambda x, y: sum(a * b for a, b in zip(x, y, strict=True)) / (_length(x) * _length(y)),
    "mrn": lambda x, y: -_mrn_distance(x, y),
    "mrn_pot": lambda x, y: sum(y) / len(y) - _mrn_distance(x, y),
}


def _lse(values):
    top = max(values)
    return top + math.log(sum(math.exp(v - top) for v in values))


def _others(size, i, keep_positive):
    return [j for j in range(size) if keep_positive or j != i]


def _sigmoid(x):
    return 1 / (1 + math.exp(-x))


def _slow_infonce(L, _, no_resubs):
    n = len(L)
    return sum(_lse([L[i][j] for j in _others(n, i, not no_resubs)]) - L[i][i] for i in range(n)) / n


def _slow_binary(L, _, no_resubs):
    n = len(L)
    entries = [-math.log(_sigmoid(L[i][j] if i == j else -L[i][j])) for i in range(n) for j in range(n)]
    return sum(entries) / n**2


def _slow_flatnce(L, anchor, no_resubs):
    """`anchor` is what stop_gradient sees: the logits before finite differences move them."""
    n = len(L)

    def c(M, i):
        return _lse([M[i][j] - M[i][i] for j in range(n) if j != i])

    return sum(math.exp(c(L, i) - c(anchor, i)) for i in range(n)) / n


def _slow_fb(L, _, no_resubs):
    n = len(L)
    return sum(-L[i][i] + 0.5 * sum(L[i][j] ** 2 for j in range(n) if j != i) / (n - 1) for i in range(n)) / n


def _slow_dpo(L, _, no_resubs):
    n = len(L)
    return -sum(math.log(_sigmoid(L[i][i] - L[i][j])) for i in range(n) for j in range(n)) / n**2


def _slow_ipo(L, _, no_resubs):
    n = len(L)
    return sum((L[i][i] - L[i][j] - 1) ** 2 for i in range(n) for j in range(n)) / n**2


def _slow_sppo(L, _, no_resubs):
    n = len(L)
    terms = [n * (L[i][j] - 1) ** 2 if i == j else (L[i][j] + 1) ** 2 for i in range(n) for j in range(n)]
    return sum(terms) / n**2


def _over_columns(loss):
    return lambda L, anchor, no_resubs: loss(np.transpose(L), np.transpose(anchor), no_resubs)


SLOW_LOSSES = {
    "infonce": _slow_infonce,
    "infonce_backward": _over_columns(_slow_infonce),
    "symmetric_infonce": lambda *a: _slow_infonce(*a) + _over_columns(_slow_infonce)(*a),
    "binary": _slow_binary,
    "flatnce": _slow_flatnce,
    "flatnce_backward": _over_columns(_slow_flatnce),
    "fb": _slow_fb,
    "dpo": _slow_dpo,
    "dp": _slow_dpo,
    "ipo": _slow_ipo,
    "sppo": _slow_sppo,
}


def finite_differences(function, at, step=1e-6):
    """The gradient of a float64 function of an array."""
    gradient = np.zeros_like(at)
    for index in np.ndindex(*at.shape):
        moved = at.copy()
        moved[index] = at[index] + step
        above = function(moved)
        moved[index] = at[index] - step
        gradient[index] = (above - function(moved)) / (2 * step)
    return gradient


def normal(seed, *shape, scale=1.0):
    return scale * np.random.default_rng(seed).standard_normal(shape)


def float32(*arrays):
    return [jnp.asarray(array, jnp.float32) for array in arrays]


# Energies.


@pytest.mark.parametrize("name", losses.ENERGY_FNS)
def test_energies_match_the_formula(name):
    x, y = normal(0, BATCH, REPR), normal(1, BATCH, REPR)
    slow, energy = SLOW_ENERGIES[name], losses.ENERGY_FNS[name]
    expected = [slow(a, b) for a, b in zip(x, y, strict=True)]
    np.testing.assert_allclose(energy(*float32(x, y)), expected, rtol=1e-5, atol=1e-6)

    weights = normal(2, BATCH)  # not one sum, where errors of sign could cancel

    def total(x, y):
        return sum(w * slow(a, b) for w, a, b in zip(weights, x, y, strict=True))

    gradients = jax.grad(lambda x, y: jnp.sum(weights * energy(x, y)), argnums=(0, 1))(*float32(x, y))
    np.testing.assert_allclose(gradients[0], finite_differences(lambda v: total(v, y), x), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(gradients[1], finite_differences(lambda v: total(x, v), y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", losses.ENERGY_FNS)
def test_energies_broadcast_over_the_leading_axes(name):
    x, y = float32(normal(3, 3, 1, REPR), normal(4, 1, 2, REPR))
    energies = losses.ENERGY_FNS[name](x, y)
    assert energies.shape == (3, 2)
    for i in range(3):
        for j in range(2):
            assert energies[i, j] == pytest.approx(float(losses.ENERGY_FNS[name](x[i, 0], y[0, j])), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "x", "y", "expected"),
    [
        ("l2", [3, 4], [0, 0], -5),
        ("l2_no_sqrt", [1, 2], [3, -1], -13),
        ("l1", [1, 2], [3, -1], -5),
        ("dot", [1, 2], [3, -1], 1),
        ("cos", [2, 0], [3, 3], math.sqrt(0.5)),
        ("cos", [0, 0], [3, 3], 0),
        ("mrn", [5, 1, 0, 3], [2, 7, 4, 0], -(3 + math.sqrt(25 + 1e-6))),  # relu(5 - 2, 1 - 7), |(0 - 4, 3 - 0)|
        ("mrn", [2, 7, 4, 0], [5, 1, 0, 3], -(6 + math.sqrt(25 + 1e-6))),  # the other way is farther: a quasimetric
        ("mrn_pot", [5, 1, 0, 3], [2, 7, 4, 0], 13 / 4 - (3 + math.sqrt(25 + 1e-6))),
    ],
)
def test_energies_by_hand(name, x, y, expected):
    assert losses.ENERGY_FNS[name](*float32(x, y)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("name", losses.ENERGY_FNS)
@pytest.mark.parametrize("at", ["equal", "zero", "one_zero", "tiny"])
def test_energies_and_gradients_are_finite_where_they_are_not_smooth(name, at):
    x = normal(5, BATCH, REPR)
    x, y = {
        "equal": (x, x),
        "zero": (0 * x, 0 * x),
        "one_zero": (x, 0 * x),
        "tiny": (1e-30 * x, -1e-30 * x),
    }[at]
    x, y = float32(x, y)
    forms = [
        losses.ENERGY_FNS[name],
        lambda x, y: losses.pairwise_energy(name, x, y),
    ]
    for form in forms:
        assert np.all(np.isfinite(form(x, y)))
        for gradient in jax.grad(lambda x, y, form=form: jnp.sum(form(x, y)), argnums=(0, 1))(x, y):
            assert np.all(np.isfinite(gradient))


def test_l2_pulls_nowhere_where_the_representations_are_equal():
    x = jnp.ones((1, 4))
    assert losses.l2(x, x) == 0
    assert not np.any(jax.grad(lambda x: jnp.sum(losses.l2(x, jnp.ones((1, 4)))))(x))


@pytest.mark.parametrize("name", ["mrn", "mrn_pot"])
def test_mrn_refuses_odd_sizes(name):
    with pytest.raises(ValueError, match="size 3 is odd"):
        losses.ENERGY_FNS[name](jnp.zeros((2, 3)), jnp.zeros((2, 3)))


def _representations(kind):
    x, y = normal(6, 16, 64), normal(7, 16, 64)
    return {
        "random": (x, y),
        "nearly_equal": (x, x + 1e-4 * y),
        "large": (1e3 * x, 1e3 * y),
        "large_and_close": (1e3 + x, 1e3 + y),
    }[kind]


@pytest.mark.parametrize("name", losses.ENERGY_FNS)
@pytest.mark.parametrize("kind", ["random", "nearly_equal", "large", "large_and_close"])
def test_pairwise_energy_is_the_energy_of_every_pair(name, kind):
    """Values and gradients of the matrix-product forms against the difference of every pair, in float64."""
    x, y = _representations(kind)
    direct = np.array([[SLOW_ENERGIES[name](a, b) for b in y] for a in x])
    # A product form subtracts squares: what is left of float32 there, or of its root, bounds the error.
    scale = float(np.max(np.sum(x**2, -1)))
    rounding = 8 * np.finfo(np.float32).eps * scale
    absolute = {"l2": np.sqrt(rounding) if kind != "random" else 1e-5, "l2_no_sqrt": rounding, "dot": rounding}
    pairwise = losses.pairwise_energy(name, *float32(x, y))
    assert pairwise.shape == (16, 16)
    np.testing.assert_allclose(pairwise, direct, rtol=1e-5, atol=absolute.get(name, 1e-5))


@pytest.mark.parametrize("name", losses._PRODUCT_FORMS)
@pytest.mark.parametrize("kind", ["random", "nearly_equal", "large"])
def test_gradients_of_the_product_forms(name, kind):
    """Away from the pairs that are equal up to rounding, the product form has the direct form's gradient."""
    x, y = float32(*_representations(kind))
    weights = jnp.asarray(normal(8, 16, 16), jnp.float32)
    if kind == "nearly_equal":
        weights *= ~np.eye(16, dtype=bool)

    def total(form):
        return jax.grad(lambda x, y: jnp.sum(weights * form(x, y)), argnums=(0, 1))(x, y)

    direct = total(lambda x, y: losses.ENERGY_FNS[name](x[:, None], y[None, :]))
    for one, other in zip(total(lambda x, y: losses.pairwise_energy(name, x, y)), direct, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5 * float(jnp.max(jnp.abs(other))))


def test_the_l2_gradient_of_a_nearly_equal_pair_stays_bounded():
    """Rounding decides its length there, but it can never throw a step: a distance's gradient has length 1."""
    x, y = float32(*_representations("nearly_equal"))
    gradient = jax.grad(lambda x: jnp.sum(jnp.diagonal(losses.pairwise_energy("l2", x, y))))(x)
    assert np.all(np.linalg.norm(gradient, axis=-1) < 5)


@pytest.mark.parametrize("name", ["l2", "l2_no_sqrt"])
@pytest.mark.parametrize("norm", [10.0, 100.0, 1000.0])
def test_positives_keep_their_digits_at_large_norms(name, norm):
    """Positives a hundredth apart, all of them far from each other and from the origin."""
    random = np.random.default_rng(3)
    x = norm * random.standard_normal((64, 16))
    y = x + 0.01 * random.standard_normal((64, 16))
    x, y = (np.asarray(each, np.float32) for each in (x, y))
    distances = np.linalg.norm(x.astype(np.float64) - y, axis=-1)
    expected = -distances if name == "l2" else -(distances**2)
    np.testing.assert_allclose(np.diagonal(losses.pairwise_energy(name, x, y)), expected, rtol=1e-5)


@pytest.mark.parametrize(("x", "y"), [((4, 3), (5, 3)), ((4,), (4,)), ((2, 4, 3), (2, 4, 3))])
def test_pairwise_energy_refuses_other_shapes(x, y):
    with pytest.raises(ValueError, match="two \\(B, D\\) arrays"):
        losses.pairwise_energy("l2", jnp.zeros(x), jnp.zeros(y))


# Contrastive losses.


@pytest.mark.parametrize("no_resubs", [False, True])
@pytest.mark.parametrize("name", losses.CONTRASTIVE_LOSSES)
def test_losses_match_the_formula(name, no_resubs):
    logits = normal(10, BATCH, BATCH, scale=2.0)
    slow = SLOW_LOSSES[name]
    loss, gradient = jax.value_and_grad(losses.CONTRASTIVE_LOSSES[name])(float32(logits)[0], no_resubs=no_resubs)
    assert loss == pytest.approx(slow(logits, logits, no_resubs), rel=1e-5)
    expected = finite_differences(lambda moved: slow(moved, logits, no_resubs), logits)
    np.testing.assert_allclose(gradient, expected, rtol=1e-4, atol=1e-5)
    assert np.any(np.abs(expected) > 0.01)


LOG2, LOG3 = math.log(2), math.log(3)
# exp of these logits is [[4, 1], [2, 3]].
HAND = [[2 * LOG2, 0.0], [LOG2, LOG3]]


@pytest.mark.parametrize(
    ("name", "logits", "expected"),
    [
        ("infonce", HAND, (math.log(5 / 4) + math.log(5 / 3)) / 2),
        ("infonce_backward", HAND, (math.log(6 / 4) + math.log(4 / 3)) / 2),
        ("symmetric_infonce", HAND, (math.log(5 / 4) + math.log(5 / 3) + math.log(6 / 4) + math.log(4 / 3)) / 2),
        # sigmoids: 4/5 and 3/4 of the positives, 1 - 1/2 and 1 - 2/3 of the negatives.
        ("binary", HAND, -(math.log(4 / 5) + math.log(3 / 4) + math.log(1 / 2) + math.log(1 / 3)) / 4),
        ("flatnce", HAND, 1.0),
        ("flatnce_backward", HAND, 1.0),
        ("fb", [[2, 1], [4, 3]], ((-2 + 0.5 * 1) + (-3 + 0.5 * 16)) / 2),
        ("dpo", HAND, -(math.log(1 / 2) + math.log(4 / 5) + math.log(3 / 5) + math.log(1 / 2)) / 4),
        ("dp", HAND, -(math.log(1 / 2) + math.log(4 / 5) + math.log(3 / 5) + math.log(1 / 2)) / 4),
        ("ipo", [[2, 1], [4, 3]], (1 + 0 + 4 + 1) / 4),
        ("sppo", [[2, 1], [4, 3]], (2 * 1 + 4 + 25 + 2 * 4) / 4),
    ],
)
def test_losses_by_hand(name, logits, expected):
    assert losses.CONTRASTIVE_LOSSES[name](jnp.array(logits)) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        # exp = [[4, 1, 1], [2, 3, 6], [5, 5, 1]]; the negatives' shares of each row (column), the positive at -1.
        ("flatnce", [[-1, 1 / 2, 1 / 2], [1 / 4, -1, 3 / 4], [1 / 2, 1 / 2, -1]]),
        ("flatnce_backward", [[-1, 1 / 6, 1 / 7], [2 / 7, -1, 6 / 7], [5 / 7, 5 / 6, -1]]),
    ],
)
def test_flatnce_gradient_by_hand(name, expected):
    logits = jnp.log(jnp.array([[4.0, 1, 1], [2, 3, 6], [5, 5, 1]]))
    gradient = jax.grad(losses.CONTRASTIVE_LOSSES[name])(logits)
    np.testing.assert_allclose(gradient, np.array(expected) / 3, rtol=1e-5)


def test_no_resubs_by_hand():
    logits = jnp.array(HAND)
    assert losses.infonce(logits, no_resubs=True) == pytest.approx((0 - 2 * LOG2 + LOG2 - LOG3) / 2, rel=1e-5)
    np.testing.assert_allclose(losses.row_logsumexp(logits, no_resubs=True), [0, LOG2], atol=1e-6)
    np.testing.assert_allclose(losses.row_logsumexp(logits), [math.log(5), math.log(5)], rtol=1e-6)


@pytest.mark.parametrize("name", losses.CONTRASTIVE_LOSSES)
def test_losses_stay_finite_on_large_logits(name):
    logits = jnp.array([[-3e3, 0.0, 1e3], [2e3, 1e3, -1e3], [0.0, 5e2, -2e3]])
    loss, gradient = jax.value_and_grad(losses.CONTRASTIVE_LOSSES[name])(logits)
    assert np.isfinite(loss)
    assert np.all(np.isfinite(gradient))


@pytest.mark.parametrize("name", losses.CONTRASTIVE_LOSSES)
@pytest.mark.parametrize("shape", [(2, 3), (1, 1), (4,), (2, 2, 2)])
def test_losses_refuse_other_shapes(name, shape):
    with pytest.raises(ValueError, match="square logits of at least 2 x 2"):
        losses.CONTRASTIVE_LOSSES[name](jnp.zeros(shape))


@pytest.mark.parametrize("name", losses.ENERGY_FNS)
@pytest.mark.parametrize("loss", losses.CONTRASTIVE_LOSSES)
def test_every_loss_of_every_energy_learns_from_its_negatives(loss, name):
    """A value and a gradient for both representations that are finite, and not zero."""
    x, y = float32(normal(11, BATCH, REPR), normal(12, BATCH, REPR))

    def total(x, y):
        return losses.CONTRASTIVE_LOSSES[loss](losses.pairwise_energy(name, x, y))

    for gradient in jax.grad(total, argnums=(0, 1))(x, y):
        assert np.all(np.isfinite(gradient))
        assert np.any(np.abs(gradient) > 1e-4)


def test_logit_metrics_by_hand():
    metrics = losses.logit_metrics(jnp.log(jnp.array([[4.0, 2, 2], [6, 3, 0.5], [1, 1, 0.5]])))
    positives = (math.log(4) + math.log(3) + math.log(0.5)) / 3
    rows = (math.log(8) + math.log(9.5) + math.log(2.5)) / 3
    squares = (math.log(8) ** 2 + math.log(9.5) ** 2 + math.log(2.5) ** 2) / 3
    columns = (math.log(11) + math.log(6) + math.log(3)) / 3
    expected = {
        "binary_accuracy": 5 / 9,  # positives 4, 3 and negatives 0.5, 1, 1 lie on the right side of log 1 = 0
        "categorical_accuracy": 1 / 3,  # the first row alone has its largest logit on the diagonal
        "logits_pos": positives,
        "logits_neg": (2 * math.log(2) + math.log(6) + math.log(0.5)) / 6,
        "logsumexp": squares,
        "l_align": -2 * positives,
        "l_unif": rows + columns,
    }
    means = {name: np.mean(by_row) for name, by_row in metrics.items()}
    assert means == {name: pytest.approx(value, rel=1e-5) for name, value in expected.items()}


# Actor and temperature.


def test_actor_loss_by_hand():
    log_prob, energy = jnp.array([1.0, -2.0, 4.0]), jnp.array([-1.0, 0.5, -3.5])
    assert losses.actor_loss(0.5, log_prob, energy) == pytest.approx((1.5 - 1.5 + 5.5) / 3)
    assert losses.actor_loss(0.5, log_prob, energy, disable_entropy=True) == pytest.approx(4 / 3)


@pytest.mark.parametrize(("log_prob", "sign"), [(2.0, -1), (-5.0, 1)])
def test_the_temperature_follows_the_entropy(log_prob, sign):
    """Entropy -2 is below the target -1, so alpha has to rise: a negative gradient; entropy 5 is above it."""
    log_probs = jnp.array([log_prob - 1, log_prob + 1])
    value, (by_alpha, by_log_prob) = jax.value_and_grad(losses.temperature_loss, argnums=(0, 1))(3.0, log_probs, -1.0)
    assert by_alpha == pytest.approx(-log_prob + 1)
    assert np.sign(by_alpha) == sign
    assert value == pytest.approx(3 * (-log_prob + 1))
    assert not np.any(by_log_prob)  # the temperature teaches the actor nothing


@pytest.mark.parametrize(("name", "sign"), [("l2", -1), ("dot", 1)])
def test_exploration_bonus_sign(name, sign):
    representation = jnp.array([[3.0, 4.0], [0.0, 0.0], [0.0, -1.0]])
    value, gradient = jax.value_and_grad(lambda r: losses.exploration_bonus(name, r))(representation)
    assert value == pytest.approx(sign * (5 + 0 + 1) / 3)
    np.testing.assert_allclose(gradient, sign * np.array([[0.6, 0.8], [0, 0], [0, -1]]) / 3, rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(losses.ENERGY_FNS) - set(losses.EXPLORATION_SIGNS)))
def test_exploration_needs_an_energy_for_which_norms_mean_something(name):
    with pytest.raises(ValueError, match=f"l2 or dot, not {name}"):
        losses.exploration_bonus(name, jnp.ones((2, 2)))
