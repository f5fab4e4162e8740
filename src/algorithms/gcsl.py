"""Goal-conditioned supervised learning: the actor imitates its own actions, each on the way to a state it led to.

No critic and no reward; it explores by the spread of its own actions. Paper: https://arxiv.org/abs/1912.06088.
"""

import dataclasses
from functools import partial
from typing import Annotated, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import GoalEnv, Sizes
from src import agent, goals, replay_buffer
from src.agent import AgentState
from src.algorithm import Algorithm, OffPolicyConfig
from src.algorithms import crl
from src.densities import action_log_prob
from src.networks import Actor, joint_workspace, make_trunk
from utils import RATE, Choice, Range


@dataclasses.dataclass(frozen=True)
class GCSLConfig(OffPolicyConfig):
    """Trains a goal-reaching agent with goal-conditioned supervised learning."""

    algorithm: Annotated[str, Choice("algorithm")] = "gcsl"
    deterministic_eval: bool = True  # the spread of the actions that it imitates stays in its own
    policy_lr: Annotated[float, RATE] = 5e-4
    normalize_observations: bool = True
    goal_rule: Annotated[str, Choice("goal rule")] = "geometric"
    """Which later states of its trajectory an action is imitated for."""
    # Of states hundreds of steps ahead an action says nothing. The paper's rule, uniform on the rest of the trajectory,
    # is for its episodes of 50 steps; of 1,000 it learns little. These are 5 steps ahead on average.
    discounting: Annotated[float, Range(0, 1, open=True, example=0.8)] = 0.8


class Networks(NamedTuple):
    """The actor, and what it needs of the env."""

    actor: Actor
    state_dim: int
    goal_indices: tuple[int, ...]


def make(config: GCSLConfig, env: GoalEnv) -> Algorithm:
    """GCSL bound to one config and env. Its pairs of a row and a later goal are those of CRL."""
    networks = Networks(Actor(make_trunk(config, "actor"), env.action_size), env.state_dim, tuple(env.goal_indices))
    return Algorithm(
        init=partial(init, config, networks),
        init_memory=lambda shape: (),
        act=partial(agent.act, networks),
        keep=crl.keep,
        absorb=agent.absorb_states,
        index=replay_buffer.index_futures,
        draw=lambda agent_state, buffer_state, index, key: goals.draw_pairs(config, config.goal_rule, index, key),
        gather=partial(crl.gather, 1, networks.goal_indices),
        update=partial(update, config, networks),
        drawable=lambda index: index.rank[-1],
        actor=networks.actor,
    )


def rates(config: GCSLConfig) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr}


def init(config: GCSLConfig, networks: Networks, key: jax.Array) -> AgentState:
    """Fresh parameters, optimiser and normaliser."""
    inputs = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    params = {"actor": networks.actor.init(key, *inputs)}
    return agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)


def update(
    config: GCSLConfig, networks: Networks, agent_state: AgentState, batch: crl.Batch, key: jax.Array
) -> tuple[AgentState, dict[str, jax.Array]]:
    """One gradient step of the actor: up with the log density of the actions for the goals that were reached."""
    del key
    inputs = agent.normalize(agent_state.normalizer, networks.goal_indices, batch.state, batch.future_goal)

    def loss(params):
        mean, std = networks.actor.apply(params["actor"], *inputs)
        actor_loss = -jnp.mean(action_log_prob(batch.action, mean, std))
        return actor_loss, {"actor_loss": actor_loss, "policy_std": jnp.mean(std)}

    gradients, metrics = jax.grad(loss, has_aux=True)(agent_state.params)
    return agent.descend(agent_state, gradients, rates(config)), metrics


def workspace(config: GCSLConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs."""
    del sizes
    return joint_workspace(config, "actor")
