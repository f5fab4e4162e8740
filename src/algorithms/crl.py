"""Contrastive RL as an algorithm: `init`, `act`, `update` on one `AgentState`. The loop knows no more of it.

Critic: f(phi(s, a), psi(g)), trained by a contrastive loss so that exp f is proportional to how much likelier g is to
be reached after (s, a). Actor: tanh-Gaussian, trained to maximise f with an entropy bonus. No reward is used.
Papers: https://arxiv.org/abs/2206.07568, https://arxiv.org/abs/2408.11052.
"""

import dataclasses
import functools
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import struct

from envs.base import GoalEnv
from src.algorithm import OffPolicyConfig
from src.losses import (
    CONTRASTIVE_LOSSES,
    ENERGY_FNS,
    EXPLORATION_SIGNS,
    actor_loss,
    exploration_bonus,
    logit_metrics,
    pairwise_energy,
    row_logsumexp,
    tanh_gaussian_log_prob,
    temperature_loss,
)
from src.networks import NETWORKS, Actor, Encoder
from src.replay_buffer import Batch
from utils import RATE, Before, Choice, Config, ConfigError, Range

# A state entry that never moves would otherwise be blown up by its rounding noise.
_MIN_STD = 1e-2


@dataclasses.dataclass(frozen=True)
class CRLConfig(OffPolicyConfig):
    """Trains a goal-reaching agent with contrastive RL, the whole loop on the accelerator."""

    critic_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for both encoders."""
    alpha_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for the entropy temperature."""
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
    no_resubs: bool = False
    """Take the positive out of every logsumexp."""
    use_c_target: bool = False
    """Scale the logits by a learned scalar."""
    disable_entropy_actor: bool = False
    """Drop the entropy term from the actor's loss."""
    repr_dim: Annotated[int, Range(1)] = 64
    """Size of the representations."""
    num_critics: Annotated[int, Range(1, 1000), Before(1)] = 1
    """Critics trained side by side; of several, the least energy counts."""
    goal_rule: Annotated[str, Choice("goal rule"), Before("geometric")] = "geometric"
    """Which later states of its trajectory a row is trained to reach."""

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


