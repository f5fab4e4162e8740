"""Times the parts of training on this machine: environment, sampler, update, training step, compilation, memory.

    python scripts/benchmark.py --env_name ant --num_envs 256
    python scripts/benchmark.py --env_name ant --repeats 11 --out results/benchmark/ant_cpu.json

Takes every flag of training.py. Figures are medians over alternating rounds, the first left out; ratios between rows of
one table can be trusted further than the times themselves.
"""

import dataclasses
import functools
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from src import replay_buffer, train
from src.command_line import parse
from utils import Config, check_config, derive_schedule, write_text

MATMUL_SIZE = 2048


@dataclasses.dataclass(frozen=True)
class BenchmarkConfig(Config):
    """Times the parts of one training configuration."""

    repeats: int = 5
    """Rounds that count."""
    updates: int = 200
    """Updates per timed call."""
    out: str = ""
    """JSON file to write as well."""


def main(args: list[str]) -> int:
    """Measures and prints; returns the exit status."""
    try:
        config = parse(BenchmarkConfig, args, prog="benchmark.py")
        check_config(config)
        program = train.make_program(config, derive_schedule(config))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    parts, compile_seconds = build(program, config)
    seconds = measure({name: call for name, (call, _) in parts.items()}, config.repeats)
    result = report(program, config, parts, seconds, compile_seconds)
    print(table(result))
    if config.out:
        path = Path(config.out)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(result, indent=2) + "\n")
    return 0


def build(program: train.Program, config: BenchmarkConfig) -> tuple[dict[str, tuple[Callable, Any]], dict[str, float]]:
    """Compiles every part.

    Returns name -> (a call that waits for its result, the compiled program), and name -> seconds of compilation.
    """
    train_state, totals = jax.jit(functools.partial(train.start, program))(jax.random.key(config.seed))
    train_state = jax.jit(functools.partial(prefilled, program))(train_state)
    pairs = jax.jit(functools.partial(train.sample_pairs, program))(train_state.buffer_state, train_state.key)
    pairs = jax.tree.map(lambda rows: jnp.resize(rows, (config.updates, config.batch_size)), pairs)
    matrix = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE))
    steps, updates = jnp.ones((), jnp.int32), jnp.asarray(config.updates, jnp.int32)
    scheduled = jnp.asarray(program.schedule.updates_per_training_step, jnp.int32)
    functions = {
        "matmul": (jnp.matmul, (matrix, matrix)),
        "env": (functools.partial(random_steps, program), (train_state,)),
        "sampler": (functools.partial(train.sample_pairs, program), (train_state.buffer_state, train_state.key)),
        "update": (functools.partial(train.learn, program), (train_state, pairs, updates, totals, train_state.key)),
        "training step": (functools.partial(train.train_chunk, program), (train_state, totals, steps, scheduled)),
    }
    parts, compile_seconds = {}, {}
    for name, (function, arguments) in functions.items():
        started = time.monotonic()
        compiled = jax.jit(function).lower(*arguments).compile()
        compile_seconds[name] = time.monotonic() - started
        parts[name] = (lambda run=compiled, arguments=arguments: jax.block_until_ready(run(*arguments)), compiled)
    return parts, compile_seconds


def prefilled(program: train.Program, train_state: train.TrainState) -> train.TrainState:
    """The state with a full ring of rows, as late in a run, the first unrolls repeated."""
    train_state = train.collect(program, train_state)
    unroll = program.config.unroll_length

    def fill(_, buffer_state):
        rows = jax.tree.map(lambda ring: ring[:unroll], buffer_state.rows)
        return replay_buffer.insert(buffer_state, rows)

    rounds = program.schedule.replay_rows // unroll
    return train_state.replace(buffer_state=jax.lax.fori_loop(0, rounds, fill, train_state.buffer_state))


def random_steps(program: train.Program, train_state: train.TrainState) -> Any:
    """An unroll of random actions: the environment alone."""
    config, env = program.config, program.env

    def step(env_state, key):
        action = jax.random.uniform(key, (config.num_envs, env.env.action_size), minval=-1, maxval=1)
        return env.step(env_state, action), None

    return jax.lax.scan(step, train_state.env_state, jax.random.split(train_state.key, config.unroll_length))[0]


def measure(calls: dict[str, Callable], repeats: int) -> dict[str, float]:
    """Median seconds of each call over rounds in which all take turns."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            started = time.monotonic()
            call()
            rounds[name].append(time.monotonic() - started)
    return {name: statistics.median(seconds[1:]) for name, seconds in rounds.items()}


def report(program: train.Program, config: BenchmarkConfig, parts: dict, seconds: dict, compile_seconds: dict) -> dict:
    """The figures of one table, and what they depend on."""
    schedule = program.schedule
    matmul_rate = 2 * MATMUL_SIZE**3 / seconds["matmul"]
    update_seconds = seconds["update"] / config.updates
    # The compiler counts the body of a loop once, so this is one update.
    update_flop = parts["update"][1].cost_analysis()["flops"]
    memory = parts["training step"][1].memory_analysis()
    ring = functools.partial(train.empty_replay, program)
    env_steps = config.num_envs * config.unroll_length * config.action_repeat
    replay = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(ring)))
    return {
        "device": f"{jax.devices()[0].device_kind} x {jax.device_count()}, {os.cpu_count()} x {platform.machine()}",
        "jax": jax.__version__,
        "flags": dataclasses.asdict(config),
        "matmul GFLOP/s": matmul_rate / 1e9,
        "env steps/s, env alone": env_steps / seconds["env"],
        "sampled pairs/s": schedule.updates_per_training_step * config.batch_size / seconds["sampler"],
        "sampler, share of a training step": seconds["sampler"] / seconds["training step"],
        "update ms": 1e3 * update_seconds,
        "update GFLOP": update_flop / 1e9,
        "update, share of the matmul rate": update_flop / update_seconds / matmul_rate,
        "training env steps/s": env_steps / seconds["training step"],
        "replay MiB": replay / 2**20,
        "training step temporaries, share of the replay": memory.temp_size_in_bytes / replay,
        "compile s": compile_seconds["training step"],
    }


def table(result: dict) -> str:
    """The figures as Markdown."""
    figures = {name: value for name, value in result.items() if isinstance(value, float)}
    rows = [
        f"| {name} | {value:,.0f} |" if value >= 100 else f"| {name} | {value:.3g} |" for name, value in figures.items()
    ]
    return "\n".join([f"{result['device']}, jax {result['jax']}", "", "| figure | value |", "|---|---:|", *rows])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
