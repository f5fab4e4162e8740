"""Survival RL: the critic knows when the goal is reached, as hazards of the time ahead, learned from first hits.

Critic: from phi(s, a) and psi(g), the chance at each later step that the goal is reached there for the first time;
trajectories that end before are censored. Actor: tanh-Gaussian, trained to minimise the discounted time until arrival,
with an entropy bonus. Paper: https://arxiv.org/abs/2605.31273.
"""

import dataclasses
import math
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp

from envs.base import GoalEnv, Sizes
from src import agent, first_hits, goals, hazards, planning
from src.agent import AgentState
from src.algorithm import Algorithm
from src.first_hits import Batch, Outlook
from src.hazards import Bins
from src.networks import Actor, Encoder, HazardHead, make_trunk, trunk_workspace
from src.planning import PlanningConfig
from utils import RATE, Choice, Range


@dataclasses.dataclass(frozen=True)
class SRLConfig(PlanningConfig):
    """Trains a goal-reaching agent with survival RL: a critic of the time until the goal is reached."""

    algorithm: Annotated[str, Choice("algorithm")] = "srl"
    deterministic_eval: bool = True
    policy_lr: Annotated[float, RATE] = 3e-4
    discounting: Annotated[float, Range(0, 1, open=True, example=0.99)] = 0.999
    network: Annotated[str, Choice("network")] = "by_depth"
    use_ln: bool = True
    own_goals: Annotated[float, Range(0, 1)] = 0.05
    other_goals: Annotated[float, Range(0, 1)] = 0.1
    time_discounting: Annotated[float, Range(0, 1, open=True, example=0.999)] = 0.999
    """Discount per action in the time until the goal is reached; inside (0, 1)."""
    hazard_bins: Annotated[int, Range(0, 1000)] = 48
    """Edges of the bins of time that share a hazard, their lengths growing geometrically; 0 makes each step a bin."""

    def window(self) -> int:
        """W, the last step that counts: the actions of an episode, or what the replay holds."""
        return min(-(-self.episode_length // self.action_repeat), self.replay_rows() - 1)


class Critic(NamedTuple):
    """The critic's networks: encoders of state and plan (`phi`) and of the flattened goal sequence (`psi`), and the
    `head` that makes logits of them."""

    phi: Encoder
    psi: Encoder
    head: HazardHead


class Networks(NamedTuple):
    """Actor and critic, and what they need of the env and the time ahead."""

    actor: Actor
    critic: Critic
    bins: Bins
    outlook: Outlook
    env: GoalEnv
    state_dim: int
    action_size: int
    goal_indices: tuple[int, ...]


class Forecast(NamedTuple):
    """What the critic makes of a batch.

    Attributes:
      phi, psi, first_psi: (B, D) of states and plans, of the goal sequences, of their first goals alone.
      hazards, occupancy: (B, bins) logits, the hazards for the sequences, the occupancy for the first goals.
    """

    phi: jax.Array
    psi: jax.Array
    first_psi: jax.Array
    hazards: jax.Array
    occupancy: jax.Array | None


class Terms(NamedTuple):
    """What a critic learns, and what an actor maximises.

    Attributes:
      critic_loss: config, networks, batch, forecast -> loss, what to report of it (`batch_means`).
      value: config, networks, parameters, phi, psi, share of deaths -> (...).
    """

    critic_loss: Callable[..., tuple[jax.Array, dict[str, jax.Array]]]
    value: Callable[..., jax.Array]


# Representations and logits.


def represent(networks: Networks, params: Any, state: jax.Array, plan: jax.Array) -> jax.Array:
    """phi (..., D) of states and plans as the networks see them."""
    return networks.critic.phi.apply(params["phi"], state, plan)


def represent_goal(networks: Networks, params: Any, goal: jax.Array) -> jax.Array:
    """psi (..., D) of single goals (..., goal_dim) as the networks see them, dwelt at."""
    return networks.critic.psi.apply(params["psi"], jnp.tile(goal, networks.outlook.dwell))


def logits(networks: Networks, params: Any, phi: jax.Array, psi: jax.Array) -> tuple[jax.Array, jax.Array | None]:
    """(..., bins) of the hazards, and of the occupancy."""
    return networks.critic.head.apply(params["head"], phi, psi)


def make_forecast(networks: Networks, params: Any, state: jax.Array, plan: jax.Array, goal: jax.Array) -> Forecast:
    """The forecast for goal sequences (B, dwell, goal_dim). One goal is its own sequence and judged once."""
    phi = represent(networks, params, state, plan)
    psi = networks.critic.psi.apply(params["psi"], goal.reshape(goal.shape[0], -1))
    of_hazards, of_occupancy = logits(networks, params, phi, psi)
    if networks.outlook.dwell == 1:
        return Forecast(phi, psi, psi, of_hazards, of_occupancy)
    first_psi = represent_goal(networks, params, goal[:, 0])
    return Forecast(phi, psi, first_psi, of_hazards, logits(networks, params, phi, first_psi)[1])


def critic_loss(
    config: SRLConfig, networks: Networks, batch: Batch, forecast: Forecast
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Minus the mean log-likelihood of the first hits, and what to report."""
    del config
    loss = -jnp.mean(hazards.log_likelihood(networks.bins, forecast.hazards, batch.first_hit, batch.known))
    reached = (batch.first_hit >= 0).astype(jnp.float32)
    return loss, {"hazard_loss": loss, "reached": reached, "died": batch.died.astype(jnp.float32)}


def value(
    config: SRLConfig, networks: Networks, params: Any, phi: jax.Array, psi: jax.Array, deaths: jax.Array | float = 0.0
) -> jax.Array:
    """(...) minus the discounted time until the goal is reached."""
    del deaths
    return hazards.arrival_value(networks.bins, logits(networks, params, phi, psi)[0], config.time_discounting)


SURVIVAL = Terms(critic_loss, value)


# The algorithm.


def make(config: SRLConfig, env: GoalEnv, terms: Terms = SURVIVAL, occupancy_bins: Bins | None = None) -> Algorithm:
    """SRL bound to one config and env; other terms make a relative of it."""
    networks = make_networks(config, env, occupancy_bins)
    return Algorithm(
        init=partial(init, config, networks),
        **planning.acting(config, networks, partial(energy, config, networks, terms)),
        keep=first_hits.keep,
        absorb=agent.absorb_states,
        index=partial(first_hits.index, networks.outlook, networks.goal_indices),
        draw=partial(draw, config, networks),
        gather=partial(first_hits.gather, networks.outlook, env),
        update=partial(update, config, networks, terms),
        drawable=lambda index: index.futures.rank[-1],
    )


def make_networks(config: SRLConfig, env: GoalEnv, occupancy_bins: Bins | None) -> Networks:
    """The functions for one config and env, without parameters."""
    bins = hazards.hazard_bins(config.window(), config.hazard_bins)
    biases = tuple(-math.log(first) if config.hazard_bins else 0.0 for first in bins.first[1:].tolist())
    trunk, num_occupancy = partial(make_trunk, config, "critic"), len(occupancy_bins.first) if occupancy_bins else 0
    phi, psi = (Encoder(trunk(), config.repr_dim) for _ in range(2))
    return Networks(
        actor=Actor(make_trunk(config, "actor"), config.action_chunk * env.action_size),
        critic=Critic(phi, psi, HazardHead(trunk(), biases, num_occupancy)),
        bins=bins,
        outlook=Outlook(config.window(), env.dwell, config.action_chunk, occupancy_bins),
        env=env,
        state_dim=env.state_dim,
        action_size=env.action_size,
        goal_indices=tuple(env.goal_indices),
    )


def rates(config: SRLConfig) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr, "critic": config.critic_lr, "log_alpha": config.alpha_lr}


def init(config: SRLConfig, networks: Networks, key: jax.Array) -> AgentState:
    """Fresh parameters, optimiser and normaliser."""
    actor_key, phi_key, psi_key, head_key = jax.random.split(key, 4)
    state, goal = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    plan, code = jnp.zeros((1, networks.actor.action_size)), jnp.zeros((1, config.repr_dim))
    params = {
        "actor": networks.actor.init(actor_key, state, goal),
        "critic": {
            "phi": networks.critic.phi.init(phi_key, state, plan),
            "psi": networks.critic.psi.init(psi_key, jnp.tile(goal, networks.outlook.dwell)),
            "head": networks.critic.head.init(head_key, code, code),
        },
        "log_alpha": jnp.zeros(()),
    }
    return agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)


def energy(
    config: SRLConfig,
    networks: Networks,
    terms: Terms,
    agent_state: AgentState,
    state: jax.Array,
    action: jax.Array,
    goal: jax.Array,
) -> jax.Array:
    """(...) the value of plans in states (..., state_dim) for goals (..., goal_dim)."""
    state, goal = agent.normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    params = agent_state.params["critic"]
    phi, psi = represent(networks, params, state, action), represent_goal(networks, params, goal)
    return terms.value(config, networks, params, phi, psi)


def draw(
    config: SRLConfig, networks: Networks, agent_state: AgentState, buffer_state: Any, index: Any, key: jax.Array
) -> goals.Pairs:
    """All pairs of a training step at once, (updates, B), of a row and the one where its goals begin."""
    del agent_state, buffer_state
    pairs = goals.draw_pairs(config, config.goal_rule, index.futures, key, spare=networks.outlook.dwell - 1)
    return goals.mixed(pairs, config.own_goals, config.other_goals)


def update(
    config: SRLConfig, networks: Networks, terms: Terms, agent_state: AgentState, batch: Batch, key: jax.Array
) -> tuple[AgentState, dict[str, jax.Array]]:
    """One gradient step of critic, actor and temperature, all from the parameters before the step."""
    state, goal = agent.normalize(agent_state.normalizer, networks.goal_indices, batch.state, batch.goal)
    deaths = jnp.mean(batch.died.astype(jnp.float32))

    def total_loss(params):
        critic, fixed = params["critic"], jax.lax.stop_gradient(params["critic"])
        forecast = make_forecast(networks, critic, state, batch.action, goal)
        loss, metrics = terms.critic_loss(config, networks, batch, forecast)

        def value(plan: jax.Array) -> jax.Array:
            phi, psi = represent(networks, fixed, state, plan), jax.lax.stop_gradient(forecast.first_psi)
            return terms.value(config, networks, fixed, phi, psi, deaths)

        entropy = agent.target_entropy(networks.action_size, config.action_chunk)
        policy, policy_metrics = agent.policy_loss(networks.actor, params, key, state, goal[:, 0], value, entropy)
        return loss + policy, metrics | policy_metrics

    gradients, metrics = jax.grad(total_loss, has_aux=True)(agent_state.params)
    return agent.descend(agent_state, gradients, rates(config)), agent.batch_means(metrics)


def workspace(config: SRLConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs: the copy of
    the achieved goals; trunks of the actor, the critic, and the critic that judges the actor; what each row has of
    representations, hazards and steps ahead."""
    window = config.window()
    copy = (config.replay_rows() + window) * config.num_envs * sizes.goal
    trunks = trunk_workspace(config, "actor") + 6 * trunk_workspace(config, "critic")
    bins = len(hazards.hazard_bins(window, config.hazard_bins).first)
    return copy + trunks + config.batch_size * (14 * config.repr_dim + 5.5 * bins + 0.6 * window)
