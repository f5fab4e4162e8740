"""Plans: the actor proposes H actions at once and carries them out without looking (https://arxiv.org/abs/2608.30640).

What the algorithms share whose policies plan and learn from pairs of rows: their flags, how they act, the plans of a
batch. An action alone is a plan of one. Shapes: B batch, H actions of a plan, K candidates.
"""

import dataclasses
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from src import agent, replay_buffer
from src.agent import AgentState
from src.algorithm import OffPolicyConfig
from utils import RATE, Before, Choice, ConfigError, Range


@dataclasses.dataclass(frozen=True)
class PlanningConfig(OffPolicyConfig):
    """The flags of the algorithms that learn to reach the goals of their own rows, by plans."""

    critic_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for the critic."""
    alpha_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for the entropy temperature."""
    repr_dim: Annotated[int, Range(1)] = 64
    """Size of the representations."""
    goal_rule: Annotated[str, Choice("goal rule"), Before("geometric")] = "geometric"
    """Which later states of its trajectory a row is trained to reach."""
    own_goals: Annotated[float, Range(0, 1), Before(0.0)] = 0.0
    """Share of the rows that are trained to reach what they have already achieved."""
    other_goals: Annotated[float, Range(0, 1), Before(0.0)] = 0.0
    """Share of the rows that are trained to reach what another row of the batch has achieved."""
    action_chunk: Annotated[int, Range(1), Before(1)] = 1
    """Actions that the policy plans at once and carries out without looking."""
    best_of: Annotated[int, Range(1, 1000), Before(1)] = 1
    """Plans that are sampled in training, of which the critic's favourite is carried out."""
    eval_best_of: Annotated[int, Range(1, 1000), Before(1)] = 1
    """The same in evaluations, if they sample."""

    def check(self) -> None:
        super().check()
        if self.own_goals + self.other_goals > 1:
            raise ConfigError(
                f"--own_goals {self.own_goals:g} and --other_goals {self.other_goals:g} are shares of the same rows: "
                f"together at most 1, e.g. --other_goals {1 - self.own_goals:g}"
            )
        if self.eval_best_of > 1 and self.deterministic_eval:
            raise ConfigError(
                f"--eval_best_of {self.eval_best_of} chooses among samples, which --deterministic_eval does not draw: "
                f"--eval_best_of 1, or --no_deterministic_eval"
            )


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


def take_plan(rows: Any, row: jax.Array, length: int) -> jax.Array:
    """(B, H * action_size) the actions of the rows at flat numbers (B,) and of those that follow."""
    if length == 1:
        return replay_buffer.take(rows.action, row)
    later = replay_buffer.later_row(row[:, None], jnp.arange(length), rows.traj_id.shape)
    return replay_buffer.take(rows.action, later).reshape(row.shape[0], -1)


# Acting; `networks` is any tuple that has `actor`, `state_dim`, `action_size` and `goal_indices`.


def acting(config: PlanningConfig, networks: Any, energy: Callable[..., jax.Array]) -> dict[str, Any]:
    """The fields of an `Algorithm` that act; `energy` judges plans as there."""
    return {
        "init_memory": partial(init_plan, length=config.action_chunk, action_size=networks.action_size),
        "act": partial(act, config, networks, best_of=config.eval_best_of, energy=energy),
        "explore": partial(act, config, networks, best_of=config.best_of, energy=energy),
        "energy": energy,
        "propose": partial(agent.propose, networks),
        "actor": networks.actor,
    }


def act(
    config: PlanningConfig,
    networks: Any,
    agent_state: AgentState,
    memory: Any,
    obs: jax.Array,
    key: jax.Array,
    deterministic: bool = False,
    best_of: int = 1,
    energy: Callable[..., jax.Array] | None = None,
) -> tuple[jax.Array, Any]:
    """(..., action_size) actions in [-1, 1] for observations (..., state_dim + goal_dim), and the plan to remember; of
    `best_of` plans that are sampled the one of the highest energy."""
    if best_of == 1 or deterministic:
        proposal, _ = agent.act(networks, agent_state, (), obs, key, deterministic)
    else:
        judge = partial(energy, agent_state)
        state, goal = jnp.split(obs, [networks.state_dim], axis=-1)
        proposal = favourite(best_of, judge, *agent.policy(networks, agent_state, state, goal), state, goal, key)
    return follow_plan(memory, proposal, config.action_chunk)


def favourite(
    count: int,
    judge: Callable[..., jax.Array],
    mean: jax.Array,
    std: jax.Array,
    state: jax.Array,
    goal: jax.Array,
    key: jax.Array,
) -> jax.Array:
    """The plan (..., H * action_size) that is judged best of K = `count` samples of tanh(N(mean, std))."""
    plans = jnp.tanh(mean + std * jax.random.normal(key, (count, *mean.shape)))
    best = jnp.argmax(jax.vmap(judge, (None, 0, None))(state, plans, goal), axis=0)
    return jnp.take_along_axis(plans, best[None, ..., None], axis=0)[0]
