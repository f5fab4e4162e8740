"""What happens in a run: collect -> insert -> index -> draw -> gather -> update is one `training_step`.

All of it is pure and stays on the device; `over_seeds` makes of it the program of several seeds. Shapes: T steps of an
unroll, N envs, B batch, U updates per training step.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs.base import EnvState
from envs.wrappers import choose
from src import devices, replay_buffer
from src.algorithm import Step, policy_of, step_shapes
from src.devices import ENV_AXIS, SEED_AXIS
from src.evaluator import evaluate
from src.goals import PROPOSALS
from src.program import Program


@struct.dataclass
class TrainState:
    """Everything a run is: what learns, where the envs stand, what they have seen, and the key all chance flows from.

    Attributes:
      agent_state: parameters, optimisers, normaliser.
      env_state: (N, ...) the running episodes.
      memory: (N, ...) what the policy remembers of them.
      first_env_state: (N, ...) the starts that `fresh_goals` off returns to; None when every episode draws its own.
      buffer_state: the replay.
      key: the random key of the coming training step.
      env_resets_nonfinite: (N,) how often each env was restarted since the last evaluation because its physics blew up.
    """

    agent_state: Any
    env_state: EnvState
    memory: Any
    first_env_state: EnvState | None
    buffer_state: replay_buffer.BufferState
    key: jax.Array
    env_resets_nonfinite: jax.Array


# The start of a run.


def init_run(program: Program, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state before the first step, and the metric sums of the first epoch."""
    train_state = init(program, key)
    return train_state, metric_zeros(program, train_state)


def init(program: Program, key: jax.Array) -> TrainState:
    """The state of a run before its first step."""
    config, env = program.config, program.env
    agent_key, env_key, key = jax.random.split(key, 3)
    env_state = env.reset(env_key, config.num_envs)
    return TrainState(
        agent_state=program.algorithm.init(agent_key),
        env_state=env_state,
        memory=program.algorithm.init_memory((config.num_envs,)),
        first_env_state=None if config.fresh_goals else env_state,
        buffer_state=empty_replay(program),
        key=key,
        env_resets_nonfinite=jnp.zeros(config.num_envs, jnp.int32),
    )


def empty_replay(program: Program) -> replay_buffer.BufferState:
    """The replay before its first row."""
    steps = step_shapes(program.env.env, program.config.num_envs)
    return replay_buffer.init(program.schedule.replay_rows, jax.eval_shape(program.algorithm.keep, steps))


def metric_zeros(program: Program, train_state: TrainState) -> dict[str, jax.Array]:
    """The metric sums of an epoch before its first update."""

    def metrics(train_state: TrainState) -> dict[str, jax.Array]:
        draw_key, update_key = jax.random.split(jax.random.key(0))  # only shapes are looked at
        index, picks = draw(program, train_state, draw_key)
        return update(program, train_state, index, picks, 0, update_key)[1]

    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), jax.eval_shape(metrics, train_state))


# One training step, top down.


