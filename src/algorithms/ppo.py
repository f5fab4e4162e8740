"""Proximal policy optimisation: every unroll is learned from in a few shuffled passes, then dropped.

Goals are the commanded ones, rewards the env's. The tanh-Gaussian actor maximises a clipped objective of advantages;
the critic is a value V(s, g). Shapes: T steps of the unroll, N envs, B batch, U updates per training step.
Paper: https://arxiv.org/abs/1707.06347.
"""

import dataclasses
import math
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs.base import GoalEnv, Sizes
from src import agent
from src.advantages import gae
from src.agent import AgentState, Normalizer
from src.algorithm import Algorithm, Step
from src.densities import action_log_prob, tanh_gaussian_log_prob
from src.networks import Actor, Encoder, joint_workspace, make_trunk
from src.replay_buffer import BufferState, take
from utils import RATE, Choice, Config, ConfigError, Range

# Beyond it an action that should become rarer teaches no more: where a policy narrows, ratios would grow to gradients
# that are no numbers. As in https://arxiv.org/abs/1912.09729, which stops at a ratio of 3 already.
_LARGEST_LOG_RATIO = 3.0


@dataclasses.dataclass(frozen=True)
class PPOConfig(Config):
    """Trains a goal-reaching agent on the environment's reward with PPO, on-policy."""

    algorithm: Annotated[str, Choice("algorithm")] = "ppo"
    unroll_length: Annotated[int, Range(1)] = 64
    batch_size: Annotated[int, Range(2)] = 2048
    policy_lr: Annotated[float, RATE] = 3e-4
    critic_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for the value network."""
    normalize_observations: bool = True
    discounting: Annotated[float, Range(0, 1, open=True, example=0.97)] = 0.97
    """What a reward is worth one action later; inside (0, 1)."""
    num_passes: Annotated[int, Range(1)] = 4
    """Passes over each unroll, with every row once in each."""
    gae_lambda: Annotated[float, Range(0, 1)] = 0.95
    """Advantages from all later rewards of the unroll (1), from the value of the next state (0), or between."""
    clip: Annotated[float, Range(0, open=True, example=0.3)] = 0.3
    """How far an action's probability may move from that in the unroll, as a share of it, and still be learned from."""
    value_coef: Annotated[float, Range(0)] = 0.25
    """Weight of the value's squared error in the loss."""
    entropy_coef: Annotated[float, Range(0)] = 1e-2
    """Weight of the policy's entropy in the loss."""

    def updates_per_training_step(self) -> int:
        return self.num_passes * self.num_envs * self.unroll_length // self.batch_size

    def check(self) -> None:
        super().check()
        rows, size = self.num_envs * self.unroll_length, self.batch_size
        if rows % size:
            smaller = next((f"--batch_size {n} or " for n in range(min(rows, size), 1, -1) if rows % n == 0), "")
            unit = size // math.gcd(size, self.num_envs)
            raise ConfigError(
                f"--batch_size {size} does not divide the {rows} rows of an unroll, num_envs {self.num_envs} * "
                f"unroll_length {self.unroll_length}: {smaller}--unroll_length {-(-self.unroll_length // unit) * unit}"
            )


class Networks(NamedTuple):
    """Actor and value network, and what they need of the env."""

    actor: Actor
    critic: Encoder
    state_dim: int
    goal_indices: tuple[int, ...]


@struct.dataclass
class PPOState(AgentState):
    """An agent that judges an unroll as it saw it: with the moments before the unroll's own were added."""

    collected_by: Normalizer | None


def make(config: PPOConfig, env: GoalEnv) -> Algorithm:
    """PPO bound to one config and env."""
    actor, critic = Actor(make_trunk(config, "actor"), env.action_size), Encoder(make_trunk(config, "critic"), 1)
    networks = Networks(actor, critic, env.state_dim, tuple(env.goal_indices))
    return Algorithm(
        init=partial(init, config, networks),
        init_memory=lambda shape: (),
        act=partial(agent.act, networks),
        keep=lambda step: step,
        absorb=absorb,
        index=lambda buffer_state: (),
        draw=partial(draw, config, networks),
        gather=lambda steps, index, pick: Batch(take(steps, pick.row), pick),
        update=partial(update, config, networks),
        actor=actor,
    )


def rates(config: PPOConfig) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr, "critic": config.critic_lr}


def init(config: PPOConfig, networks: Networks, key: jax.Array) -> PPOState:
    """Fresh parameters, optimiser and normalisers."""
    inputs = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    actor_key, critic_key = jax.random.split(key)
    params = {"actor": networks.actor.init(actor_key, *inputs), "critic": networks.critic.init(critic_key, *inputs)}
    fresh = agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)
    return PPOState(**vars(fresh), collected_by=fresh.normalizer)


def absorb(agent_state: PPOState, steps: Step) -> PPOState:
    """Adds the states of an unroll (T, N, ...) to the moments by which the next one is seen."""
    return agent.absorb_states(agent_state.replace(collected_by=agent_state.normalizer), steps)


