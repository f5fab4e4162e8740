"""What agents are made of, whatever the algorithm: state, normaliser, optimiser, plans of several actions.

Shapes: H actions of a plan.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import struct

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


def normalize(
    normalizer: Normalizer | None, goal_indices: tuple[int, ...], state: jax.Array, goal: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """State and goal as the networks see them."""
    if normalizer is None:
        return state, goal
    std = jnp.sqrt(normalizer.squares / jnp.maximum(normalizer.count, 1.0))
    std = jnp.where(normalizer.count > 0, jnp.maximum(std, _MIN_STD), 1.0)
    at = jnp.array(goal_indices)
    return (state - normalizer.mean) / std, (goal - normalizer.mean[at]) / std[at]


# Acting by a tanh-Gaussian actor; `networks` is any tuple that has `actor`, `state_dim` and `goal_indices`.


def policy(networks: Any, agent_state: AgentState, state: jax.Array, goal: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Mean and standard deviation, before the tanh, in states and goals as the env gives them."""
    state, goal = normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    return networks.actor.apply(agent_state.params["actor"], state, goal)


def act(
    networks: Any, agent_state: AgentState, memory: Any, obs: jax.Array, key: jax.Array, deterministic: bool = False
) -> tuple[jax.Array, Any]:
    """(..., action_size) actions in [-1, 1] for observations (..., state_dim + goal_dim); nothing to remember."""
    mean, std = policy(networks, agent_state, *jnp.split(obs, [networks.state_dim], axis=-1))
    return jnp.tanh(mean if deterministic else mean + std * jax.random.normal(key, mean.shape)), memory


# Plans: the actor proposes H actions at once and carries them out without looking (https://arxiv.org/abs/2608.30640).


@struct.dataclass
class Plan:
    """What a policy with plans remembers: `actions` (..., H, action_size) and how many of them were taken, `taken`."""

    actions: jax.Array
    taken: jax.Array


def init_plan(shape: tuple[int, ...], length: int, action_size: int) -> Plan | tuple[()]:
    """The memory at the start of an episode; a policy of single actions has none."""
    if length == 1:
        return ()
    return Plan(jnp.zeros((*shape, length, action_size)), jnp.zeros(shape, jnp.int32))


def follow_plan(memory: Plan | tuple[()], proposal: jax.Array, length: int) -> tuple[jax.Array, Plan | tuple[()]]:
    """The next action of the plan and what to remember; `proposal` (..., H * action_size) is the new plan, taken up
    where the old one is carried out. It is computed at every step: under `vmap` a branch would run both sides."""
    if length == 1:
        return proposal, memory
    actions = proposal.reshape(*proposal.shape[:-1], length, -1)
    actions = jnp.where((memory.taken == 0)[..., None, None], actions, memory.actions)
    action = jnp.take_along_axis(actions, memory.taken[..., None, None], axis=-2)[..., 0, :]
    return action, Plan(actions, (memory.taken + 1) % length)


def target_entropy(action_size: int, length: int = 1) -> float:
    """-0.5 for each number that the actor proposes."""
    return -0.5 * action_size * length