def training_step(
    program: Program, train_state: TrainState, totals: dict[str, jax.Array], num_updates: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Collects `unroll_length` steps in every env, does `num_updates` updates, adds their mean metrics to `totals`.

    The prefill is a training step without updates.
    """
    train_state = collect(program, train_state)
    key, draw_key, update_key = jax.random.split(train_state.key, 3)
    drawn = draw(program, train_state, draw_key)
    zeros = jax.tree.map(jnp.zeros_like, totals)
    agent_state, metrics = learn(program, train_state, drawn, num_updates, zeros, update_key)
    return train_state.replace(agent_state=agent_state, key=key), jax.tree.map(jnp.add, totals, metrics)


class Unroll(NamedTuple):
    """What one step of an unroll hands to the next: the envs, the policy's memory, the fresh starts used so far."""

    env_state: EnvState
    memory: Any
    used: jax.Array


def collect(program: Program, train_state: TrainState) -> TrainState:
    """Unrolls the policy and stores what happened."""
    config, env, algorithm = program.config, program.env, program.algorithm
    key, pool_key, act_key = jax.random.split(train_state.key, 3)
    pool = fresh_starts(program, train_state, pool_key) if config.fresh_goals else None

    def step(unroll: Unroll, step_key: jax.Array) -> tuple[Unroll, tuple[Any, jax.Array]]:
        after, memory, happened = take_step(program, train_state.agent_state, *unroll[:2], step_key)
        memory = choose(after.done > 0, algorithm.init_memory((config.num_envs,)), memory)
        if pool is None:
            unroll = Unroll(env.begin(after, train_state.first_env_state), memory, unroll.used)
        else:
            env_state, used = env.restart(after, pool, unroll.used)
            unroll = Unroll(env_state, memory, used)
        return unroll, (algorithm.keep(happened), happened.blown_up)

    unroll = Unroll(train_state.env_state, train_state.memory, jnp.zeros((), jnp.int32))
    unroll, (rows, blown_up) = jax.lax.scan(step, unroll, jax.random.split(act_key, config.unroll_length))
    return train_state.replace(
        agent_state=algorithm.absorb(train_state.agent_state, rows),
        env_state=unroll.env_state,
        memory=unroll.memory,
        buffer_state=replay_buffer.insert(train_state.buffer_state, rows),
        key=key,
        env_resets_nonfinite=train_state.env_resets_nonfinite + jnp.sum(blown_up, axis=0, dtype=jnp.int32),
    )


def fresh_starts(program: Program, train_state: TrainState, key: jax.Array) -> EnvState:
    """The starts of the episodes that begin in an unroll, with the goals that `goal_proposal` commands."""
    config, env = program.config, program.env
    size, propose = env.pool_size(config.num_envs, config.unroll_length), PROPOSALS[config.goal_proposal]
    if propose is None:
        return env.reset(key, size)
    reset_key, goal_key, own_key = jax.random.split(key, 3)
    own = jax.vmap(env.env.sample_goal)(jax.random.split(own_key, size))
    goals = propose(goal_key, train_state.buffer_state, own, tuple(env.env.goal_indices))
    return env.reset(reset_key, size, goals)


def take_step(
    program: Program, agent_state: Any, env_state: EnvState, memory: Any, key: jax.Array
) -> tuple[EnvState, Any, Step]:
    """One step of the policy in every env: the env state before any restart, the memory, and what happened."""
    act = program.algorithm.explore or program.algorithm.act
    action, memory = act(agent_state, memory, env_state.obs, key)
    after = program.env.step(env_state, action)
    blown_up = program.env.nonfinite(after)
    truncated = after.truncation > 0
    return (
        after,
        memory,
        Step(
            state=env_state.state,
            goal=env_state.goal,
            action=action,
            next_state=choose(blown_up, env_state.state, after.state),
            reward=after.reward,
            terminated=(after.done > 0) & ~truncated & ~blown_up,
            truncated=truncated,
            blown_up=blown_up,
            traj_id=env_state.traj_id,
        ),
    )


def draw(program: Program, train_state: TrainState, key: jax.Array) -> tuple[Any, Any]:
    """The index of the replay and the picks of all updates of a training step."""
    index = program.algorithm.index(train_state.buffer_state)
    return index, program.algorithm.draw(train_state.agent_state, train_state.buffer_state, index, key)


def learn(
    program: Program,
    train_state: TrainState,
    drawn: tuple[Any, Any],
    num_updates: jax.Array,
    zeros: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
    """One update for each of the first `num_updates` picks of `drawn`.

    Returns the agent state and the mean of each metric over the updates, with the keys of `zeros` (and equal to it if
    there were no updates). The sums are one array, since each array would be a kernel of its own.
    """

    def step(i: jax.Array, carry: tuple[Any, jax.Array]) -> tuple[Any, jax.Array]:
        agent_state, sums = carry
        now = train_state.replace(agent_state=agent_state)
        agent_state, metrics = update(program, now, *drawn, i, jax.random.fold_in(key, i))
        return agent_state, sums + jnp.stack([metrics[name] for name in zeros])

    carry = train_state.agent_state, jnp.stack(list(zeros.values()))
    agent_state, sums = jax.lax.fori_loop(0, num_updates, step, carry)
    return agent_state, dict(zip(zeros, sums / jnp.maximum(num_updates, 1), strict=True))


def update(
    program: Program, train_state: TrainState, index: Any, picks: Any, number: jax.Array | int, key: jax.Array
) -> tuple[Any, dict[str, jax.Array]]:
    """The agent state after the update of pick `number`, and its metrics."""
    pick = jax.tree.map(lambda leaf: leaf[number], picks)
    batch = program.algorithm.gather(train_state.buffer_state.rows, index, pick)
    by_row = devices.sharding(program.mesh, ENV_AXIS)
    # A number that the whole batch shares is on every device.
    batch = jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, by_row) if leaf.ndim else leaf, batch)
    agent_state, metrics = program.algorithm.update(train_state.agent_state, batch, key)
    return agent_state, {name: jnp.asarray(metric, jnp.float32) for name, metric in metrics.items()}


# What is compiled besides the start: a number of training steps, an evaluation, a look at the replay.


def train_chunk(
    program: Program,
    train_state: TrainState,
    totals: dict[str, jax.Array],
    num_steps: jax.Array,
    num_updates: jax.Array,
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`num_steps` training steps of `num_updates` each. The counts are values, so one program serves every chunk of
    every epoch, and the prefill."""

    def step(_, carry):
        return training_step(program, *carry, num_updates)

    return jax.lax.fori_loop(0, num_steps, step, (train_state, totals))


def evaluation(program: Program, agent_state: Any, key: jax.Array, training_steps: jax.Array) -> dict[str, jax.Array]:
    """Metrics of the current policy on the frozen goals; `key` and the training steps done draw its actions."""
    config = program.config
    policy = policy_of(program.algorithm, agent_state, config.deterministic_eval)
    return evaluate(program.eval_env, policy, config.num_eval_envs, jax.random.fold_in(key, training_steps))


def count_drawable(program: Program, buffer_state: replay_buffer.BufferState) -> jax.Array:
    """() how many rows of the replay an update can be drawn from."""
    algorithm = program.algorithm
    if algorithm.drawable is None:
        return buffer_state.size * program.config.num_envs
    return algorithm.drawable(algorithm.index(buffer_state))


def state_shardings(program: Program, several_seeds: bool) -> TrainState:
    """Where the arrays of a `TrainState` are: seeds spread, environments and replay columns split, the rest whole."""
    lead = (SEED_AXIS,) if several_seeds else ()
    axes = ((), (ENV_AXIS,), (None, ENV_AXIS))
    whole, by_env, by_column = (devices.sharding(program.mesh, *lead, *each) for each in axes)
    return TrainState(
        agent_state=whole,
        env_state=by_env,
        memory=by_env,
        first_env_state=by_env,
        buffer_state=replay_buffer.BufferState(rows=by_column, position=whole, size=whole),
        key=whole,
        env_resets_nonfinite=whole,
    )


def over_seeds(function: Callable, several_seeds: bool, seed_axes: Any = 0) -> Callable:
    """The function of one seed for all of them, spread over the devices; itself if there is one seed only."""
    return jax.vmap(function, seed_axes, spmd_axis_name=SEED_AXIS) if several_seeds else function
