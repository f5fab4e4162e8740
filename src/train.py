"""The training loop: collect -> insert -> sample -> update is one `training_step`; an epoch is many, on the device."""

import functools
import math
import time
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from flax import struct

from envs import make_env
from envs.base import EnvState, GoalEnv
from envs.wrappers import VectorEnv
from src import crl, replay_buffer
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
    """

    agent_state: Any
    env_state: EnvState
    first_env_state: EnvState | None
    buffer_state: replay_buffer.BufferState
    key: jax.Array
    training_steps: jax.Array


class Algorithm(NamedTuple):
    """What the loop needs of an algorithm; `init(key)`, `act(agent_state, obs, key)`, `update(agent_state, batch, key)`,
    and `observe(agent_state, states)` for statistics of the data."""

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
      ValueError: unknown env or backend, or an `eval_env` whose sizes differ from the training env's.
    """
    env = make_env(config.env_name, config.backend, config.use_dense_reward)
    eval_env = make_env(config.eval_env or config.env_name, config.backend, config.use_dense_reward)
    sizes = [(e.state_dim, tuple(e.goal_indices), e.action_size) for e in (env, eval_env)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"eval_env {config.eval_env} does not fit env_name {config.env_name}: "
            f"state, goal indices and action are {sizes[1]}, need {sizes[0]}"
        )
    vector = functools.partial(VectorEnv, episode_length=config.episode_length, action_repeat=config.action_repeat)
    return Program(config, schedule, vector(env), vector(eval_env), contrastive_rl(config, env))


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
        buffer_state=replay_buffer.init(
            program.schedule.replay_rows, config.num_envs, env.env.state_dim, env.env.action_size
        ),
        key=key,
        training_steps=jnp.zeros((), jnp.int32),
    )


def training_step(program: Program, train_state: TrainState) -> tuple[TrainState, dict[str, jax.Array]]:
    """Collects `unroll_length` steps in every env, then does the scheduled updates; returns their mean metrics."""
    train_state = collect(program, train_state)
    key, sample_key, update_key = jax.random.split(train_state.key, 3)
    pairs = sample_pairs(program, train_state.buffer_state, sample_key)
    agent_state, metrics = learn(program, train_state, pairs, update_key)
    metrics["buffer_current_size"] = train_state.buffer_state.size * program.config.num_envs
    return train_state.replace(agent_state=agent_state, key=key), metrics


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
        if pool is None:
            env_state = env.begin(env_state, train_state.first_env_state)
        else:
            env_state, used = env.restart(env_state, pool, used)
        return (env_state, used), row

    start = (train_state.env_state, jnp.zeros((), jnp.int32))
    (env_state, _), rows = jax.lax.scan(step, start, jax.random.split(act_key, config.unroll_length))
    return train_state.replace(
        agent_state=program.algorithm.observe(train_state.agent_state, rows.state),
        env_state=env_state,
        buffer_state=replay_buffer.insert(train_state.buffer_state, rows),
        key=key,
        training_steps=train_state.training_steps + 1,
    )


def sample_pairs(program: Program, buffer_state: replay_buffer.BufferState, key: jax.Array):
    """Row numbers of all batches of a training step at once: (updates, B) rows and the future rows of their goals."""
    config = program.config
    shape = (program.schedule.updates_per_training_step, config.batch_size)
    index = replay_buffer.index_futures(buffer_state)
    return replay_buffer.sample_pairs(key, index, shape, config.discounting)


def learn(program: Program, train_state: TrainState, pairs: tuple[jax.Array, jax.Array], key: jax.Array):
    """One update per batch of `pairs`; returns the agent state and the mean of each metric over the updates."""
    rows = train_state.buffer_state.rows

    def step(agent_state, inputs):
        row, future_row, update_key = inputs
        return program.algorithm.update(agent_state, replay_buffer.gather(rows, row, future_row), update_key)

    inputs = (*pairs, jax.random.split(key, pairs[0].shape[0]))
    agent_state, metrics = jax.lax.scan(step, train_state.agent_state, inputs)
    return agent_state, jax.tree.map(functools.partial(jnp.mean, axis=0), metrics)


# What is compiled: the start, the prefill, a number of training steps, an evaluation.


def prefill(program: Program, train_state: TrainState) -> TrainState:
    """Fills the replay with what the untrained policy does."""
    return jax.lax.fori_loop(
        0, program.schedule.prefill_steps, lambda _, state: collect(program, state), train_state
    )


def metric_zeros(program: Program, train_state: TrainState) -> dict[str, jax.Array]:
    """Where the metric sums of an epoch begin."""
    _, shapes = jax.eval_shape(functools.partial(training_step, program), train_state)
    return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32), shapes)


def train_chunk(
    program: Program, train_state: TrainState, totals: dict[str, jax.Array], num_steps: jax.Array
) -> tuple[TrainState, dict[str, jax.Array]]:
    """`num_steps` training steps, their metrics added to `totals`. The count is a value, so one program serves all."""

    def step(_, carry):
        train_state, totals = carry
        train_state, metrics = training_step(program, train_state)
        return train_state, jax.tree.map(jnp.add, totals, metrics)

    return jax.lax.fori_loop(0, num_steps, step, (train_state, totals))


def evaluation(program: Program, agent_state: Any, key: jax.Array) -> dict[str, jax.Array]:
    """Metrics of the current policy on the frozen goals."""
    config = program.config
    policy = functools.partial(program.algorithm.act, agent_state, deterministic=config.deterministic_eval)
    return evaluate(program.eval_env, policy, config.num_eval_envs, key)


