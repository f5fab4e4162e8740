"""Log densities of actions tanh(z), z ~ N(mean, std). Paper: https://arxiv.org/abs/1812.05905, appendix C."""

import jax
import jax.numpy as jnp

# The largest action whose place before the tanh is still told apart from infinity.
_LARGEST_ACTION = 1 - 1e-6


def _log_densities(pre_tanh: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """(..., action_size) log density of each number of the action tanh(z), z ~ N(mean, std), at `pre_tanh` = z.

    Uses log(1 - tanh(z)^2) = 2 (log 2 - |z| - log(1 + exp(-2 |z|))), which stays finite where tanh saturates.
    """
    size = jnp.abs(pre_tanh)
    log_slope = 2 * (jnp.log(2.0) - size - jnp.log(1 + jnp.exp(-2 * size)))
    return jax.scipy.stats.norm.logpdf(pre_tanh, mean, std) - log_slope


def tanh_gaussian_log_prob(pre_tanh: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """(...) log density of the action tanh(z), z ~ N(mean, std), at `pre_tanh` = z (..., action_size)."""
    return jnp.sum(_log_densities(pre_tanh, mean, std), axis=-1)


def action_log_prob(action: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """(...) log density of a stored action (..., action_size).

    A number that was rounded to a bound, -1 or 1, tells only that z lay beyond: it counts with the probability of that.
    Its density there would move without limit with a mean far beyond the bound, and PPO's ratios with it.
    """
    pre_tanh = jnp.arctanh(jnp.clip(action, -_LARGEST_ACTION, _LARGEST_ACTION))
    beyond = jax.scipy.stats.norm.logcdf((jnp.sign(action) * mean - jnp.abs(pre_tanh)) / std)
    inside = _log_densities(pre_tanh, mean, std)
    return jnp.sum(jnp.where(jnp.abs(action) < _LARGEST_ACTION, inside, beyond), axis=-1)
