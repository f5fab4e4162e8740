"""Times the parts of training on this machine: environment, sampler, update, training step, compilation, memory.

    python scripts/benchmark.py --env_name ant --num_envs 256
    python scripts/benchmark.py --env_name ant --repeats 11 --out results/benchmark/ant_cpu.json
    python scripts/benchmark.py --env_name ant --num_envs 256 --sweep --out results/benchmark/sweep_ant_cpu.json

The last one repeats it over numbers of environments, batch sizes, depths and numbers of seeds, one varied at a time,
and leaves a Markdown table and a plot beside the JSON file. Takes every flag of training.py. Figures are medians over
alternating rounds, the first left out: --repeats of them, or as many as --seconds allow. Ratios between rows of one
table can be trusted further than the times.
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

from src import devices, loop, plan, replay_buffer, train
from src.command_line import check_config, parse_config
from src.output import run_command
from src.program import Program, make_program
from src.registries import REGISTRIES
from utils import REFUSED, Config, ConfigError, derive_schedule, write_text

MATMUL_SIZE = 2048
LAYER_PRODUCTS = 100


@dataclasses.dataclass(frozen=True)
class BenchmarkFlags:
    """Times the parts of one training configuration."""

    repeats: int = 5
    """Rounds that count."""
    seconds: float = 60.0
    """Time for the rounds of one configuration, after which no further one begins; one at least counts."""
    updates: int = 200
    """Updates per timed call."""
    out: str = ""
    """JSON file to write as well."""
    sweep: bool = False
    """Measure over `SWEEP`, not one configuration; needs --out, beside which table and plot are put."""


# What a sweep varies, one at a time from the configuration of the command line.
SWEEP = {
    "num_envs": (64, 128, 256, 512, 1024, 2048, 4096),
    "batch_size": (256, 512, 1024, 2048),
    "n_hidden": (2, 4, 8),
    "num_seeds": (1, 2, 4),
}
PANELS = {
    "training env steps/s": "training (env steps/s, all seeds)",
    "update ms": "one update of all seeds (ms)",
    "peak MiB": "memory of a training step (MiB)",
}


def main(args: list[str]) -> int:
    """Measures and prints; returns the exit status."""
    try:
        config = parse_config(args, REGISTRIES, "benchmark.py", BenchmarkFlags)
        if min(config.repeats, config.updates) < 1:
            raise ConfigError(f"--repeats {config.repeats} and --updates {config.updates} are at least 1")
        if config.sweep and not config.out:
            raise ConfigError("--sweep needs --out, the JSON file beside which table and plot are put")
        points = sweep_points(config) if config.sweep else [config]
        devices.spread_over_cores(config)
        for point in points:
            make_program(point, derive_schedule(point))
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    results = []
    for point in points:
        results.append(benchmark(point))
        print(table(results[-1]), flush=True)
        if config.out:
            write_text(Path(config.out), json.dumps(results if config.sweep else results[0], indent=2) + "\n")
    if config.sweep:
        write_text(Path(config.out).with_suffix(".md"), sweep_table(results) + "\n")
        plot(results, Path(config.out).with_suffix(".png"))
    return 0


def benchmark(config: Config) -> dict:
    """Measures one configuration."""
    program = make_program(config, derive_schedule(config))
    parts, compile_seconds = build(program, config)
    seconds, rounds = measure({name: call for name, (call, _) in parts.items()}, config.repeats, config.seconds)
    return report(program, config, parts, seconds, compile_seconds) | {"rounds": rounds}


def build(program: Program, config: Config) -> tuple[dict[str, tuple[Callable, Any]], dict[str, float]]:
    """Compiles every part, for all seeds together.

    Returns name -> (a call that waits for its result, the compiled program), and name -> seconds of compilation.
    """
    several_seeds = config.num_seeds > 1
    over_seeds = functools.partial(train.over_seeds, several_seeds=several_seeds)
    shardings, everywhere = train.state_shardings(program, several_seeds), devices.sharding(program.mesh)
    init, keys, _ = loop.make_init(program, range(config.seed, config.seed + config.num_seeds))
    train_state, totals = init(keys)
    prefill = over_seeds(functools.partial(prefilled, program))
    train_state = jax.jit(prefill, donate_argnums=0, out_shardings=shardings)(train_state)
    live = {"state": train_state, "totals": totals}  # the training step writes its state in place, as in training
    draw = over_seeds(functools.partial(train.draw, program))
    index, picks = jax.jit(draw, out_shardings=shardings.key)(train_state, keys)
    repeated = over_seeds(lambda pick: jnp.resize(pick, (config.updates, *pick.shape[1:])))
    drawn = index, jax.tree.map(repeated, picks)
    matrix = jax.random.normal(jax.random.key(0), (MATMUL_SIZE, MATMUL_SIZE))
    layer = jnp.ones((config.batch_size, config.h_dim)), jnp.eye(config.h_dim)
    one, updates = jnp.ones((), jnp.int32), jnp.asarray(config.updates, jnp.int32)
    scheduled = jnp.asarray(program.schedule.updates_per_training_step, jnp.int32)
    of = functools.partial
    functions = {
        "matmul": (jnp.matmul, lambda: (matrix, matrix)),
        "layer": (layer_products, lambda: layer),
        "env": (over_seeds(of(random_steps, program)), lambda: (live["state"],)),
        "sampler": (over_seeds(of(picks_alone, program)), lambda: (live["state"], keys)),
        "update": (
            over_seeds(of(train.learn, program), seed_axes=(0, 0, None, 0, 0)),
            lambda: (live["state"], drawn, updates, live["totals"], keys),
        ),
        "training step": (
            over_seeds(of(train.train_chunk, program), seed_axes=(0, 0, None, None)),
            lambda: (live["state"], live["totals"], one, scheduled),
        ),
    }
    parts, compile_seconds = {}, {}
    for name, (function, arguments) in functions.items():
        started = time.monotonic()
        donated = (0, 1) if name == "training step" else ()
        placed = {"out_shardings": (shardings, everywhere)} if donated else {}
        compiled = jax.jit(function, donate_argnums=donated, **placed).lower(*arguments()).compile()
        compile_seconds[name] = time.monotonic() - started
        parts[name] = (functools.partial(call, compiled, arguments, live if donated else None), compiled)
    return parts, compile_seconds


def call(compiled: Callable, arguments: Callable[[], tuple], keep: dict | None) -> None:
    """Runs a part to its end; the state and totals it returns go to `keep`."""
    result = jax.block_until_ready(compiled(*arguments()))
    if keep is not None:
        keep["state"], keep["totals"] = result


def prefilled(program: Program, train_state: train.TrainState) -> train.TrainState:
    """The state with a full ring of rows, as late in a run, the first unrolls repeated."""
    train_state = train.collect(program, train_state)
    unroll = program.config.unroll_length

    def fill(_, buffer_state):
        rows = jax.tree.map(lambda ring: ring[:unroll], buffer_state.rows)
        return replay_buffer.insert(buffer_state, rows)

    rounds = program.schedule.replay_rows // unroll
    return train_state.replace(buffer_state=jax.lax.fori_loop(0, rounds, fill, train_state.buffer_state))


def layer_products(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Products of the size of a hidden layer, one after the other as in a network."""
    return jax.lax.fori_loop(0, LAYER_PRODUCTS, lambda _, x: x @ kernel, x)


