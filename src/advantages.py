"""How much better a step turned out than its value said (GAE, https://arxiv.org/abs/1506.02438)."""

import jax
import jax.numpy as jnp

from src.algorithm import Step


def gae(steps: Step, value: jax.Array, next_value: jax.Array, discounting: float, gae_lambda: float) -> jax.Array:
    """(T, N) generalised advantages of steps in order of time, from the values before and after each.

    A death ends what can be earned, a time limit does not; both cut the sum over later steps, as the last step does.
    Where the physics blew up nothing is known of the step: its advantage is 0, and the steps before it are worth the
    value they led to.
    """
    error = steps.reward + discounting * jnp.where(steps.terminated, 0.0, next_value) - value
    error = jnp.where(steps.blown_up, 0.0, error)
    kept = jnp.where(steps.terminated | steps.truncated | steps.blown_up, 0.0, discounting * gae_lambda)

    def back(later: jax.Array, step: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        error, kept = step
        advantage = error + kept * later
        return advantage, advantage

    return jax.lax.scan(back, jnp.zeros_like(error[0]), (error, kept), reverse=True)[1]