class Compiled(NamedTuple):
    """The compiled functions of a run."""

    prefill: Callable[..., TrainState]
    train_chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluation: Callable[..., dict[str, jax.Array]]


def compile_program(program: Program, train_state: TrainState, totals, announce: Callable[[str], None]) -> Compiled:
    """Compiles everything before the first step, saying what takes how long."""

    def build(name: str, function: Callable, donate: tuple[int, ...], *args) -> Callable:
        announce(f"compiling {name} ...")
        start = time.monotonic()
        compiled = jax.jit(functools.partial(function, program), donate_argnums=donate).lower(*args).compile()
        announce(f"compiling {name} ... {time.monotonic() - start:.0f} s\n")
        return compiled

    key, count = jax.random.key(0), jnp.zeros((), jnp.int32)  # examples of their types
    return Compiled(
        prefill=build("prefill", prefill, (0,), train_state),
        train_chunk=build("training", train_chunk, (0, 1), train_state, totals, count),
        evaluation=build("evaluation", evaluation, (), train_state.agent_state, key),
    )


# The loop in Python: evaluate, train, report. It sees numbers, never arrays of the run.


class Report(NamedTuple):
    """What an evaluation hands to the caller. `agent_state` is valid until the next report is asked for."""

    env_steps: int
    metrics: dict[str, float]
    agent_state: Any


def run(
    program: Program,
    announce: Callable[[str], None],
    progress: Callable[[int, float], None],
    seconds_per_chunk: float = 2.0,
) -> Iterator[Report]:
    """Trains to the end of the schedule, yielding a `Report` at every evaluation.

    Args:
      announce: receives what is being compiled and how long it took.
      progress: receives env steps so far and env steps per second, every few seconds.
      seconds_per_chunk: how long one call into the compiled program may take; changes no number.

    Raises:
      FloatingPointError: a metric is not finite; the run has gone wrong and says which and when.
    """
    config, schedule = program.config, program.schedule
    init_key, eval_key = jax.random.split(jax.random.key(config.seed))
    train_state = jax.jit(functools.partial(init, program))(init_key)
    zeros = metric_zeros(program, train_state)
    compiled = compile_program(program, train_state, zeros, announce)
    clock = Clock(schedule.env_steps_per_training_step, seconds_per_chunk, progress)

    def evaluated(number: int, metrics: dict[str, float]) -> Report:
        start = time.monotonic()
        key = jax.random.fold_in(eval_key, number)
        values = jax.device_get(compiled.evaluation(train_state.agent_state, key))
        elapsed = time.monotonic() - start
        clock.eval_seconds += elapsed
        metrics |= {f"eval/{name}": float(value) for name, value in values.items()}
        metrics["eval/sps"] = config.num_eval_envs * config.episode_length / elapsed
        metrics["eval/walltime"] = clock.eval_seconds
        require_finite(metrics, clock.env_steps)
        return Report(clock.env_steps, metrics, train_state.agent_state)

    if config.num_evals > 1:
        yield evaluated(0, {})
    train_state = clock.timed(schedule.prefill_steps, lambda: compiled.prefill(train_state))
    for number, num_steps in enumerate(schedule.epoch_lengths, start=1):
        clock.start_epoch()
        totals = jax.tree.map(jnp.copy, zeros)
        for chunk in clock.chunks(num_steps):
            count = jnp.asarray(chunk, jnp.int32)
            arguments = (train_state, totals, count)
            train_state, totals = clock.timed(chunk, lambda arguments=arguments: compiled.train_chunk(*arguments))
        metrics = {f"training/{name}": float(total) / num_steps for name, total in jax.device_get(totals).items()}
        metrics["training/sps"] = clock.epoch_speed()
        metrics["training/walltime"] = clock.train_seconds
        yield evaluated(number, metrics)


class Clock:
    """Counts env steps and seconds of training, and cuts an epoch into chunks of a few seconds."""

    def __init__(self, env_steps_per_training_step: int, seconds_per_chunk: float, progress: Callable):
        self.env_steps_per_training_step = env_steps_per_training_step
        self.seconds_per_chunk = seconds_per_chunk
        self.progress = progress
        self.env_steps = 0
        self.train_seconds = 0.0
        self.eval_seconds = 0.0
        self.step_seconds = float("inf")
        self.start_epoch()

    def start_epoch(self) -> None:
        self.epoch_start = (self.env_steps, self.train_seconds)

    def epoch_speed(self) -> float:
        """Env steps per second of training in this epoch."""
        return (self.env_steps - self.epoch_start[0]) / max(self.train_seconds - self.epoch_start[1], 1e-9)

    def chunks(self, num_steps: int) -> Iterator[int]:
        """Splits `num_steps` training steps into calls of about `seconds_per_chunk`, by the speed measured last."""
        while num_steps > 0:
            chunk = min(num_steps, max(1, int(self.seconds_per_chunk / self.step_seconds)))
            yield chunk
            num_steps -= chunk

    def timed(self, training_steps: int, call: Callable[[], Any]) -> Any:
        """Runs `call` to its end on the device, and books its steps and seconds."""
        start = time.monotonic()
        result = jax.block_until_ready(call())
        elapsed = time.monotonic() - start
        self.train_seconds += elapsed
        self.step_seconds = elapsed / training_steps
        self.env_steps += training_steps * self.env_steps_per_training_step
        self.progress(self.env_steps, self.env_steps_per_training_step / self.step_seconds)
        return result


def require_finite(metrics: dict[str, float], env_steps: int) -> None:
    """Raises FloatingPointError naming the first metric that is not finite."""
    for name, value in metrics.items():
        if not math.isfinite(value):
            raise FloatingPointError(f"{name} is {value} at env step {env_steps:,}")
