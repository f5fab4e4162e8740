"""Soft actor-critic on the environment's reward, with goals in hindsight if asked for (`--her_ratio`).

Critic: two Q(s, a, g) that bootstrap from their slow averages. Actor: tanh-Gaussian, trained to maximise the least of
them with an entropy bonus, whose weight is learned. Papers: https://arxiv.org/abs/1812.05905,
https://arxiv.org/abs/1707.01495.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import GoalEnv, Sizes
from src import agent, hindsight
from src.agent import TargetAgentState
from src.algorithm import Algorithm
from src.critics import Values, twin_values, value_loss, value_target
from src.hindsight import Batch, HindsightConfig
from src.networks import Actor, make_trunk
from utils import RATE, Choice


@dataclasses.dataclass(frozen=True)
class SACConfig(HindsightConfig):
    """Trains a goal-reaching agent with soft actor-critic; `--her_ratio 0.8` adds hindsight."""

    algorithm: Annotated[str, Choice("algorithm")] = "sac"
    policy_lr: Annotated[float, RATE] = 3e-4
    alpha_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for the entropy temperature."""


class Networks(NamedTuple):
    """Actor and critics, and what they need of the env."""

    actor: Actor
    values: Values
    state_dim: int
    action_size: int
    goal_indices: tuple[int, ...]


def make(config: SACConfig, env: GoalEnv) -> Algorithm:
    """SAC bound to one config and env."""
    networks = make_networks(config, env)
    return hindsight.learner(
        config,
        env,
        networks,
        init=partial(init, config, networks),
        act=partial(agent.act, networks),
        propose=partial(agent.propose, networks),
        update=partial(update, config, networks),
    )


def make_networks(config: SACConfig, env: GoalEnv) -> Networks:
    """The functions for one config and env, without parameters."""
    return Networks(
        actor=Actor(make_trunk(config, "actor"), env.action_size),
        values=twin_values(config, env.state_dim, env.action_size, env.goal_dim),
        state_dim=env.state_dim,
        action_size=env.action_size,
        goal_indices=tuple(env.goal_indices),
    )


def rates(config: SACConfig) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr, "critic": config.critic_lr, "log_alpha": config.alpha_lr}


def init(config: SACConfig, networks: Networks, key: jax.Array) -> TargetAgentState:
    """Fresh parameters, optimiser and normaliser; the targets are the parameters."""
    actor_key, critic_key = jax.random.split(key)
    state, goal = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    params = {
        "actor": networks.actor.init(actor_key, state, goal),
        "critic": networks.values.init(critic_key),
        "log_alpha": jnp.zeros(()),
    }
    fresh = agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)
    return agent.with_targets(fresh, ("critic",))


# Learning.


def target_of(
    config: SACConfig, networks: Networks, agent_state: TargetAgentState, batch: Batch, key: jax.Array
) -> jax.Array:
    """(B,) what the values of a batch should be: reward, then the soft value of the next state."""
    params, targets = agent_state.params, agent_state.targets
    action, log_prob = agent.sample(networks.actor, params["actor"], key, batch.next_state, batch.goal)
    values = networks.values.apply(targets["critic"], batch.next_state, batch.goal, action)
    next_value = jnp.min(values, axis=0) - jnp.exp(params["log_alpha"]) * log_prob
    return value_target(batch.reward, batch.terminated, config.discounting, next_value)


def policy_loss(
    networks: Networks, params: dict[str, Any], batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Actor plus temperature loss from one pass of the policy, the critics held fixed, and what to report."""
    critic = jax.lax.stop_gradient(params["critic"])

    def value(action: jax.Array) -> jax.Array:
        return jnp.min(networks.values.apply(critic, batch.state, batch.goal, action), axis=0)

    entropy = agent.target_entropy(networks.action_size)
    return agent.policy_loss(networks.actor, params, key, batch.state, batch.goal, value, entropy)


def update(
    config: SACConfig, networks: Networks, agent_state: TargetAgentState, batch: Batch, key: jax.Array
) -> tuple[TargetAgentState, dict[str, jax.Array]]:
    """One gradient step of critics, actor and temperature, all from the parameters before the step; then the targets
    follow."""
    batch = hindsight.normalize(agent_state.normalizer, networks.goal_indices, batch)
    target_key, policy_key = jax.random.split(key)
    target = target_of(config, networks, agent_state, batch, target_key)

    def total_loss(params):
        values = networks.values.apply(params["critic"], batch.state, batch.goal, batch.action)
        critic, critic_metrics = value_loss(values, target)
        policy, policy_metrics = policy_loss(networks, params, batch, policy_key)
        return critic + policy, critic_metrics | policy_metrics | {"batch_reward": batch.reward}

    gradients, metrics = jax.grad(total_loss, has_aux=True)(agent_state.params)
    agent_state = agent.descend(agent_state, gradients, rates(config))
    return agent.follow(agent_state, config.tau), agent.batch_means(metrics)


def workspace(config: SACConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs."""
    del sizes
    return 10 * config.batch_size * config.h_dim * config.n_hidden
