"""The loop in Python around the program: compile, train in chunks, evaluate, report. It sees numbers, never the arrays
of the run."""

import dataclasses
import functools
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import jax
import numpy as np

from src import devices
from src.program import Program
from src.train import TrainState, count_drawable, evaluation, init_run, over_seeds, state_shardings, train_chunk
from utils import FAILURES


class Compiled(NamedTuple):
    """The compiled functions of a run; their arrays have a leading seed axis when there are several seeds."""

    train_chunk: Callable[..., tuple[TrainState, dict[str, jax.Array]]]
    evaluation: Callable[..., dict[str, jax.Array]]
    count_drawable: Callable[..., jax.Array]


def compile_program(
    program: Program, several_seeds: bool, train_state: TrainState, totals: Any, announce: Callable[[str], None]
) -> Compiled:
    """Compiles everything before the first step, side by side, saying how long it takes. State and totals are shapes:
    a run that starts and one that resumes must get the same program."""

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
        lower(count_drawable, (0,), (), everywhere, train_state.buffer_state),
    )
    with ThreadPoolExecutor() as threads:
        compiled = Compiled(*threads.map(lambda each: each.compile(), lowered))
    announce(f"compiling training and evaluation ... {time.monotonic() - started:.0f} s\n")
    return compiled


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
      metrics: one dict per seed at an evaluation, else None.
      env_resets: (K, N) at an evaluation, how often the physics of each env blew up since the one before; else None.
      drawable: (K,) at the end of the prefill and at later evaluations, how many rows can be drawn; else None.
    """

    run_state: RunState
    env_steps: int
    speed: float | None
    metrics: list[dict[str, float]] | None
    env_resets: np.ndarray | None = None
    drawable: np.ndarray | None = None


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
      resumed: where to resume; None starts from nothing.
      seconds_per_chunk: how long one call into the compiled program may take; changes no number.
    """
    init, start_keys, eval_keys = make_init(program, seeds)
    compiled = compile_program(program, len(seeds) > 1, *jax.eval_shape(init, start_keys), announce)
    run_state = refill(program, compiled, resumed) if resumed else RunState(*init(start_keys), Position())
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


def make_init(program: Program, seeds: Sequence[int]) -> tuple[Callable, jax.Array, jax.Array]:
    """The jitted `init_run` of all seeds, the keys it takes, and the keys of the evaluations."""
    several_seeds = len(seeds) > 1
    shardings = state_shardings(program, several_seeds)

    def split(seeds: jax.Array) -> tuple[jax.Array, jax.Array]:
        keys = jax.vmap(lambda seed: jax.random.split(jax.random.key(seed)))(seeds)
        return (keys[:, 0], keys[:, 1]) if several_seeds else (keys[0, 0], keys[0, 1])

    start_keys, eval_keys = jax.jit(split, out_shardings=shardings.key)(np.asarray(seeds))
    init = over_seeds(functools.partial(init_run, program), several_seeds)
    return jax.jit(init, out_shardings=(shardings, devices.sharding(program.mesh))), start_keys, eval_keys


def refill(program: Program, compiled: Compiled, run_state: RunState) -> RunState:
    """Fills a replay that the checkpoint left out with a prefill by the current policy; its steps are not counted."""
    train_state, totals, position = run_state
    num_steps = min(program.schedule.prefill_steps, position.training_steps)
    if not num_steps or np.any(devices.fetch(train_state.buffer_state.size)):
        return run_state
    train_state, totals = compiled.train_chunk(train_state, totals, np.int32(num_steps), np.int32(0))
    return RunState(train_state, totals, position)


def finished(result: Any) -> Any:
    """The arrays of a compiled call once they are there.

    Raises:
      JaxRuntimeError: a physics engine failed, with NaN for its numbers.
    """
    result = jax.block_until_ready(result)
    if FAILURES:
        raise jax.errors.JaxRuntimeError(FAILURES[0])
    return result


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
    train_state, totals = finished(compiled.train_chunk(train_state, totals, *counts))
    seconds = devices.of_first_process(time.monotonic() - started)
    position = dataclasses.replace(
        position,
        training_steps=position.training_steps + num_steps,
        epoch_steps=position.epoch_steps + num_steps,
        epoch_seconds=position.epoch_seconds + seconds,
        train_seconds=position.train_seconds + seconds,
    )
    drawable = None
    if prefill_left == num_steps:  # the first epoch begins here
        position = dataclasses.replace(position, epoch_steps=0, epoch_seconds=0.0)
        drawable = devices.fetch(compiled.count_drawable(train_state.buffer_state)).reshape(-1)
    per_step = program.schedule.env_steps_per_training_step
    return Moment(
        run_state=RunState(train_state, totals, position),
        env_steps=position.training_steps * per_step,
        speed=num_steps * per_step / seconds,
        metrics=None,
        drawable=drawable,
    )


def evaluate_now(program: Program, compiled: Compiled, run_state: RunState, keys: jax.Array, num_seeds: int) -> Moment:
    """Evaluates, and reports it together with the means over the epoch that ends here."""
    train_state, totals, position = run_state
    config, per_step = program.config, program.schedule.env_steps_per_training_step
    started = time.monotonic()
    evaluated = compiled.evaluation(train_state.agent_state, keys, np.int32(position.training_steps))
    values = jax.device_get(finished(evaluated))
    seconds = time.monotonic() - started
    eval_seconds = position.eval_seconds + seconds
    metrics = {f"eval/{name}": value for name, value in values.items()}
    metrics["eval/sps"] = config.num_eval_envs * config.episode_length / seconds
    metrics["eval/walltime"] = eval_seconds
    env_resets, drawable = devices.fetch(train_state.env_resets_nonfinite), None
    if position.epoch_steps:
        means = {name: total / position.epoch_steps for name, total in devices.fetch(totals).items()}
        means["env_resets_nonfinite"] = env_resets.sum(axis=-1)
        means["buffer_current_size"] = config.num_envs * devices.fetch(train_state.buffer_state.size)
        drawable = devices.fetch(compiled.count_drawable(train_state.buffer_state)).reshape(-1)
        means["replay_drawable"] = drawable
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
        drawable=drawable,
    )
