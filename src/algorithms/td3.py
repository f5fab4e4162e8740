"""TD3, twin delayed deterministic policy gradients, on the environment's reward, in hindsight if asked for.

Critic: two Q(s, a, g) that bootstrap from slow averages of critics and actor, the target's action blurred by clipped
noise. Actor: deterministic, trained to maximise the first of them, at every `policy_delay`-th update only. Papers:
https://arxiv.org/abs/1802.09477, https://arxiv.org/abs/1707.01495.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from envs.base import GoalEnv, Sizes
from src import agent, hindsight
from src.agent import AgentState, TargetAgentState
from src.algorithm import Algorithm
from src.critics import Values, twin_values, value_loss, value_target
from src.hindsight import Batch, HindsightConfig
from src.networks import Encoder, make_trunk
from utils import RATE, Choice, ConfigError, Range


@dataclasses.dataclass(frozen=True)
class TD3Config(HindsightConfig):
    """Trains a goal-reaching agent with TD3; `--her_ratio 0.8` adds hindsight."""

    algorithm: Annotated[str, Choice("algorithm")] = "td3"
    deterministic_eval: bool = True
    """Evaluate the actor's actions without the noise of exploration."""
    policy_lr: Annotated[float, RATE] = 3e-4
    policy_delay: Annotated[int, Range(1)] = 2
    """Updates of the critics for each one of the actor and the targets."""
    exploration_noise: Annotated[float, Range(0)] = 0.4
    """Standard deviation of the noise on actions in training."""
    smoothing_noise: Annotated[float, Range(0)] = 0.2
    """Standard deviation of the noise on the target actor's actions."""
    noise_clip: Annotated[float, Range(0)] = 0.5
    """Where both noises are cut off."""

    def check(self) -> None:
        super().check()
        if self.policy_delay > (updates := self.updates_per_training_step()):
            raise ConfigError(
                f"--policy_delay {self.policy_delay} counts the updates of a training step, of which there are "
                f"{updates}: at most {updates}, or more --multiplier_num_sgd_steps"
            )


class Networks(NamedTuple):
    """Actor and critics, and what they need of the env."""

    actor: Encoder
    values: Values
    state_dim: int
    goal_indices: tuple[int, ...]


def make(config: TD3Config, env: GoalEnv) -> Algorithm:
    """TD3 bound to one config and env."""
    networks = make_networks(config, env)
    return hindsight.learner(
        config,
        env,
        networks,
        init=partial(init, config, networks),
        act=partial(act, config, networks),
        explore=partial(explore, config, networks),
        propose=partial(propose, networks),
        update=partial(update, config, networks),
    )


def make_networks(config: TD3Config, env: GoalEnv) -> Networks:
    """The functions for one config and env, without parameters."""
    actor = Encoder(make_trunk(config, "actor"), env.action_size)
    values = twin_values(config, env.state_dim, env.action_size, env.goal_dim)
    return Networks(actor, values, env.state_dim, tuple(env.goal_indices))


def rates(config: TD3Config) -> dict[str, float]:
    """Adam's rate of each part."""
    return {"actor": config.policy_lr, "critic": config.critic_lr}


def init(config: TD3Config, networks: Networks, key: jax.Array) -> TargetAgentState:
    """Fresh parameters, normaliser and an optimiser for each part, since the actor rests between its updates; the
    targets are the parameters."""
    actor_key, critic_key = jax.random.split(key)
    state, goal = jnp.zeros((1, networks.state_dim)), jnp.zeros((1, len(networks.goal_indices)))
    params = {"actor": networks.actor.init(actor_key, state, goal), "critic": networks.values.init(critic_key)}
    fresh = agent.init_agent(params, rates(config), networks.state_dim, config.normalize_observations)
    moments = {name: agent.make_optimizer(rates(config)).init({name: part}) for name, part in params.items()}
    return agent.with_targets(fresh.replace(opt_state=moments), tuple(params))


def policy(networks: Networks, params: Any, state: jax.Array, goal: jax.Array) -> jax.Array:
    """Actions of an actor's parameters in states and goals as the networks see them."""
    return jnp.tanh(networks.actor.apply(params, state, goal))


def propose(networks: Networks, agent_state: TargetAgentState, state: jax.Array, goal: jax.Array) -> jax.Array:
    """What the policy does in states (..., state_dim) for goals (..., goal_dim)."""
    inputs = agent.normalize(agent_state.normalizer, networks.goal_indices, state, goal)
    return policy(networks, agent_state.params["actor"], *inputs)


