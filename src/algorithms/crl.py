"""Contrastive RL: the critic, the actor and their update, behind the seam of src/algorithm.py.

Critic: f(phi(s, a), psi(g)), trained by a contrastive loss so that exp f is proportional to how much likelier g is to
be reached after (s, a). Actor: tanh-Gaussian, trained to maximise f with an entropy bonus. No reward is used. With
`action_chunk` H, the action everywhere is a plan of H actions (https://arxiv.org/abs/2608.30640).
Papers: https://arxiv.org/abs/2206.07568, https://arxiv.org/abs/2408.11052.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs.base import GoalEnv, Sizes
from src import agent, goals, planning, replay_buffer
from src.agent import AgentState
from src.algorithm import Algorithm, Step
from src.critics import CRITICS, Critic, critic_loss, ensemble
from src.losses import EXPLORATION_SIGNS, TABLES_OF_DIFFERENCES, exploration_bonus
from src.networks import Actor, make_trunk, trunk_workspace
from src.planning import PlanningConfig
from utils import Before, Choice, ConfigError, Range


@dataclasses.dataclass(frozen=True)
class CRLConfig(PlanningConfig):
    """Trains a goal-reaching agent with contrastive RL, the whole loop on the accelerator."""

    contrastive_loss_fn: Annotated[str, Choice("contrastive loss")] = "symmetric_infonce"
    """Loss of the critic; each pair's goal is a negative for all others of the batch."""
    energy_fn: Annotated[str, Choice("energy")] = "l2"
    """Energy between the representations of a state-action and a goal."""
    logsumexp_penalty: Annotated[float, Range(0)] = 0.1
    """Weight of mean(logsumexp^2) in the critic's loss."""
    l2_penalty: Annotated[float, Range(0)] = 0.0
    """Weight of the mean squared representations in the critic's loss."""
    exploration_coef: Annotated[float, Range()] = 0.0
    """Weight of the actor's bonus on the norm of phi; energies l2 and dot only."""
    random_goals: Annotated[float, Range(0, 1)] = 0.0
    """Share of the actor's rows that train on another row's goal."""
    crosse: Annotated[float, Range(0, 1), Before(0.0)] = 0.0
    """Probability that a row takes the goal of the row of the batch whose state is nearest."""
    no_resubs: bool = False
    """Take the positive out of every logsumexp."""
    use_c_target: bool = False
    """Scale the logits by a learned scalar."""
    disable_entropy_actor: bool = False
    """Drop the entropy term from the actor's loss."""
    critic: Annotated[str, Choice("critic"), Before("two_encoders")] = "two_encoders"
    """Form of the critic."""
    num_critics: Annotated[int, Range(1, 1000), Before(1)] = 1
    """Critics trained side by side; of several, the least energy counts."""

    def check(self) -> None:
        super().check()
        if self.exploration_coef and self.energy_fn not in EXPLORATION_SIGNS:
            raise ConfigError(
                f"--exploration_coef needs --energy_fn {' or '.join(EXPLORATION_SIGNS)}, not {self.energy_fn}"
            )
        if self.energy_fn.startswith("mrn") and self.repr_dim % 2:
            raise ConfigError(
                f"--energy_fn {self.energy_fn} splits the representation in half: --repr_dim {self.repr_dim} must be "
                f"even, e.g. {self.repr_dim + 1}"
            )


class Networks(NamedTuple):
    """Actor and critic, and what they need of the env."""

    actor: Actor
    critic: Critic
    state_dim: int
    action_size: int
    goal_indices: tuple[int, ...]


def make(config: CRLConfig, env: GoalEnv) -> Algorithm:
    """CRL bound to one config and env."""
    networks = make_networks(config, env)
    return Algorithm(
        init=partial(init, config, networks),
        **planning.acting(config, networks, partial(energy, networks)),
        keep=keep,
        absorb=agent.absorb_states,
        # A pair needs a later row, and a plan all of its actions.
        index=partial(replay_buffer.index_futures, least=max(config.action_chunk - 1, 1)),
        draw=partial(draw, config),
        gather=partial(gather, config.action_chunk, networks.goal_indices),
        update=partial(update, config, networks),
        drawable=lambda index: index.rank[-1],
    )


def make_networks(config: CRLConfig, env: GoalEnv) -> Networks:
    """The functions for one config and env, without parameters."""
    plan_size = config.action_chunk * env.action_size
    critic = CRITICS[config.critic](config, env.state_dim, plan_size, env.goal_dim)
    return Networks(
        actor=Actor(make_trunk(config, "actor"), plan_size),
        critic=ensemble(critic, config.num_critics),
        state_dim=env.state_dim,
        action_size=env.action_size,
        goal_indices=tuple(env.goal_indices),
    )


def rates(config: CRLConfig) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr, "critic": config.critic_lr, "log_alpha": config.alpha_lr}


