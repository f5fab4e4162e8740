"""What a user adds, each in as few lines as it takes: an algorithm, a critic, a goal rule. No other file knows them."""

import dataclasses
from functools import partial
from typing import Annotated

import jax
import jax.numpy as jnp

from src import agent, goals, replay_buffer
from src.algorithm import Algorithm, Method, OffPolicyConfig
from src.algorithms import crl
from src.critics import two_encoders
from utils import RATE


@dataclasses.dataclass(frozen=True)
class LinearConfig(OffPolicyConfig):
    """Clones, by a linear policy, the actions that led to later states; explores by noise."""

    algorithm: str = "linear"
    step_size: Annotated[float, RATE] = 0.1
    """Rate of the gradient descent."""


def make_linear(config, env):
    """The algorithm of `LinearConfig`."""

    def init(key):
        params = {"actor": {"matrix": jnp.zeros((env.obs_size, env.action_size))}}
        return agent.AgentState(params=params, opt_state=(), normalizer=None)

    def mean(params, obs):
        return jnp.clip(obs @ params["actor"]["matrix"], -1, 1)

    def act(agent_state, memory, obs, key, deterministic=False):
        action = mean(agent_state.params, obs)
        if not deterministic:
            action = jnp.clip(action + jax.random.normal(key, action.shape), -1, 1)
        return action, memory

    def update(agent_state, batch, key):
        obs = jnp.concatenate([batch.state, batch.future_goal], axis=-1)
        loss, gradient = jax.value_and_grad(lambda params: jnp.mean((mean(params, obs) - batch.action) ** 2))(
            agent_state.params
        )
        params = jax.tree.map(lambda old, slope: old - config.step_size * slope, agent_state.params, gradient)
        return agent_state.replace(params=params), {"clone_loss": loss}

    return Algorithm(
        init=init,
        init_memory=lambda shape: (),
        act=act,
        keep=crl.keep,
        absorb=lambda agent_state, rows: agent_state,
        index=replay_buffer.index_futures,
        draw=lambda agent_state, buffer_state, index, key: goals.draw_pairs(config, "next", index, key),
        gather=partial(crl.gather, 1, tuple(env.goal_indices)),
        update=update,
    )


LINEAR = Method(LinearConfig, make_linear, lambda config, sizes: 10.0 * config.batch_size)


def bounded(config, state_dim, action_size, goal_dim):
    """A critic whose representations are squashed."""
    critic = two_encoders(config, state_dim, action_size, goal_dim)
    return critic._replace(
        phi=lambda *inputs: 5 * jnp.tanh(critic.phi(*inputs)), psi=lambda *inputs: 5 * jnp.tanh(critic.psi(*inputs))
    )


def next_rows(u, num_future, discounting):
    """One of the next three rows."""
    return jnp.clip(1 + jnp.floor(3 * u).astype(jnp.int32), 1, num_future)
