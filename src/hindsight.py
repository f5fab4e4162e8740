"""Data of the algorithms that learn from rewards: rows with their next state, drawn uniformly, a share of them given
another goal in hindsight, one that their trajectory reached (https://arxiv.org/abs/1707.01495).

What a row achieves, and its reward, are those of the state after its action. So the last stored row of a trajectory is
drawn too, and the only one that the environment can have ended. Shapes: N envs, U updates per training step, B batch.
"""

import dataclasses
from functools import partial
from typing import Annotated, Any

import jax
import jax.numpy as jnp
from flax import struct

from envs.base import GoalEnv
from src import agent, goals, replay_buffer
from src.algorithm import Algorithm, OffPolicyConfig, Step
from src.critics import least_value
from utils import RATE, Choice, ConfigError, Range

# Where the goal of a relabelled row lies: a goal rule over the states after this row's action and after the later ones.
HER_RULES: dict[str, goals.GoalRule] = {
    "future": goals.GOAL_RULES["uniform"],
    "geometric": goals.GOAL_RULES["geometric"],
    "final": goals.GOAL_RULES["last"],
}


@dataclasses.dataclass(frozen=True)
class HindsightConfig(OffPolicyConfig):
    """The flags of the algorithms that learn from rewards in a replay.

    Where goals are much smaller numbers than velocities, values hardly depend on them: reacher is learned several times
    more slowly without `normalize_observations`.
    """

    normalize_observations: bool = True
    discounting: Annotated[float, Range(0, 1, open=True, example=0.99)] = 0.99
    """What a reward is worth one action later; inside (0, 1)."""
    critic_lr: Annotated[float, RATE] = 3e-4
    """Adam's rate for both critics."""
    tau: Annotated[float, Range(0, 1)] = 0.005
    """How far target networks move towards the trained ones, as a share of the way."""
    her_ratio: Annotated[float, Range(0, 1)] = 0.0
    """Share of the rows that learn in hindsight, with a goal that their trajectory reached; sparse reward only."""
    her_rule: Annotated[str, Choice("hindsight rule")] = "future"
    """Which goal in hindsight: that of this or a later row of the trajectory, each equally likely (future) or k rows
    ahead with probability proportional to discounting^k (geometric), or that of the last one (final)."""

    def check(self) -> None:
        super().check()
        if self.her_ratio and self.use_dense_reward:
            raise ConfigError(
                f"--her_ratio {self.her_ratio} needs the sparse reward: only the environment could tell the dense one "
                f"for another goal; --no_use_dense_reward or --her_ratio 0"
            )
        if self.her_ratio and self.action_repeat > 1:
            raise ConfigError(
                f"--her_ratio {self.her_ratio} needs --action_repeat 1, not {self.action_repeat}: rewards are summed "
                f"over the repeats, but for another goal only the state after the last one is known"
            )


@struct.dataclass
class Row:
    """What the replay keeps of a step, (N, ...) each; see `Step`. Where the physics blew up `traj_id` is -1, as in a
    row that was never filled: such a row belongs to no trajectory and is never drawn."""

    state: jax.Array
    action: jax.Array
    goal: jax.Array
    reward: jax.Array
    next_state: jax.Array
    terminated: jax.Array
    traj_id: jax.Array


@struct.dataclass
class Picks:
    """What the updates of a training step learn from.

    Attributes:
      row: (U, B) flat numbers of rows.
      goal_row: (U, B) the row whose next state holds the goal in hindsight, -1 where the commanded goal stays; None if
        it stays everywhere.
      number: (U,) the number of the update, the same for all seeds.
    """

    row: jax.Array
    goal_row: jax.Array | None
    number: jax.Array


@struct.dataclass
class Batch:
    """What one update learns from, (B, ...) each: the row's state, action and next state, the goal that it learns to
    reach and the reward for that goal, and whether the environment ended the episode. `number` () as in `Picks`."""

    state: jax.Array
    action: jax.Array
    goal: jax.Array
    reward: jax.Array
    next_state: jax.Array
    terminated: jax.Array
    number: jax.Array


def learner(config: HindsightConfig, env: GoalEnv, networks: Any, **own: Any) -> Algorithm:
    """An algorithm that learns from these rows, with its `own` init, act, propose and update; `networks` has an
    `actor`, `values` and `goal_indices`."""
    return Algorithm(
        init_memory=lambda shape: (),
        keep=keep,
        absorb=agent.absorb_states,
        index=index,
        draw=partial(draw, config),
        gather=partial(gather, env),
        energy=partial(least_value, networks),
        drawable=lambda index: index.rank[-1],
        actor=networks.actor,
        **own,
    )


def keep(step: Step) -> Row:
    """The row of a step."""
    return Row(
        state=step.state,
        action=step.action,
        goal=step.goal,
        reward=step.reward,
        next_state=step.next_state,
        terminated=step.terminated,
        traj_id=jnp.where(step.blown_up, -1, step.traj_id),
    )


def index(buffer_state: replay_buffer.BufferState) -> replay_buffer.FutureIndex:
    """Where trajectories end; every row of one can be drawn."""
    return replay_buffer.index_futures(buffer_state, least=0)


def draw(
    config: HindsightConfig,
    agent_state: Any,
    buffer_state: replay_buffer.BufferState,
    index: replay_buffer.FutureIndex,
    key: jax.Array,
) -> Picks:
    """All rows of a training step at once, uniform; without hindsight, the same rows for the same key."""
    del agent_state, buffer_state
    row_key, share_key, rule_key = jax.random.split(key, 3)
    updates = config.updates_per_training_step()
    shape = (updates, config.batch_size)
    row = replay_buffer.sample_rows(row_key, index, shape)
    goal_row = None
    if config.her_ratio:
        # This row's next state is the first candidate, one step ahead.
        num_candidates = index.num_future.reshape(-1)[row] + 1
        rule = HER_RULES[config.her_rule]
        ahead = rule(jax.random.uniform(rule_key, shape), num_candidates, config.discounting)
        later = replay_buffer.later_row(row, ahead - 1, index.num_future.shape)
        goal_row = jnp.where(jax.random.uniform(share_key, shape) < config.her_ratio, later, -1)
    return Picks(row, goal_row, jnp.arange(updates))


def gather(env: GoalEnv, rows: Row, index: Any, picks: Picks) -> Batch:
    """The batch of (B,) picks. A goal in hindsight is rewarded as the environment's sparse reward would."""
    del index
    row = replay_buffer.take(rows.replace(traj_id=None), picks.row)
    goal, reward = row.goal, row.reward
    if picks.goal_row is not None:
        relabelled = picks.goal_row >= 0
        reached = replay_buffer.take(rows.next_state, jnp.maximum(picks.goal_row, 0))[:, jnp.array(env.goal_indices)]
        goal = jnp.where(relabelled[:, None], reached, goal)
        success = env.goal_distance(row.next_state, goal) < env.goal_dist
        reward = jnp.where(relabelled, success.astype(reward.dtype), reward)
    return Batch(row.state, row.action, goal, reward, row.next_state, row.terminated, picks.number)


def normalize(normalizer: agent.Normalizer | None, goal_indices: tuple[int, ...], batch: Batch) -> Batch:
    """The batch with both states and the goal as the networks see them."""
    state, goal = agent.normalize(normalizer, goal_indices, batch.state, batch.goal)
    next_state, _ = agent.normalize(normalizer, goal_indices, batch.next_state, batch.goal)
    return batch.replace(state=state, goal=goal, next_state=next_state)