def random_steps(program: Program, train_state: train.TrainState) -> Any:
    """An unroll of random actions: the environment alone."""
    config, env = program.config, program.env

    def step(env_state, key):
        action = jax.random.uniform(key, (config.num_envs, env.env.action_size), minval=-1, maxval=1)
        return env.step(env_state, action), None

    return jax.lax.scan(step, train_state.env_state, jax.random.split(train_state.key, config.unroll_length))[0]


def picks_alone(program: Program, train_state: train.TrainState, key: jax.Array) -> Any:
    """What the sampler hands to the learner, without the index it is drawn by."""
    return train.draw(program, train_state, key)[1]


def measure(calls: dict[str, Callable], repeats: int, budget: float) -> tuple[dict[str, float], int]:
    """Median seconds of each call over rounds in which all take turns, the first left out, and how many counted."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    beginning = time.monotonic()
    for number in range(repeats + 1):
        if number > 1 and time.monotonic() - beginning > budget:
            break
        for name, call in calls.items():
            started = time.monotonic()
            call()
            rounds[name].append(time.monotonic() - started)
    counted = {name: seconds[1:] for name, seconds in rounds.items()}
    return {name: statistics.median(seconds) for name, seconds in counted.items()}, len(next(iter(counted.values())))


def report(program: Program, config: Config, parts: dict, seconds: dict, compile_seconds: dict) -> dict:
    """The figures of one table, and what they depend on."""
    schedule = program.schedule
    matmul_rate = 2 * MATMUL_SIZE**3 / seconds["matmul"]
    layer_rate = LAYER_PRODUCTS * 2 * config.batch_size * config.h_dim**2 / seconds["layer"]
    update_seconds = seconds["update"] / config.updates
    # The compiler counts the body of a loop once, so this is one update: one device's part, as in the products.
    update_flop = parts["update"][1].cost_analysis()["flops"]
    memory = parts["training step"][1].memory_analysis()
    ring = functools.partial(train.empty_replay, program)
    seeds = config.num_seeds
    env_steps = seeds * config.num_envs * config.unroll_length * config.action_repeat
    costs = plan.measure(config, program.env.env)
    pairs = seeds * schedule.updates_per_training_step * config.batch_size
    replay = seeds * sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(jax.eval_shape(ring)))
    replay /= devices.count(config)  # memory is that of one device
    peak = memory.argument_size_in_bytes + memory.temp_size_in_bytes
    return {
        "device": f"{jax.devices()[0].device_kind} x {devices.count(config)}, {os.cpu_count()} x {platform.machine()}",
        "jax": jax.__version__,
        "flags": dataclasses.asdict(config),
        "matmul GFLOP/s": matmul_rate / 1e9,
        "matmul GFLOP/s, size of a layer": layer_rate / 1e9,
        "env steps/s, env alone": env_steps / seconds["env"],
        "sampled pairs/s": pairs / seconds["sampler"],
        "sampler, share of a training step": seconds["sampler"] / seconds["training step"],
        "update ms": 1e3 * update_seconds,
        "update GFLOP": update_flop / 1e9,
        "update, share of the matmul rate": update_flop / update_seconds / matmul_rate,
        "update, share of the rate of layers": update_flop / update_seconds / layer_rate,
        "training env steps/s": env_steps / seconds["training step"],
        "replay MiB": replay / 2**20,
        "peak MiB": peak / 2**20,
        "planned MiB": plan.planned_bytes(config, costs, devices.count(config)) / 2**20,
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


# Sweeps.


def sweep_points(config: Config) -> list[Config]:
    """The configurations of a sweep, each once.

    Raises:
      ConfigError: one of them is not legal.
    """
    points = [dataclasses.replace(config, **{flag: value}) for flag, values in SWEEP.items() for value in values]
    points = list(dict.fromkeys([config, *points]))
    for point in points:
        check_config(point, REGISTRIES)
    return points


def along(results: list[dict], flag: str) -> list[dict]:
    """The results that differ from the first, the base, in no other flag of the sweep, by the flag's value."""
    base = results[0]["flags"]
    others = [name for name in SWEEP if name != flag]
    found = [each for each in results if all(each["flags"][name] == base[name] for name in others)]
    return sorted(found, key=lambda each: each["flags"][flag])