@struct.dataclass
class Normalizer:
    """Running moments of the states seen in training: `count` (), `mean` and `squares` (sum of squared deviations)
    (state_dim,)."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array


@struct.dataclass
class AgentState:
    """All that learns: `params` with the keys actor, critic and log_alpha, the optimiser's moments of all of them
    (`opt_state`), and the normaliser (None when observations are not normalised)."""

    params: dict[str, Any]
    opt_state: Any
    normalizer: Normalizer | None


class Networks(NamedTuple):
    """The three modules and what they need of the env."""

    actor: Actor
    sa_encoder: Encoder
    g_encoder: Encoder
    state_dim: int
    action_size: int
    goal_indices: tuple[int, ...]


def make_networks(config: Config, env: GoalEnv) -> Networks:
    """The modules for one config and env, without parameters."""
    trunk = functools.partial(
        NETWORKS[config.network], h_dim=config.h_dim, n_hidden=config.n_hidden, use_ln=config.use_ln
    )
    return Networks(
        actor=Actor(trunk(), env.action_size),
        sa_encoder=Encoder(trunk(), config.repr_dim),
        g_encoder=Encoder(trunk(), config.repr_dim),
        state_dim=env.state_dim,
        action_size=env.action_size,
        goal_indices=tuple(env.goal_indices),
    )


def make_optimizer(config: Config) -> optax.GradientTransformation:
    """Adam for all three, each with its own rate. Its moments are flat arrays of all parameters: one kernel, not one
    for each parameter."""
    rates = {"actor": config.policy_lr, "critic": config.critic_lr, "log_alpha": config.alpha_lr}

    def descend(updates, params=None):
        return {name: optax.tree.scale(-rates[name], update) for name, update in updates.items()}

    return optax.chain(optax.flatten(optax.scale_by_adam()), optax.stateless(descend))


def init(config: Config, networks: Networks, key: jax.Array) -> AgentState:
    """Fresh parameters, optimiser and normaliser."""
    actor_key, sa_key, g_key = jax.random.split(key, 3)
    state, action = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, networks.action_size))
    goal = jnp.zeros((1, len(networks.goal_indices)))
    critic = {
        "sa_encoder": networks.sa_encoder.init(sa_key, state, action),
        "g_encoder": networks.g_encoder.init(g_key, goal),
    }
    if config.use_c_target:
        critic["c_target"] = jnp.ones(())
    params = {
        "actor": networks.actor.init(actor_key, state, goal),
        "critic": critic,
        "log_alpha": jnp.zeros(()),
    }
    moments = Normalizer(jnp.zeros(()), jnp.zeros(networks.state_dim), jnp.zeros(networks.state_dim))
    return AgentState(
        params=params,
        opt_state=make_optimizer(config).init(params),
        normalizer=moments if config.normalize_observations else None,
    )


# Normalisation. Goals are parts of states, so a goal is scaled by the moments of the entries it speaks of: the actor
# and both encoders see hindsight goals and commanded goals on one scale.


def observe(normalizer: Normalizer | None, states: jax.Array) -> Normalizer | None:
    """Adds states (..., state_dim) to the moments (Chan's parallel update)."""
    if normalizer is None:
        return None
    states = states.reshape(-1, states.shape[-1])
    added, mean = states.shape[0], jnp.mean(states, axis=0)
    count = normalizer.count + added
    shift = mean - normalizer.mean
    squares = jnp.sum(jnp.square(states - mean), axis=0) + jnp.square(shift) * normalizer.count * added / count
    return Normalizer(count, normalizer.mean + shift * added / count, normalizer.squares + squares)


def normalize(
    normalizer: Normalizer | None, networks: Networks, state: jax.Array, goal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """State and goal as the networks see them."""
    if normalizer is None:
        return state, goal
    std = jnp.sqrt(normalizer.squares / jnp.maximum(normalizer.count, 1.0))
    std = jnp.where(normalizer.count > 0, jnp.maximum(std, _MIN_STD), 1.0)
    at = jnp.array(networks.goal_indices)
    return (state - normalizer.mean) / std, (goal - normalizer.mean[at]) / std[at]


# Acting and learning.


def act(
    networks: Networks, agent_state: AgentState, obs: jax.Array, key: jax.Array, deterministic: bool = False
) -> jax.Array:
    """(..., action_size) actions in [-1, 1] for observations (..., state_dim + goal_dim)."""
    state, goal = jnp.split(obs, [networks.state_dim], axis=-1)
    mean, std = networks.actor.apply(
        agent_state.params["actor"], *normalize(agent_state.normalizer, networks, state, goal)
    )
    return jnp.tanh(mean if deterministic else mean + std * jax.random.normal(key, mean.shape))


def energy(
    config: Config, networks: Networks, agent_state: AgentState, state: jax.Array, action: jax.Array, goal: jax.Array
) -> jax.Array:
    """(...) the critic's energy of states (..., state_dim), actions (..., action_size) and goals (..., goal_dim)."""
    state, goal = normalize(agent_state.normalizer, networks, state, goal)
    critic = agent_state.params["critic"]
    phi = networks.sa_encoder.apply(critic["sa_encoder"], state, action)
    return ENERGY_FNS[config.energy_fn](phi, networks.g_encoder.apply(critic["g_encoder"], goal))


def critic_loss(
    config: Config, params: dict[str, Any], phi: jax.Array, psi: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive loss of (B, D) representations with its penalties, and what to report of it (`batch_means`)."""
    logits = pairwise_energy(config.energy_fn, phi, psi)
    if config.use_c_target:
        logits = logits * params["c_target"]
    loss = CONTRASTIVE_LOSSES[config.contrastive_loss_fn](logits, no_resubs=config.no_resubs)
    if config.logsumexp_penalty:
        log_partition = row_logsumexp(logits, config.no_resubs)
        loss += config.logsumexp_penalty * jnp.mean(jnp.square(log_partition))
    l2_penalty = jnp.mean(jnp.square(phi) + jnp.square(psi), axis=-1)
    if config.l2_penalty:
        loss += config.l2_penalty * jnp.mean(l2_penalty)
    phi_norm, psi_norm = jnp.linalg.norm(phi, axis=-1), jnp.linalg.norm(psi, axis=-1)
    metrics = {
        "crl_critic_loss": loss,
        "sa_repr_mean": phi_norm,
        "sa_repr_std": jnp.std(phi_norm),
        "g_repr_mean": psi_norm,
        "g_repr_std": jnp.std(psi_norm),
        "l2_penalty": l2_penalty,
        **logit_metrics(logits),
    }
    return loss, metrics | ({"c_target": params["c_target"]} if config.use_c_target else {})


def with_other_goals(share: float, *per_goal: jax.Array) -> list[jax.Array]:
    """Gives the first `share` of the rows of each (B, ...) array, one at least if it is not 0, the next row's value;
    rows come in random order."""
    if not share:
        return list(per_goal)
    size = per_goal[0].shape[0]
    swapped = jnp.arange(size) < max(round(share * size), 1)
    return [jnp.where(swapped[:, None], jnp.roll(value, -1, axis=0), value) for value in per_goal]


def policy_loss(
    config: Config, networks: Networks, params: dict[str, Any], key: jax.Array, state: jax.Array, goal: jax.Array, psi
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Actor plus temperature loss from one pass of the policy, and what to report (`batch_means`); the critic, and
    `psi` with it, is held fixed."""
    critic = jax.lax.stop_gradient(params["critic"])
    goal, psi = with_other_goals(config.random_goals, goal, jax.lax.stop_gradient(psi))
    mean, std = networks.actor.apply(params["actor"], state, goal)
    pre_tanh = mean + std * jax.random.normal(key, mean.shape)
    log_prob = tanh_gaussian_log_prob(pre_tanh, mean, std)
    phi = networks.sa_encoder.apply(critic["sa_encoder"], state, jnp.tanh(pre_tanh))
    energy = ENERGY_FNS[config.energy_fn](phi, psi)
    alpha = jnp.exp(params["log_alpha"])
    actor = actor_loss(jax.lax.stop_gradient(alpha), log_prob, energy, config.disable_entropy_actor)
    if config.exploration_coef:
        actor += config.exploration_coef * exploration_bonus(config.energy_fn, phi)
    temperature = temperature_loss(alpha, log_prob, -0.5 * networks.action_size)
    metrics = {"actor_loss": actor, "alpha_loss": temperature, "alpha": alpha, "entropy": -log_prob}
    return actor + temperature, metrics


def update(
    config: Config, networks: Networks, agent_state: AgentState, batch: Batch, key: jax.Array
) -> tuple[AgentState, dict[str, jax.Array]]:
    """One gradient step of critic, actor and temperature, all from the parameters of before the step."""
    future_goal = batch.future_state[:, jnp.array(networks.goal_indices)]
    state, goal = normalize(agent_state.normalizer, networks, batch.state, future_goal)

    def total_loss(params):
        critic = params["critic"]
        phi = networks.sa_encoder.apply(critic["sa_encoder"], state, batch.action)
        psi = networks.g_encoder.apply(critic["g_encoder"], goal)
        contrastive, critic_metrics = critic_loss(config, critic, phi, psi)
        policy, policy_metrics = policy_loss(config, networks, params, key, state, goal, psi)
        return contrastive + policy, critic_metrics | policy_metrics

    gradients, metrics = jax.grad(total_loss, has_aux=True)(agent_state.params)
    updates, opt_state = make_optimizer(config).update(gradients, agent_state.opt_state)
    params = optax.apply_updates(agent_state.params, updates)
    return agent_state.replace(params=params, opt_state=opt_state), batch_means(metrics)


def batch_means(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Takes the mean of each metric that has a value a row, (B,); the others are ().

    One reduction for all: what an update costs on a GPU is the number of its kernels.
    """
    by_row = {name: metric for name, metric in metrics.items() if metric.ndim}
    means = jnp.mean(jnp.stack(list(by_row.values())), axis=1)
    return metrics | dict(zip(by_row, means, strict=True))
