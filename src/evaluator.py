"""Evaluation: one jitted roll-out over a frozen set of starts and goals, reduced on the device."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import EnvState
from envs.wrappers import VectorEnv
from src.algorithm import Policy

# Not the training seed on purpose: every evaluation, checkpoint and seed is asked the same questions.
EVAL_GOALS_SEED = 20_240_820


class Episodes(NamedTuple):
    """What N whole episodes came to.

    Attributes:
      goal, last_goal: (N, goal_dim) commanded when they began and ended; one, unless it follows something.
      start, last: (N, state_dim) the states in which they began and ended; where the physics blew up, the last before.
      totals: name -> (N,) sum over the episode of each metric the env reports, and of `reward`.
      length: (N,) env steps until the end.
    """

    goal: jax.Array
    last_goal: jax.Array
    start: jax.Array
    last: jax.Array
    totals: dict[str, jax.Array]
    length: jax.Array


def evaluate(env: VectorEnv, policy: Policy, num_eval_envs: int, key: jax.Array) -> dict[str, jax.Array]:
    """Runs `num_eval_envs` episodes of the policy and sums each metric the env reports over each.

    Returns the mean over episodes of every sum as `episode_NAME` with `_std`, `_min`, `_max`; `episode_success_any`,
    the share of episodes with at least one success; and `avg_episode_length` in env steps.
    """
    episodes, _ = run_episodes(env, policy, num_eval_envs, key)
    return _summary(episodes.totals, episodes.length)


def run_episodes(
    env: VectorEnv,
    policy: Policy,
    num_episodes: int,
    key: jax.Array,
    keep: Callable[[EnvState], Any] = lambda env_state: None,
) -> tuple[Episodes, Any]:
    """Runs `num_episodes` episodes on the frozen starts and goals, start to end, without restarts.

    Returns them and `keep(env_state)` after every action, stacked (actions, N, ...); what an env does after its episode
    has ended, a later row of `keep` included, means nothing.
    """
    first = env.reset(jax.random.key(EVAL_GOALS_SEED), num_episodes)
    totals = jax.tree.map(jnp.zeros_like, {"reward": first.reward, **first.metrics})
    start = {
        "memory": policy.init_memory((num_episodes,)),
        "running": jnp.ones(num_episodes),
        "length": jnp.zeros(num_episodes),
        "last_goal": first.goal,
        "last": first.state,
        "totals": totals,
    }

    def step(carry: tuple[EnvState, dict], step_key: jax.Array):
        env_state, episode = carry
        running = episode["running"]
        action, memory = policy.act(episode["memory"], env_state.obs, step_key)
        env_state = env.step(env_state, action)
        reached = (running > 0) & ~env.nonfinite(env_state)
        values = {"reward": env_state.reward, **env_state.metrics}
        episode = {
            "memory": memory,
            "running": running * (1.0 - env_state.done),
            "length": jnp.where(running > 0, env_state.steps, episode["length"]),
            "last_goal": jnp.where(reached[:, None], env_state.goal, episode["last_goal"]),
            "last": jnp.where(reached[:, None], env_state.state, episode["last"]),
            # `where`, not a product: an ended episode may run into non-finite numbers that must not count.
            "totals": jax.tree.map(lambda t, v: t + jnp.where(running > 0, v, 0.0), episode["totals"], values),
        }
        return (env_state, episode), keep(env_state)

    num_actions = -(-env.episode_length // env.action_repeat)
    (_, episode), kept = jax.lax.scan(step, (first, start), jax.random.split(key, num_actions))
    ends = {name: episode[name] for name in ("last_goal", "last", "totals", "length")}
    return Episodes(goal=first.goal, start=first.state, **ends), kept


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
