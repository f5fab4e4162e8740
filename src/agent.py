"""What agents are made of, whatever the algorithm: state, normaliser, optimiser, acting by a tanh-Gaussian actor."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

from src.densities import tanh_gaussian_log_prob
from src.losses import actor_loss, temperature_loss

# A state entry that never moves would otherwise be blown up by its rounding noise.
_MIN_STD = 1e-2


@struct.dataclass
class Normalizer:
    """Running moments of the states seen in training: `count` (), `mean` and `squares` (sum of squared deviations)
    (state_dim,)."""

    count: jax.Array
    mean: jax.Array
    squares: jax.Array


@struct.dataclass
class AgentState:
    """All that learns: `params` by part (actor, critic, log_alpha, ...), the optimiser's moments of all of them
    (`opt_state`), and the normaliser (None when observations are not normalised)."""

    params: dict[str, Any]
    opt_state: Any
    normalizer: Normalizer | None


@struct.dataclass
class TargetAgentState(AgentState):
    """An agent that bootstraps from `targets`: of some parts of `params`, averages that follow them slowly."""

    targets: dict[str, Any]


def make_optimizer(rates: dict[str, float]) -> optax.GradientTransformation:
    """Adam for all parts, each with its own rate. Its moments are flat arrays of all parameters: one kernel, not one
    for each parameter."""

    def descend(updates, params=None):
        return {name: optax.tree.scale(-rates[name], update) for name, update in updates.items()}

    return optax.chain(optax.flatten(optax.scale_by_adam()), optax.stateless(descend))


def init_agent(params: dict[str, Any], rates: dict[str, float], state_dim: int, normalize: bool) -> AgentState:
    """An agent with fresh moments."""
    moments = Normalizer(jnp.zeros(()), jnp.zeros(state_dim), jnp.zeros(state_dim))
    return AgentState(
        params=params, opt_state=make_optimizer(rates).init(params), normalizer=moments if normalize else None
    )


def descend(agent_state: AgentState, gradients: dict[str, Any], rates: dict[str, float]) -> AgentState:
    """One step of the optimiser."""
    updates, opt_state = make_optimizer(rates).update(gradients, agent_state.opt_state)
    return agent_state.replace(params=optax.apply_updates(agent_state.params, updates), opt_state=opt_state)


def with_targets(agent_state: AgentState, parts: tuple[str, ...]) -> TargetAgentState:
    """The agent with fresh targets of these parts, equal to the parameters."""
    return TargetAgentState(**vars(agent_state), targets={name: agent_state.params[name] for name in parts})


def follow(agent_state: TargetAgentState, tau: float) -> TargetAgentState:
    """Moves the targets by the share `tau` of the way to the parameters."""
    params = {name: agent_state.params[name] for name in agent_state.targets}
    targets = jax.tree.map(lambda target, param: target + tau * (param - target), agent_state.targets, params)
    return agent_state.replace(targets=targets)


def batch_means(metrics: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """Takes the mean of each metric that has a value per row, (B,); the others are ().

    One reduction for all: what an update costs on a GPU is the number of its kernels.
    """
    by_row = {name: metric for name, metric in metrics.items() if metric.ndim}
    means = jnp.mean(jnp.stack(list(by_row.values())), axis=1)
    return metrics | dict(zip(by_row, means, strict=True))


# Normalisation. Goals are parts of states, so a goal is scaled by the moments of the entries it speaks of: hindsight
# goals and commanded goals are seen on one scale.


def absorb_states(agent_state: AgentState, rows: Any) -> AgentState:
    """Adds the states of rows (T, N, ...) to the normaliser's moments."""
    return agent_state.replace(normalizer=update_moments(agent_state.normalizer, rows.state))


def update_moments(normalizer: Normalizer | None, states: jax.Array) -> Normalizer | None:
    """Adds states (..., state_dim) to the moments (Chan's parallel update)."""
    if normalizer is None:
        return None
    states = states.reshape(-1, states.shape[-1])
    added, mean = states.shape[0], jnp.mean(states, axis=0)
    count = normalizer.count + added
    shift = mean - normalizer.mean
    squares = jnp.sum(jnp.square(states - mean), axis=0) + jnp.square(shift) * normalizer.count * added / count
    return Normalizer(count, normalizer.mean + shift * added / count, normalizer.squares + squares)


def scales(normalizer: Normalizer) -> tuple[jax.Array, jax.Array]:
    """(state_dim,) mean and standard deviation that states are scaled by."""
    std = jnp.sqrt(normalizer.squares / jnp.maximum(normalizer.count, 1.0))
    return normalizer.mean, jnp.where(normalizer.count > 0, jnp.maximum(std, _MIN_STD), 1.0)


def normalize(
    normalizer: Normalizer | None, goal_indices: tuple[int, ...], state: jax.Array, goal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """State and goal as the networks see them."""
    if normalizer is None:
        return state, goal
    (mean, std), at = scales(normalizer), jnp.array(goal_indices)
    return (state - mean) / std, (goal - mean[at]) / std[at]


# Acting by a tanh-Gaussian actor; `networks` is any tuple that has `actor`, `state_dim` and `goal_indices`.


def policy(networks: Any, agent_state: AgentState, state: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation, before the tanh, in states and goals as the env gives them."""
    state, goal = normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    return networks.actor.apply(agent_state.params["actor"], state, goal)


def propose(networks: Any, agent_state: AgentState, state: jax.Array, goal: jax.Array) -> jax.Array:
    """What the deterministic policy does in states (..., state_dim) for goals (..., goal_dim)."""
    return jnp.tanh(policy(networks, agent_state, state, goal)[0])


def act(
    networks: Any, agent_state: AgentState, memory: Any, obs: jax.Array, key: jax.Array, deterministic: bool = False
) -> tuple[jax.Array, Any]:
    """(..., action_size) actions in [-1, 1] for observations (..., state_dim + goal_dim); nothing to remember."""
    mean, std = policy(networks, agent_state, *jnp.split(obs, [networks.state_dim], axis=-1))
    return jnp.tanh(mean if deterministic else mean + std * jax.random.normal(key, mean.shape)), memory


# Learning to act.


def target_entropy(action_size: int, length: int = 1) -> float:
    """-0.5 for each number that the actor proposes."""
    return -0.5 * action_size * length


def sample(actor: Any, params: Any, key: jax.Array, state: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Actions (B, action_size) of the policy and their log densities (B,)."""
    mean, std = actor.apply(params, state, goal)
    pre_tanh = mean + std * jax.random.normal(key, mean.shape)
    log_prob = tanh_gaussian_log_prob(pre_tanh, mean, std)
    return jnp.tanh(pre_tanh), log_prob


def policy_loss(
    actor: Any,
    params: dict[str, Any],
    key: jax.Array,
    state: jax.Array,
    goal: jax.Array,
    value: Callable[[jax.Array], jax.Array],
    target_entropy: float,
    disable_entropy: bool = False,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Actor plus temperature loss from one pass of the policy, and what to report of it (`batch_means`). `value` judges
    actions (B, action_size) by (B,) and holds what it judges by fixed."""
    action, log_prob = sample(actor, params["actor"], key, state, goal)
    judged, alpha = value(action), jnp.exp(params["log_alpha"])
    actor_part = actor_loss(jax.lax.stop_gradient(alpha), log_prob, judged, disable_entropy)
    temperature = temperature_loss(alpha, log_prob, target_entropy)
    metrics = {"actor_loss": actor_part, "alpha_loss": temperature, "alpha": alpha, "entropy": -log_prob}
    return actor_part + temperature, metrics
