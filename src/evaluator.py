"""Evaluation: one jitted roll-out over a frozen set of starts and goals, reduced on the device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp

from envs.base import EnvState
from envs.wrappers import VectorEnv

# Not the training seed on purpose: every evaluation, checkpoint and seed is asked the same questions.
EVAL_GOALS_SEED = 20_240_820


def evaluate(
    env: VectorEnv, policy: Callable[[jax.Array, jax.Array], jax.Array], num_eval_envs: int, key: jax.Array
) -> dict[str, jax.Array]:
    """Runs `num_eval_envs` episodes of `policy(obs, key) -> action` and sums each metric the env reports over each.

    Returns the mean over episodes of every sum as `episode_NAME` with `_std`, `_min`, `_max`; `episode_success_any`,
    the share of episodes with at least one success; and `avg_episode_length` in env steps.
    """
    first = env.reset(jax.random.key(EVAL_GOALS_SEED), num_eval_envs)
    totals = jax.tree.map(jnp.zeros_like, {"reward": first.reward, **first.metrics})
    start = {"running": jnp.ones(num_eval_envs), "length": jnp.zeros(num_eval_envs), "totals": totals}

    def step(carry: tuple[EnvState, dict], step_key: jax.Array):
        env_state, episode = carry
        running = episode["running"]
        env_state = env.step(env_state, policy(env_state.obs, step_key))
        values = {"reward": env_state.reward, **env_state.metrics}
        episode = {
            "running": running * (1.0 - env_state.done),
            "length": jnp.where(running > 0, env_state.steps, episode["length"]),
            # `where`, not a product: an ended episode may run into non-finite numbers that must not count.
            "totals": jax.tree.map(lambda t, v: t + jnp.where(running > 0, v, 0.0), episode["totals"], values),
        }
        return (env_state, episode), None

    num_steps = -(-env.episode_length // env.action_repeat)
    (_, episode), _ = jax.lax.scan(step, (first, start), jax.random.split(key, num_steps))
    return _summary(episode["totals"], episode["length"])


def _summary(totals: dict[str, jax.Array], length: jax.Array) -> dict[str, jax.Array]:
    summary = {"avg_episode_length": jnp.mean(length)}
    for name, total in totals.items():
        summary |= {
            f"episode_{name}": jnp.mean(total),
            f"episode_{name}_std": jnp.std(total),
            f"episode_{name}_min": jnp.min(total),
            f"episode_{name}_max": jnp.max(total),
        }
    if "success" in totals:
        summary["episode_success_any"] = jnp.mean(totals["success"] > 0)
    return summary