def init(config: CRLConfig, networks: Networks, key: jax.Array) -> AgentState:
    """Fresh parameters, optimiser and normaliser."""
    actor_key, *critic_keys = jax.random.split(key, 3)
    state, goal = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    critic = networks.critic.init(tuple(critic_keys))
    if config.use_c_target:
        critic["c_target"] = jnp.ones(() if config.num_critics == 1 else config.num_critics)
    params = {
        "actor": networks.actor.init(actor_key, state, goal),
        "critic": critic,
        "log_alpha": jnp.zeros(()),
    }
    return agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)


def energy(
    networks: Networks, agent_state: AgentState, state: jax.Array, action: jax.Array, goal: jax.Array
) -> jax.Array:
    """(...) the critic's energy of states (..., state_dim), actions and goals (..., goal_dim)."""
    state, goal = agent.normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    critic, params = networks.critic, agent_state.params["critic"]
    return critic.energy(critic.phi(params, state, action), critic.psi(params, goal))


# Data: from steps to batches.


@struct.dataclass
class Row:
    """What the replay keeps of a step: `state` (N, state_dim), `action` (N, action_size), `traj_id` (N,)."""

    state: jax.Array
    action: jax.Array
    traj_id: jax.Array


@struct.dataclass
class Batch:
    """Training pairs: `state` (B, state_dim), `action` (B, H * action_size), `future_goal` (B, goal_dim)."""

    state: jax.Array
    action: jax.Array
    future_goal: jax.Array


def keep(step: Step) -> Row:
    """The row of a step."""
    return Row(step.state, step.action, step.traj_id)


def draw(
    config: CRLConfig, agent_state: AgentState, buffer_state: replay_buffer.BufferState, index: Any, key: jax.Array
) -> goals.Pairs:
    """All pairs of a training step at once, (updates, B)."""
    del agent_state, buffer_state
    pairs = goals.draw_pairs(config, config.goal_rule, index, key, config.crosse)
    return goals.mixed(pairs, config.own_goals, config.other_goals)


def gather(action_chunk: int, goal_indices: tuple[int, ...], rows: Row, index: Any, pairs: goals.Pairs) -> Batch:
    """The training pairs at (B,) numbers of rows."""
    del index
    state, action = replay_buffer.take(rows.state, pairs.row), planning.take_plan(rows, pairs.row, action_chunk)
    future_state = replay_buffer.take(rows.state, pairs.future_row)
    return Batch(state, action, goals.cross(pairs.crossed, state, future_state[:, jnp.array(goal_indices)]))


# Learning.


def policy_loss(
    config: CRLConfig,
    networks: Networks,
    params: dict[str, Any],
    key: jax.Array,
    state: jax.Array,
    goal: jax.Array,
    psi,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Actor plus temperature loss from one pass of the policy, and what to report (`batch_means`); the critic, and
    `psi` with it, is held fixed."""
    critic = jax.lax.stop_gradient(params["critic"])
    goal, psi = goals.with_other_goals(config.random_goals, goal, jax.lax.stop_gradient(psi))

    def value(plan: jax.Array) -> jax.Array:
        phi = networks.critic.phi(critic, state, plan)
        energy = networks.critic.energy(phi, psi)
        if not config.exploration_coef:
            return energy
        return energy - config.exploration_coef * exploration_bonus(config.energy_fn, phi)

    entropy = agent.target_entropy(networks.action_size, config.action_chunk)
    return agent.policy_loss(networks.actor, params, key, state, goal, value, entropy, config.disable_entropy_actor)


def update(
    config: CRLConfig, networks: Networks, agent_state: AgentState, batch: Batch, key: jax.Array
) -> tuple[AgentState, dict[str, jax.Array]]:
    """One gradient step of critic, actor and temperature, all from the parameters before the step."""
    state, goal = agent.normalize(agent_state.normalizer, networks.goal_indices, batch.state, batch.future_goal)

    def total_loss(params):
        critic = params["critic"]
        phi, psi = networks.critic.phi(critic, state, batch.action), networks.critic.psi(critic, goal)
        contrastive, critic_metrics = critic_loss(config, networks.critic, critic, phi, psi)
        policy, policy_metrics = policy_loss(config, networks, params, key, state, goal, psi)
        return contrastive + policy, critic_metrics | policy_metrics

    gradients, metrics = jax.grad(total_loss, has_aux=True)(agent_state.params)
    return agent.descend(agent_state, gradients, rates(config)), agent.batch_means(metrics)


def workspace(config: CRLConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs: the trunks of
    both encoders, of the actor and of the encoder that judges it, numbers of representations, tables of (B, B)."""
    del sizes
    representation, tables = 6, 10
    per_pair = tables + (config.repr_dim if config.energy_fn in TABLES_OF_DIFFERENCES else 0)
    per_row = representation * config.repr_dim + per_pair * config.batch_size
    critic = 3 * trunk_workspace(config, "critic") + config.batch_size * per_row
    return trunk_workspace(config, "actor") + config.num_critics * critic