def blur(key: jax.Array, action: jax.Array, std: float, clip: float) -> jax.Array:
    """Actions with Gaussian noise cut off at +-`clip`, kept in [-1, 1]."""
    noise = std * jax.random.normal(key, action.shape)
    return jnp.clip(action + jnp.clip(noise, -clip, clip), -1.0, 1.0)


def act(
    config: TD3Config,
    networks: Networks,
    agent_state: TargetAgentState,
    memory: Any,
    obs: jax.Array,
    key: jax.Array,
    deterministic: bool = False,
) -> tuple[jax.Array, Any]:
    """(..., action_size) actions in [-1, 1] for observations (..., state_dim + goal_dim)."""
    action = propose(networks, agent_state, *jnp.split(obs, [networks.state_dim], axis=-1))
    return action if deterministic else blur(key, action, config.exploration_noise, config.noise_clip), memory


def explore(
    config: TD3Config, networks: Networks, agent_state: TargetAgentState, memory: Any, obs: jax.Array, key: jax.Array
) -> tuple[jax.Array, Any]:
    """As `act`, but uniformly random up to the first update, as in the paper: a fresh actor is the same push
    everywhere, and a body that it keeps in one place shows no way to anywhere."""
    act_key, random_key = jax.random.split(key)
    action, memory = act(config, networks, agent_state, memory, obs, act_key)
    random = jax.random.uniform(random_key, action.shape, minval=-1.0)
    return jnp.where(optax.tree.get(agent_state.opt_state["critic"], "count") > 0, action, random), memory


# Learning.


def target_of(
    config: TD3Config, networks: Networks, targets: dict[str, Any], batch: Batch, key: jax.Array
) -> jax.Array:
    """(B,) what the values of a batch should be: reward, then the value of the target actor's blurred action."""
    action = policy(networks, targets["actor"], batch.next_state, batch.goal)
    action = blur(key, action, config.smoothing_noise, config.noise_clip)
    values = networks.values.apply(targets["critic"], batch.next_state, batch.goal, action)
    return value_target(batch.reward, batch.terminated, config.discounting, jnp.min(values, axis=0))


def actor_loss(networks: Networks, actor: Any, critic: Any, batch: Batch) -> jax.Array:
    """Minus the mean value of the actor's actions, by the first critic."""
    first = jax.tree.map(lambda leaf: leaf[:1], critic)
    action = policy(networks, actor, batch.state, batch.goal)
    return -jnp.mean(networks.values.apply(first, batch.state, batch.goal, action))


def descend(config: TD3Config, agent_state: TargetAgentState, name: str, gradient: Any) -> TargetAgentState:
    """One step of the optimiser of one part; the other one and its moments rest."""
    part = AgentState({name: agent_state.params[name]}, agent_state.opt_state[name], normalizer=None)
    part = agent.descend(part, {name: gradient}, rates(config))
    return agent_state.replace(
        params=agent_state.params | part.params, opt_state=agent_state.opt_state | {name: part.opt_state}
    )


def update(
    config: TD3Config, networks: Networks, agent_state: TargetAgentState, batch: Batch, key: jax.Array
) -> tuple[TargetAgentState, dict[str, jax.Array]]:
    """One gradient step of the critics and, at its turn, of the actor, both from the parameters before the step; then
    the targets follow."""
    batch = hindsight.normalize(agent_state.normalizer, networks.goal_indices, batch)
    params, target = agent_state.params, target_of(config, networks, agent_state.targets, batch, key)

    def critic_loss(critic):
        return value_loss(networks.values.apply(critic, batch.state, batch.goal, batch.action), target)

    def actor_turn(agent_state):
        loss, gradient = jax.value_and_grad(partial(actor_loss, networks))(params["actor"], params["critic"], batch)
        return agent.follow(descend(config, agent_state, "actor", gradient), config.tau), loss

    gradient, metrics = jax.grad(critic_loss, has_aux=True)(params["critic"])
    agent_state = descend(config, agent_state, "critic", gradient)
    turn = (batch.number + 1) % config.policy_delay == 0
    agent_state, loss = jax.lax.cond(turn, actor_turn, lambda agent_state: (agent_state, 0.0), agent_state)
    updates = config.updates_per_training_step()
    # Metrics are averaged over all updates of a training step: this makes it the mean over the actor's.
    metrics |= {"actor_loss": loss * updates / (updates // config.policy_delay), "batch_reward": batch.reward}
    return agent_state, agent.batch_means(metrics)


def workspace(config: TD3Config, sizes: Sizes) -> float:
    """Floats that one update needs beyond parameters and rows, fitted to the memory of compiled programs."""
    del sizes
    return 6 * config.batch_size * config.h_dim * config.n_hidden
