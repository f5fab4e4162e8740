"""Log densities of actions against integrals, the change of variables and probabilities."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.integrate
import scipy.stats

from src.densities import action_log_prob, tanh_gaussian_log_prob


@pytest.mark.parametrize(("mean", "std"), [(0.0, 1.0), (0.7, 0.3), (-1.0, 0.9)])
def test_the_density_over_actions_integrates_to_one(mean, std):
    def density(action):
        pre_tanh = jnp.full((1,), np.arctanh(action), jnp.float32)
        return float(jnp.exp(log_prob(pre_tanh)))

    log_prob = jax.jit(lambda z: tanh_gaussian_log_prob(z, jnp.full((1,), mean), jnp.full((1,), std)))
    total, _ = scipy.integrate.quad(density, -1 + 1e-6, 1 - 1e-6, limit=200, epsabs=1e-5)
    assert total == pytest.approx(1, abs=1e-3)


def test_the_log_density_is_the_change_of_variables():
    z, mean, log_std = np.random.default_rng(13).standard_normal((3, 7, 3))
    std = np.exp(log_std)
    expected = np.sum(scipy.stats.norm.logpdf(z, mean, std) - np.log(1 - np.tanh(z) ** 2), axis=-1)
    actual = tanh_gaussian_log_prob(*map(jnp.float32, (z, mean, std)))
    assert actual.shape == (7,)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("z", [-20.0, 20.0])
def test_the_log_density_stays_finite_where_tanh_saturates(z):
    """There 1 - tanh(z)^2 = 4 exp(-2 |z|), a number that float32's tanh rounds to 0."""
    at = jnp.full((1,), z)
    value, gradient = jax.value_and_grad(lambda m: tanh_gaussian_log_prob(at, m, jnp.ones(1)))(jnp.zeros(1))
    assert value == pytest.approx(scipy.stats.norm.logpdf(z) - math.log(4) + 2 * abs(z), rel=1e-6)
    assert gradient == pytest.approx(z, rel=1e-6)
    assert np.isfinite(jax.grad(lambda z: tanh_gaussian_log_prob(z, jnp.zeros(1), jnp.ones(1)))(at))


def test_a_stored_action_has_the_density_of_what_it_came_from():
    z, mean, std = jnp.array([[-2.0, 0.3, 4.0]]), jnp.array([0.5, 0.0, 1.0]), jnp.array([1.0, 0.2, 2.0])
    stored = action_log_prob(jnp.tanh(z), mean, std)
    np.testing.assert_allclose(stored, tanh_gaussian_log_prob(z, mean, std), rtol=1e-3)


@pytest.mark.parametrize("bound", [-1.0, 1.0])
@pytest.mark.parametrize("mean", [-3.0, 0.0, 8.0, 300.0])
def test_a_rounded_action_has_the_probability_of_all_that_is_rounded_to_it(bound, mean):
    edge = math.atanh(float(np.float32(1 - 1e-6)))
    expected = scipy.stats.norm.logsf(edge, loc=bound * mean, scale=2.0)
    actual = action_log_prob(jnp.array([bound]), jnp.array([mean]), jnp.array([2.0]))
    assert float(actual) == pytest.approx(expected, rel=1e-3, abs=1e-5)


def test_a_policy_beyond_the_bound_cannot_gain_by_going_further():
    """Nor does it become less probable: the ratio of two such policies is 1, and no gradient pushes."""
    action = jnp.ones(1)
    log_prob, gradient = jax.vmap(
        jax.value_and_grad(lambda mean: action_log_prob(action, mean[None], jnp.full(1, 0.1)))
    )(jnp.array([9.0, 20.0, 400.0]))
    np.testing.assert_allclose(log_prob, 0, atol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-6)
