"""Hazards against enumerations: every step on its own, in plain loops and float64."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src import hazards
from src.hazards import Bins

random = np.random.default_rng(0)
EXACT, BINNED = hazards.hazard_bins(4, 0), Bins(np.array([0, 1, 3]), np.array([1, 2, 2]))
BOTH = pytest.mark.parametrize("bins", [EXACT, BINNED], ids=["exact", "bins"])


def of_steps(bins, logits):
    """The hazard of every step."""
    return 1 / (1 + np.exp(-np.repeat(np.asarray(logits, np.float64), bins.length)))


def chance_of(hazard, first_hit, known):
    """The probability of what was seen, by one step after the other."""
    if first_hit < 0:
        return math.prod(1 - hazard[k] for k in range(known + 1))
    return math.prod(1 - hazard[k] for k in range(first_hit)) * hazard[first_hit]


def test_the_bins_of_the_paper():
    bins = hazards.hazard_bins(1000, 48)
    assert len(bins.first) == 1 + 41
    assert bins.first[:11].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11] and bins.first[-1] == 867
    ahead = hazards.occupancy_bins(1000)
    assert ahead.first[:8].tolist() == [0, 1, 2, 3, 4, 5, 6, 7] and ahead.first[-1] == 806


@pytest.mark.parametrize("window", [2, 3, 4, 5, 7, 62, 999, 1000])
def test_bins_hold_every_step_once(window):
    for number in (0, 1, 8, 48):
        first, length = hazards.hazard_bins(window, number)
        held = [step for start, count in zip(first, length, strict=True) for step in range(start, start + count)]
        assert held == list(range(window + 1))
    first, length = hazards.occupancy_bins(window)
    held = [step for start, count in zip(first, length, strict=True) for step in range(start, start + count)]
    assert held == list(range(window))
    assert hazards.hazard_bins(window, 0).length.tolist() == [1] * (window + 1)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 41, 42, 100, 1001])
def test_sums_before(size):
    x = random.standard_normal((3, size))
    expected = np.cumsum(x, axis=-1) - x
    np.testing.assert_allclose(hazards.sums_before(jnp.asarray(x, jnp.float32)), expected, rtol=1e-4, atol=1e-4)


@BOTH
def test_the_likelihood_is_that_of_an_enumeration(bins):
    """Of each first hit, at step 0 to 4, and of each end of what is known, -1 to 4 and beyond."""
    seen = [(hit, -1) for hit in range(5)] + [(-1, known) for known in (-1, 0, 1, 2, 3, 4)]
    logits = random.standard_normal((len(seen), len(bins.first))) * 2
    first_hit, known = jnp.asarray(seen).T
    result = hazards.log_likelihood(bins, jnp.asarray(logits, jnp.float32), first_hit, known)
    expected = [math.log(chance_of(of_steps(bins, row), *pair)) for row, pair in zip(logits, seen, strict=True)]
    np.testing.assert_allclose(result, expected, rtol=1e-5, atol=1e-6)
    beyond = hazards.log_likelihood(bins, jnp.asarray(logits[:1], jnp.float32), jnp.array([-1]), jnp.array([99]))
    assert beyond[0] == pytest.approx(math.log(chance_of(of_steps(bins, logits[0]), -1, 4)), rel=1e-5)


@BOTH
def test_the_chances_of_all_that_can_happen_make_one(bins):
    logits = jnp.asarray(random.standard_normal((1, len(bins.first))), jnp.float32)
    seen = [(hit, -1) for hit in range(5)] + [(-1, 4)]
    first_hit, known = jnp.asarray(seen).T
    chances = jnp.exp(hazards.log_likelihood(bins, jnp.tile(logits, (6, 1)), first_hit, known))
    assert jnp.sum(chances) == pytest.approx(1, rel=1e-5)


def test_the_likelihood_stays_finite_where_hazards_are_extreme():
    logits = jnp.array([[200.0, -200, 200, -200, 200], [-200, 200, -200, 200, -200]])
    for pair in itertools.product(range(-1, 5), repeat=2):
        first_hit, known = (jnp.full(2, each) for each in pair)
        likelihood = functools.partial(hazards.log_likelihood, EXACT, first_hit=first_hit, known=known)
        value, pull = jax.vjp(likelihood, logits)
        (gradient,) = pull(jnp.ones(2))
        assert np.all(np.isfinite(value)) and np.all(np.isfinite(gradient))


def test_a_likelihood_of_other_bins_is_refused():
    with pytest.raises(ValueError, match="5 bins of .* need as many logits"):
        hazards.log_likelihood(EXACT, jnp.zeros((2, 4)), jnp.zeros(2, int), jnp.zeros(2, int))


def value_of(bins, logits, discounting):
    hazard, total, missed = of_steps(bins, logits), 0.0, 1.0
    for k in range(len(hazard) - 1):
        missed *= 1 - hazard[k]
        total -= discounting**k * missed
    return total


@pytest.mark.parametrize("bins", [EXACT, BINNED, hazards.hazard_bins(1000, 48), hazards.hazard_bins(200, 0)])
@pytest.mark.parametrize("discounting", [0.9, 0.999])
def test_the_value_is_minus_the_time_until_arrival(bins, discounting):
    for shift in (-8, -4, 0):
        logits = random.standard_normal(len(bins.first)) + shift
        result = hazards.arrival_value(bins, jnp.asarray(logits, jnp.float32), discounting)
        assert result == pytest.approx(value_of(bins, logits, discounting), rel=2e-4)


@pytest.mark.parametrize("bins", [EXACT, BINNED, hazards.hazard_bins(1000, 48)])
def test_the_value_grows_with_every_hazard(bins):
    """That of step W alone comes too late to count."""
    logits = jnp.asarray(random.standard_normal((20, len(bins.first))) - 4, jnp.float32)
    gradient = np.asarray(jax.grad(lambda x: jnp.sum(hazards.arrival_value(bins, x, 0.999)))(logits))
    counts = bins.first < bins.first[-1] + bins.length[-1] - 1
    assert np.all(gradient[:, counts] > 0)
    np.testing.assert_array_equal(gradient[:, ~counts], 0)


def test_the_value_of_certainties():
    """There already; reached by nobody."""
    there, never = jnp.full(5, 90.0), jnp.full(5, -90.0)
    assert hazards.arrival_value(EXACT, there, 0.9) == pytest.approx(0, abs=1e-6)
    assert hazards.arrival_value(EXACT, never, 0.9) == pytest.approx(-(1 + 0.9 + 0.81 + 0.729), rel=1e-5)


# What chrono adds.


def test_distances_keep_time():
    """Only where the goal was reached, and later than now; linear beyond 1."""
    first_hit, distance = jnp.array([-1, 0, 5, 20]), jnp.array([9.0, 9, 0.8, 4.0])
    assert hazards.time_loss(distance, first_hit, 0.1) == pytest.approx((0.5 * 0.3**2 + (2.0 - 0.5)) / 2)
    assert hazards.time_loss(distance[:2], first_hit[:2], 0.1) == 0


def test_goals_that_are_apart_or_were_missed_are_kept_away():
    distances = jnp.array([[0.1, 0.2, 5], [0.4, 0.5, 0.6], [0.7, 0.8, 0.9]])
    apart = jnp.array([[False, True, True], [True, True, False], [False, False, True]])
    missed = jnp.array([False, True, False])
    expected = np.mean([0.8, 0, 0.6, 0.5])  # (0, 1), (0, 2), (1, 0) and the diagonal's (1, 1)
    assert hazards.separation_loss(distances, apart, missed, 1.0) == pytest.approx(expected)
    assert hazards.separation_loss(distances, jnp.zeros_like(apart), jnp.zeros(3, bool), 1.0) == 0


BINS = Bins(np.array([0, 1, 2, 4]), np.array([1, 1, 2, 4]))


def test_occupancy_is_the_share_of_the_known_steps_near_the_goal():
    """Against loops: rows that end in the middle of a bin, at its border, that go on, that die."""
    distance = random.uniform(0, 1.2, (40, 8))
    last, died = random.integers(0, 12, 40), random.random(40) < 0.5
    died &= last < 7
    share, known = hazards.occupancy(BINS, jnp.asarray(distance), 1.0, jnp.asarray(last), jnp.asarray(died))
    for row in range(40):
        for bin, (first, length) in enumerate(zip(*BINS, strict=True)):
            near = []
            for k in range(first, first + length):
                if k <= last[row]:
                    near.append(sum(distance[row, k] <= radius for radius in (1, 0.5, 0.25)) / 3)
                elif died[row]:
                    near.append(0)
            assert known[row, bin] == bool(near)
            if near:
                assert share[row, bin] == pytest.approx(np.mean(near), abs=1e-6)


def test_unknown_bins_teach_nothing():
    logits = jnp.asarray(random.standard_normal((2, 4)), jnp.float32)
    target = hazards.Occupancy(jnp.full((2, 4), 0.25), jnp.array([[True, True, False, False], [True] + [False] * 3]))
    gradient = np.asarray(jax.grad(hazards.occupancy_loss)(logits, target))
    np.testing.assert_array_equal(gradient[np.asarray(~target.known)], 0)
    chance = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    np.testing.assert_allclose(gradient, np.where(target.known, (chance - 0.25) / 3, 0), rtol=1e-4, atol=1e-6)


def test_the_value_of_time_near_the_goal_leaves_now_out():
    logits = random.standard_normal(4)
    chance = np.repeat(1 / (1 + np.exp(-logits)), BINS.length)
    expected = sum(0.9**k * chance[k] for k in range(1, 8))
    assert hazards.occupancy_value(BINS, jnp.asarray(logits, jnp.float32), 0.9) == pytest.approx(expected, rel=1e-5)