def sweep_table(results: list[dict]) -> str:
    """One row per measured configuration, as Markdown."""
    figures = ("env steps/s, env alone", "sampler, share of a training step", *PANELS, "planned MiB", "compile s")
    header = [*SWEEP, *figures]
    lines = [
        f"{results[0]['device']}, jax {results[0]['jax']}, {results[0]['flags']['env_name']}",
        "",
        f"| {' | '.join(header)} |",
        "|" + "---:|" * len(header),
    ]
    for result in results:
        values = [f"{result['flags'][flag]:,}" for flag in SWEEP]
        values += [f"{result[name]:,.0f}" if result[name] >= 100 else f"{result[name]:.3g}" for name in figures]
        lines.append(f"| {' | '.join(values)} |")
    return "\n".join(lines)


def plot(results: list[dict], path: Path) -> None:
    """Every figure of `PANELS` (rows) over every flag of `SWEEP` (columns)."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(
        len(PANELS), len(SWEEP), figsize=(3 * len(SWEEP), 2.4 * len(PANELS)), sharex="col", squeeze=False
    )
    for column, flag in enumerate(SWEEP):
        measured = along(results, flag)
        values = [result["flags"][flag] for result in measured]
        for row, (name, label) in enumerate(PANELS.items()):
            panel = axes[row][column]
            panel.plot(values, [result[name] for result in measured], marker="o", color="#0072B2")  # Okabe-Ito blue
            panel.set_xscale("log", base=2)
            panel.set_xticks(values, [f"{value:,}" for value in values], rotation=45)
            panel.minorticks_off()
            panel.set_ylim(bottom=0)
            panel.grid(alpha=0.3)
            panel.set_xlabel(f"--{flag}" if row == len(PANELS) - 1 else "")
            panel.set_ylabel(label if column == 0 else "", fontsize=8)
    figure.suptitle(f"{results[0]['flags']['env_name']}, {results[0]['device']}")
    figure.tight_layout()
    figure.savefig(path, dpi=150)
    pyplot.close(figure)


if __name__ == "__main__":
    sys.exit(run_command(main))
