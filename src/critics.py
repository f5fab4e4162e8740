"""Critics f(s, a, g) as parts, and what makes several of one (`CRITICS`, `ensemble`); values Q(s, a, g) of rewards.

Shapes: B batch, D representation, K critics of an ensemble.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from src.agent import normalize
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS, logit_metrics, pairwise_energy, row_logsumexp
from src.networks import Encoder, QNetwork, make_trunk
from utils import Config


class Critic(NamedTuple):
    """A critic as pure functions of its parameters.

    Attributes:
      init: two keys, one for each encoder -> parameters.
      phi: parameters, state, action -> representation (..., D).
      psi: parameters, goal -> representation (..., D).
      energy: phi, psi -> (...), row by row; of an ensemble the least.
      table: phi, psi of (B, D) -> (B, B), every row with every goal; of an ensemble (K, B, B).
    """

    init: Callable[[tuple[jax.Array, jax.Array]], Any]
    phi: Callable[[Any, jax.Array, jax.Array], jax.Array]
    psi: Callable[[Any, jax.Array], jax.Array]
    energy: Callable[[jax.Array, jax.Array], jax.Array]
    table: Callable[[jax.Array, jax.Array], jax.Array]


def two_encoders(config: Config, state_dim: int, action_size: int, goal_dim: int) -> Critic:
    """An encoder of state and action, one of the goal, and the energy between them."""
    sa_encoder, g_encoder = (Encoder(make_trunk(config, "critic"), config.repr_dim) for _ in range(2))

    def init(keys: tuple[jax.Array, jax.Array]) -> dict[str, Any]:
        sa_key, g_key = keys
        return {
            "sa_encoder": sa_encoder.init(sa_key, jnp.zeros((1, state_dim)), jnp.zeros((1, action_size))),
            "g_encoder": g_encoder.init(g_key, jnp.zeros((1, goal_dim))),
        }

    return Critic(
        init=init,
        phi=lambda params, state, action: sa_encoder.apply(params["sa_encoder"], state, action),
        psi=lambda params, goal: g_encoder.apply(params["g_encoder"], goal),
        energy=ENERGY_FNS[config.energy_fn],
        table=partial(pairwise_energy, config.energy_fn),
    )


CRITICS: dict[str, Callable[..., Critic]] = {"two_encoders": two_encoders}


def ensemble(critic: Critic, num_critics: int) -> Critic:
    """K independent critics as one, every parameter and representation with a leading axis K; one is itself."""
    if num_critics == 1:
        return critic
    return Critic(
        init=lambda keys: jax.vmap(critic.init)(tuple(jax.random.split(key, num_critics) for key in keys)),
        phi=jax.vmap(critic.phi, (0, None, None)),
        psi=jax.vmap(critic.psi, (0, None)),
        energy=lambda phi, psi: jnp.min(jax.vmap(critic.energy)(phi, psi), axis=0),
        table=jax.vmap(critic.table),
    )


# The contrastive loss of a critic.


def critic_loss(
    config: Config, critic: Critic, params: dict[str, Any], phi: jax.Array, psi: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The contrastive loss with its penalties, and what to report of it (`batch_means`): summed over the critics of an
    ensemble, each on the same batch, and averaged for the report."""
    table, c_target = critic.table(phi, psi), params.get("c_target")
    if config.num_critics == 1:
        return one_critic_loss(config, table, phi, psi, c_target)
    axes = (0, 0, 0, None if c_target is None else 0)
    losses, metrics = jax.vmap(partial(one_critic_loss, config), axes)(table, phi, psi, c_target)
    return jnp.sum(losses), jax.tree.map(partial(jnp.mean, axis=0), metrics)


def one_critic_loss(
    config: Config, logits: jax.Array, phi: jax.Array, psi: jax.Array, c_target: jax.Array | None
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of (B, B) logits between representations (B, D)."""
    if c_target is not None:
        logits = logits * c_target
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
    return loss, metrics | ({} if c_target is None else {"c_target": c_target})


# Values of rewards.


class Values(NamedTuple):
    """K independent networks that value actions; parameters and values have a leading axis K.

    Attributes:
      init: key -> parameters.
      apply: parameters, state, goal, action -> (K, ...).
    """

    init: Callable[[jax.Array], Any]
    apply: Callable[..., jax.Array]


def twin_values(config: Config, state_dim: int, action_size: int, goal_dim: int) -> Values:
    """Two Q networks, the least of which counts (https://arxiv.org/abs/1802.09477)."""
    network = QNetwork(make_trunk(config, "critic"))
    one = jnp.zeros((1, state_dim)), jnp.zeros((1, goal_dim)), jnp.zeros((1, action_size))
    return Values(
        init=lambda key: jax.vmap(lambda each: network.init(each, *one))(jax.random.split(key)),
        apply=jax.vmap(network.apply, (0, None, None, None)),
    )


def least_value(networks: Any, agent_state: Any, state: jax.Array, action: jax.Array, goal: jax.Array) -> jax.Array:
    """(...) the least value of actions in states and for goals as the env gives them; `networks` has `values` and
    `goal_indices`."""
    state, goal = normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    return jnp.min(networks.values.apply(agent_state.params["critic"], state, goal, action), axis=0)


def value_target(reward: jax.Array, terminated: jax.Array, discounting: float, next_value: jax.Array) -> jax.Array:
    """(B,) r + gamma (1 - death) V(s'). Only what the environment ended is final: a time limit is no death."""
    return reward + discounting * jnp.where(terminated, 0.0, next_value)


def value_loss(values: jax.Array, target: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Half the mean square of what (K, B) values miss of their (B,) target, and what to report (`batch_means`)."""
    if values.ndim != 2 or values.shape[1:] != target.shape:
        raise ValueError(f"values (K, B) need a target (B,), got {values.shape} and {target.shape}")
    loss = 0.5 * jnp.mean(jnp.square(values - target))
    return loss, {"critic_loss": loss, "q_mean": jnp.mean(values, axis=0), "q_target": target}