# Data: from the unroll to minibatches.


@struct.dataclass
class Picks:
    """Flat numbers of rows, and what the parameters before the updates say of them: the advantage, what the value
    should be, and the log density of the action."""

    row: jax.Array
    advantage: jax.Array
    value_target: jax.Array
    log_prob: jax.Array


class Batch(NamedTuple):
    """The steps of B rows and their picks."""

    steps: Step
    picks: Picks


def judge(networks: Networks, agent_state: AgentState, step: Step) -> tuple[jax.Array, jax.Array, jax.Array]:
    """(N,) values before and after a step of all envs, and the log density of its action."""
    inputs = partial(agent.normalize, agent_state.normalizer, networks.goal_indices)
    critic = partial(networks.critic.apply, agent_state.params["critic"])
    value, next_value = (critic(*inputs(state, step.goal))[..., 0] for state in (step.state, step.next_state))
    return value, next_value, action_log_prob(step.action, *agent.policy(networks, agent_state, step.state, step.goal))


def draw(
    config: PPOConfig, networks: Networks, agent_state: PPOState, buffer: BufferState, index: Any, key: jax.Array
) -> Picks:
    """All minibatches of a training step, (U, B): every row once per pass, in random order."""
    del index  # every unroll fills the ring, so that its first row is the oldest
    agent_state = agent_state.replace(normalizer=agent_state.collected_by)
    # One step of all envs at a time: the hidden layers of a whole unroll would need more memory than all updates.
    value, next_value, log_prob = jax.lax.map(partial(judge, networks, agent_state), buffer.rows)
    advantage = gae(buffer.rows, value, next_value, config.discounting, config.gae_lambda)
    shuffle = jax.vmap(lambda key: jax.random.permutation(key, value.size))
    row = shuffle(jax.random.split(key, config.num_passes)).reshape(-1, config.batch_size)
    return Picks(row, *take((advantage, value + advantage, log_prob), row))


# Learning.


def clipped_objective(ratio: jax.Array, advantage: jax.Array, clip: float) -> jax.Array:
    """(B,) what the actor maximises: no gain beyond a `ratio` of new to old probability that left 1 +- `clip`."""
    return jnp.minimum(ratio * advantage, jnp.clip(ratio, 1 - clip, 1 + clip) * advantage)


def loss(
    config: PPOConfig, networks: Networks, params: dict[str, Any], inputs: tuple, batch: Batch, key: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """The loss of actor and critic, and what to report of it; means over the rows that may be learned from."""
    share = jnp.where(batch.steps.blown_up, 0.0, 1.0)
    share /= jnp.maximum(jnp.sum(share), 1.0)
    advantage = batch.picks.advantage - jnp.sum(share * batch.picks.advantage)
    advantage /= jnp.sqrt(jnp.sum(share * jnp.square(advantage))) + 1e-8
    mean, std = networks.actor.apply(params["actor"], *inputs)
    log_ratio = action_log_prob(batch.steps.action, mean, std) - batch.picks.log_prob
    log_ratio = jnp.minimum(log_ratio, _LARGEST_LOG_RATIO)
    ratio = jnp.exp(log_ratio)
    noise = jax.random.normal(key, mean.shape)
    # The Gaussian's entropy in closed form, the tanh's part of it at one sample.
    closed = 0.5 * jnp.sum(1 - jnp.square(noise), axis=-1)
    rows = {
        "actor_loss": -clipped_objective(ratio, advantage, config.clip),
        "critic_loss": jnp.square(networks.critic.apply(params["critic"], *inputs)[..., 0] - batch.picks.value_target),
        "entropy": closed - tanh_gaussian_log_prob(mean + std * noise, mean, std),
        "approx_kl": ratio - 1 - log_ratio,
        "clip_fraction": jnp.abs(ratio - 1) > config.clip,
    }
    means = dict(zip(rows, jnp.sum(share * jnp.stack(list(rows.values())), axis=1), strict=True))
    penalty = config.value_coef * means["critic_loss"] - config.entropy_coef * means["entropy"]
    return means["actor_loss"] + penalty, means


def update(
    config: PPOConfig, networks: Networks, agent_state: PPOState, batch: Batch, key: jax.Array
) -> tuple[PPOState, dict[str, jax.Array]]:
    """One gradient step of actor and critic."""
    inputs = agent.normalize(agent_state.collected_by, networks.goal_indices, batch.steps.state, batch.steps.goal)
    loss_of = partial(loss, config, networks, inputs=inputs, batch=batch, key=key)
    gradients, metrics = jax.grad(loss_of, has_aux=True)(agent_state.params)
    return agent.descend(agent_state, gradients, rates(config)), metrics


def workspace(config: PPOConfig, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs."""
    del sizes
    return joint_workspace(config, "actor", "critic")
