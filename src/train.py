"""The training loop: collect -> insert -> sample -> update is one `training_step`; an epoch is many, on the device."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from envs import make_env
from envs.base import EnvState, GoalEnv
from envs.wrappers import VectorEnv
from src import devices, replay_buffer
from src.algorithms import crl
from src.devices import ENVS, SEEDS
from src.evaluator import evaluate
from utils import Config, Schedule


@struct.dataclass
class TrainState:
    """Everything a run is: what learns, where the envs stand, what they have seen, and the key all chance flows from.

    Attributes:
      agent_state: parameters, optimisers, normaliser.
      env_state: (N, ...) the running episodes.
      first_env_state: (N, ...) the starts that `fresh_goals` off returns to; None when every episode draws its own.
      buffer_state: the replay.
      key: the random key of the coming training step.
      training_steps: () training steps done, the prefill's included.
      env_resets_nonfinite: (N,) how often each env was restarted since the last evaluation because its physics blew up.
    """

    agent_state: Any
    env_state: EnvState
    first_env_state: EnvState | None
    buffer_state: replay_buffer.BufferState
    key: jax.Array
    training_steps: jax.Array
    env_resets_nonfinite: jax.Array


class Algorithm(NamedTuple):
    """What the loop needs of an algorithm: `init(key)`, `act(agent_state, obs, key)`,
    `update(agent_state, batch, key)`, whose metrics are () floats, and `observe(agent_state, states)`, which keeps
    statistics of the data."""

    init: Callable[..., Any]
    act: Callable[..., jax.Array]
    update: Callable[..., tuple[Any, dict[str, jax.Array]]]
    observe: Callable[..., Any]


class Program(NamedTuple):
    """The static parts of a run, shared by all its jitted functions."""

    config: Config
    schedule: Schedule
    env: VectorEnv
    eval_env: VectorEnv
    algorithm: Algorithm
    mesh: jax.sharding.Mesh


def contrastive_rl(config: Config, env: GoalEnv) -> Algorithm:
    """CRL bound to one config and env."""
    networks = crl.make_networks(config, env)
    return Algorithm(
        init=functools.partial(crl.init, config, networks),
        act=functools.partial(crl.act, networks),
        update=functools.partial(crl.update, config, networks),
        observe=lambda agent, states: agent.replace(normalizer=crl.observe(agent.normalizer, states)),
    )


def make_program(config: Config, schedule: Schedule) -> Program:
    """Builds environments and algorithm.

    Raises:
      ValueError: unknown env or backend, an `eval_env` whose sizes differ from the training env's, or sizes that do
        not divide among the devices.
    """
    env = make_env(config.env_name, config.backend, config.use_dense_reward)
    eval_env = make_env(config.eval_env or config.env_name, config.backend, config.use_dense_reward)
    sizes = [(e.state_dim, tuple(e.goal_indices), e.action_size) for e in (env, eval_env)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"eval_env {config.eval_env} does not fit env_name {config.env_name}: "
            f"state, goal indices and action are {sizes[1]}, need {sizes[0]}"
        )
    mesh = devices.make_mesh(config)
    vector = functools.partial(
        VectorEnv,
        episode_length=config.episode_length,
        action_repeat=config.action_repeat,
        sharding=devices.sharding(mesh, ENVS),
    )
    return Program(config, schedule, vector(env), vector(eval_env), contrastive_rl(config, env), mesh)


def beside_training(program: Program) -> Program:
    """The same program with its evaluation on one device of this process: for what is drawn or measured besides."""
    env = program.eval_env
    return program._replace(eval_env=VectorEnv(env.env, env.episode_length, env.action_repeat))


# One training step, top down. All of it is pure; the seed axis is a vmap around it.


def init(program: Program, key: jax.Array) -> TrainState:
    """The state of a run before its first step."""
    config, env = program.config, program.env
    agent_key, env_key, key = jax.random.split(key, 3)
    env_state = env.reset(env_key, config.num_envs)
    return TrainState(
        agent_state=program.algorithm.init(agent_key),
        env_state=env_state,
        first_env_state=None if config.fresh_goals else env_state,
        buffer_state=empty_replay(program),
        key=key,
        training_steps=jnp.zeros((), jnp.int32),
        env_resets_nonfinite=jnp.zeros(config.num_envs, jnp.int32),
    )


def empty_replay(program: Program) -> replay_buffer.BufferState:
    """The replay before its first row."""
    env, schedule = program.env.env, program.schedule
    return replay_buffer.init(schedule.replay_rows, program.config.num_envs, env.state_dim, env.action_size)


def training_step(
    program: Program, train_state: TrainState, totals: dict[str, jax.Array], num_updates: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """Collects `unroll_length` steps in every env, does `num_updates` updates, adds their mean metrics to `totals`.

    The prefill is a training step without updates.
    """
    train_state = collect(program, train_state)
    key, sample_key, update_key = jax.random.split(train_state.key, 3)
    pairs = sample_pairs(program, train_state.buffer_state, sample_key)
    agent_state, metrics = learn(
        program, train_state, pairs, num_updates, jax.tree.map(jnp.zeros_like, totals), update_key
    )
    return train_state.replace(agent_state=agent_state, key=key), jax.tree.map(jnp.add, totals, metrics)


def collect(program: Program, train_state: TrainState) -> TrainState:
    """Unrolls the policy and stores what happened."""
    config, env = program.config, program.env
    key, pool_key, act_key = jax.random.split(train_state.key, 3)
    pool = env.reset(pool_key, env.pool_size(config.num_envs, config.unroll_length)) if config.fresh_goals else None

    def step(carry: tuple[EnvState, jax.Array], step_key: jax.Array):
        env_state, used = carry
        action = program.algorithm.act(train_state.agent_state, env_state.obs, step_key)
        row = replay_buffer.Rows(env_state.state, action, env_state.traj_id)
        env_state = env.step(env_state, action)
        blown_up = env.nonfinite(env_state)
        if pool is None:
            env_state = env.begin(env_state, train_state.first_env_state)
        else:
            env_state, used = env.restart(env_state, pool, used)
        return (env_state, used), (row, blown_up)

    start = (train_state.env_state, jnp.zeros((), jnp.int32))
    (env_state, _), (rows, blown_up) = jax.lax.scan(step, start, jax.random.split(act_key, config.unroll_length))
    return train_state.replace(
        agent_state=program.algorithm.observe(train_state.agent_state, rows.state),
        env_state=env_state,
        buffer_state=replay_buffer.insert(train_state.buffer_state, rows),
        key=key,
        training_steps=train_state.training_steps + 1,
        env_resets_nonfinite=train_state.env_resets_nonfinite + jnp.sum(blown_up, axis=0, dtype=jnp.int32),
    )


def sample_pairs(program: Program, buffer_state: replay_buffer.BufferState, key: jax.Array):
    """Row numbers of all batches of a training step at once: (updates, B) rows and the future rows of their goals."""
    config = program.config
    shape = (program.schedule.updates_per_training_step, config.batch_size)
    index = replay_buffer.index_futures(buffer_state)
    return replay_buffer.sample_pairs(key, index, shape, config.discounting)


def learn(
    program: Program,
    train_state: TrainState,
    pairs: tuple[jax.Array, jax.Array],
    num_updates: jax.Array,
    zeros: dict[str, jax.Array],
    key: jax.Array,
) -> tuple[Any, dict[str, jax.Array]]:
    """One update for each of the first `num_updates` batches of `pairs`.

    Returns the agent state and the mean of each metric over the updates (`zeros` if there were none).
    """
    rows, by_row = train_state.buffer_state.rows, devices.sharding(program.mesh, ENVS)

    def step(i: jax.Array, carry):
        agent_state, sums = carry
        batch = replay_buffer.gather(rows, pairs[0][i], pairs[1][i])
        batch = jax.lax.with_sharding_constraint(batch, by_row)
        agent_state, metrics = program.algorithm.update(agent_state, batch, jax.random.fold_in(key, i))
        return agent_state, sums + jnp.stack([metrics[name] for name in zeros])  # one array: one kernel

    start = train_state.agent_state, jnp.stack(list(zeros.values()))
    agent_state, sums = jax.lax.fori_loop(0, num_updates, step, start)
    return agent_state, dict(zip(zeros, sums / jnp.maximum(num_updates, 1), strict=True))


def metric_zeros(program: Program, agent_state: Any) -> dict[str, jax.Array]:
    """Where the metric sums of an epoch begin."""
    env, size = program.env.env, program.config.batch_size
    state, action = jnp.zeros((size, env.state_dim)), jnp.zeros((size, env.action_size))
    batch = replay_buffer.Batch(state=state, action=action, future_state=state)
    _, shapes = jax.eval_shape(program.algorithm.update, agent_state, batch, jax.random.key(0))
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)


# What is compiled: the start, a number of training steps, an evaluation.


def state_shardings(program: Program, several_seeds: bool) -> TrainState:
    """Where the arrays of a `TrainState` are: seeds spread, environments and replay columns split, the rest whole."""
    lead = (SEEDS,) if several_seeds else ()
    whole, by_env, by_column = (devices.sharding(program.mesh, *lead, *axes) for axes in ((), (ENVS,), (None, ENVS)))
    return TrainState(
        agent_state=whole,
        env_state=by_env,
        first_env_state=by_env,
        buffer_state=replay_buffer.BufferState(rows=by_column, position=whole, size=whole),
        key=whole,
        training_steps=whole,
        env_resets_nonfinite=whole,
    )


def over_seeds(function: Callable, several_seeds: bool, seed_axes: Any = 0) -> Callable:
    """The function of one seed for all of them, spread over the devices; itself if there is one seed only."""
    return jax.vmap(function, seed_axes, spmd_axis_name=SEEDS) if several_seeds else function


def start(program: Program, key: jax.Array) -> tuple[TrainState, dict[str, jax.Array]]:
    """The state before the first step, and the metric sums of the first epoch."""
    train_state = init(program, key)
    return train_state, metric_zeros(program, train_state.agent_state)


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
    policy = functools.partial(program.algorithm.act, agent_state, deterministic=config.deterministic_eval)
    return evaluate(program.eval_env, policy, config.num_eval_envs, jax.random.fold_in(key, training_steps))


class Compiled(NamedTuple):
    """The compiled functions of a run; their arrays have a leading seed axis when there are several seeds."""

    train_chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluation: Callable[..., dict[str, jax.Array]]


def compile_program(
    program: Program, several_seeds: bool, train_state: TrainState, totals: Any, announce: Callable[[str], None]
) -> Compiled:
    """Compiles everything before the first step, side by side, saying how long it takes. State and totals are shapes:
    a run that starts and one that goes on must get the same program."""

    everywhere = devices.sharding(program.mesh)
    state_and_totals = (state_shardings(program, several_seeds), everywhere)

    def lower(function: Callable, seed_axes: tuple, donate: tuple[int, ...], out_shardings: Any, *args) -> Any:
        function = over_seeds(functools.partial(function, program), several_seeds, seed_axes)
        return jax.jit(function, donate_argnums=donate, out_shardings=out_shardings).lower(*args)

    announce("compiling training and evaluation ...")
    started = time.monotonic()
    count = np.int32(0)
    lowered = (
        lower(train_chunk, (0, 0, None, None), (0, 1), state_and_totals, train_state, totals, count, count),
        lower(evaluation, (0, 0, None), (), everywhere, train_state.agent_state, train_state.key, count),
    )
    with ThreadPoolExecutor() as threads:
        compiled = Compiled(*threads.map(lambda each: each.compile(), lowered))
    announce(f"compiling training and evaluation ... {time.monotonic() - started:.0f} s\n")
    return compiled


# The loop in Python: evaluate, train, report. It sees numbers, never the arrays of the run.


@dataclasses.dataclass(frozen=True)
class Position:
    """Where a run stands, in plain numbers.

    Attributes:
      training_steps: done so far, the prefill's included.
      evaluated_at: `training_steps` at the last evaluation; -1 before the first.
      epoch_steps, epoch_seconds: training steps, and what they took, since the last evaluation or the prefill.
      train_seconds, eval_seconds: spent so far.
    """

    training_steps: int = 0
    evaluated_at: int = -1
    epoch_steps: int = 0
    epoch_seconds: float = 0.0
    train_seconds: float = 0.0
    eval_seconds: float = 0.0


class RunState(NamedTuple):
    """All of a run between two moments: `train_state` and the epoch's metric sums `totals` (each with a leading seed
    axis when there are several seeds), and the position."""

    train_state: TrainState
    totals: dict[str, jax.Array]
    position: Position


class Moment(NamedTuple):
    """What the loop hands to its caller every few seconds, and at every evaluation.

    Attributes:
      run_state: valid until the next moment is asked for; its memory is reused then.
      env_steps: env steps so far, of each seed.
      speed: env steps per second of the last chunk, of each seed; None at an evaluation.
      metrics: one dict a seed at an evaluation, else None.
      env_resets: (K, N) at an evaluation, how often the physics of each env blew up since the one before; else None.
    """

    run_state: RunState
    env_steps: int
    speed: float | None
    metrics: list[dict[str, float]] | None
    env_resets: np.ndarray | None = None


def run(
    program: Program,
    seeds: Sequence[int],
    announce: Callable[[str], None],
    resumed: RunState | None = None,
    seconds_per_chunk: float = 2.0,
) -> Iterator[Moment]:
    """Trains all `seeds` together to the end of the schedule.

    Args:
      announce: receives what is being compiled and how long it took.
      resumed: where to go on; None starts anew.
      seconds_per_chunk: how long one call into the compiled program may take; changes no number.
    """
    begin, start_keys, eval_keys = beginning(program, seeds)
    compiled = compile_program(program, len(seeds) > 1, *jax.eval_shape(begin, start_keys), announce)
    run_state = refill(program, compiled, resumed) if resumed else RunState(*begin(start_keys), Position())
    jax.block_until_ready(run_state[:2])  # processes that run several programs at once would mix up their messages
    for eval_at in program.schedule.eval_at:
        while run_state.position.training_steps < eval_at:
            steps_left = eval_at - run_state.position.training_steps
            moment = advance(program, compiled, run_state, steps_left, seconds_per_chunk)
            yield moment
            run_state = moment.run_state
        if run_state.position.evaluated_at < eval_at == run_state.position.training_steps:
            moment = evaluate_now(program, compiled, run_state, eval_keys, len(seeds))
            yield moment
            run_state = moment.run_state


def beginning(program: Program, seeds: Sequence[int]) -> tuple[Callable, jax.Array, jax.Array]:
    """The jitted `start` of all seeds, the keys it takes, and the keys of the evaluations."""
    several_seeds = len(seeds) > 1
    shardings = state_shardings(program, several_seeds)

    def split(seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        return (keys[:, 0], keys[:, 1]) if several_seeds else (keys[0, 0], keys[0, 1])

    start_keys, eval_keys = jax.jit(split, out_shardings=shardings.key)(np.asarray(seeds))
    begin = over_seeds(functools.partial(start, program), several_seeds)
    return jax.jit(begin, out_shardings=(shardings, devices.sharding(program.mesh))), start_keys, eval_keys


def refill(program: Program, compiled: Compiled, run_state: RunState) -> RunState:
    """Fills a replay that the checkpoint left out with a prefill by the current policy; its steps are not counted."""
    train_state, totals, position = run_state
    num_steps = min(program.schedule.prefill_steps, position.training_steps)
    if not num_steps or np.any(devices.fetch(train_state.buffer_state.size)):
        return run_state
    train_state, totals = compiled.train_chunk(train_state, totals, np.int32(num_steps), np.int32(0))
    train_state = train_state.replace(training_steps=train_state.training_steps - num_steps)
    return RunState(train_state, totals, position)


def advance(
    program: Program,
    compiled: Compiled,
    run_state: RunState,
    steps_left: int,
    seconds_per_chunk: float,
) -> Moment:
    """Runs one chunk of at most `steps_left` training steps, sized by the speed since the last evaluation."""
    train_state, totals, position = run_state
    prefill_left = max(program.schedule.prefill_steps - position.training_steps, 0)
    affordable = int(seconds_per_chunk * position.epoch_steps / max(position.epoch_seconds, 1e-6))
    num_steps = min(prefill_left or steps_left, max(affordable, 1))
    num_updates = 0 if prefill_left else program.schedule.updates_per_training_step
    counts = np.int32(num_steps), np.int32(num_updates)
    started = time.monotonic()
    train_state, totals = jax.block_until_ready(compiled.train_chunk(train_state, totals, *counts))
    seconds = devices.of_first_process(time.monotonic() - started)
    position = dataclasses.replace(
        position,
        training_steps=position.training_steps + num_steps,
        epoch_steps=position.epoch_steps + num_steps,
        epoch_seconds=position.epoch_seconds + seconds,
        train_seconds=position.train_seconds + seconds,
    )
    if prefill_left == num_steps:  # the first epoch begins here
        position = dataclasses.replace(position, epoch_steps=0, epoch_seconds=0.0)
    per_step = program.schedule.env_steps_per_training_step
    return Moment(
        run_state=RunState(train_state, totals, position),
        env_steps=position.training_steps * per_step,
        speed=num_steps * per_step / seconds,
        metrics=None,
    )


def evaluate_now(program: Program, compiled: Compiled, run_state: RunState, keys: jax.Array, num_seeds: int) -> Moment:
    """Evaluates, and reports it together with the means over the epoch that ends here."""
    train_state, totals, position = run_state
    config, per_step = program.config, program.schedule.env_steps_per_training_step
    started = time.monotonic()
    values = jax.device_get(compiled.evaluation(train_state.agent_state, keys, np.int32(position.training_steps)))
    seconds = time.monotonic() - started
    eval_seconds = position.eval_seconds + seconds
    metrics = {f"eval/{name}": value for name, value in values.items()}
    metrics["eval/sps"] = config.num_eval_envs * config.episode_length / seconds
    metrics["eval/walltime"] = eval_seconds
    env_resets = devices.fetch(train_state.env_resets_nonfinite)
    if position.epoch_steps:
        means = {name: total / position.epoch_steps for name, total in devices.fetch(totals).items()}
        means["env_resets_nonfinite"] = env_resets.sum(axis=-1)
        means["buffer_current_size"] = config.num_envs * devices.fetch(train_state.buffer_state.size)
        means["sps"] = position.epoch_steps * per_step / position.epoch_seconds
        means["walltime"] = position.train_seconds
        metrics |= {f"training/{name}": value for name, value in means.items()}
    resets = devices.zeros_like(train_state.env_resets_nonfinite)
    position = dataclasses.replace(
        position,
        evaluated_at=position.training_steps,
        epoch_steps=0,
        epoch_seconds=0.0,
        eval_seconds=eval_seconds,
    )
    return Moment(
        run_state=RunState(train_state.replace(env_resets_nonfinite=resets), devices.zeros_like(totals), position),
        env_steps=position.training_steps * per_step,
        speed=None,
        metrics=[
            {name: float(np.broadcast_to(v, num_seeds)[i]) for name, v in metrics.items()} for i in range(num_seeds)
        ],
        env_resets=env_resets.reshape(num_seeds, -1),
    )
