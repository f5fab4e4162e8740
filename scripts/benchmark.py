"""Measures this machine: training, checkpoints, mazes, physics engines, how far these agree; plans for many devices.

    python scripts/benchmark.py --env_name ant --num_envs 256
    python scripts/benchmark.py --env_name ant --repeats 11 --out results/benchmark/ant_cpu.json
    python scripts/benchmark.py --env_name ant --num_envs 256 --sweep --out results/benchmark/sweep_ant_cpu.json
    python scripts/benchmark.py compare --num_envs 256 -- --env_name ant -- --env_name ant --algorithm td3
    python scripts/benchmark.py checkpoint --env_name ant --pairs 5
    python scripts/benchmark.py mazes --layouts u_maze hardest_maze --num_envs 256
    python scripts/benchmark.py engines --envs cheetah ant_push
    python scripts/benchmark.py agreement --envs cheetah ant_push
    python scripts/benchmark.py scale results/benchmark/ant_cpu.json --envs 1024 65536 --devices 1 8

The first word names the part, `training` if there is none; `benchmark.py PART --help` shows its flags. Figures are
medians over rounds in which everything compared takes turns, the first left out. Ratios between rows of one table can
be trusted further than the times.
"""

import dataclasses
import functools
import itertools
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Container
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from envs import ENVS, family, make_env, native, own_backend
from envs.ant import Ant
from envs.ant_maze import AntMaze
from envs.base import GoalEnv
from envs.maze import LAYOUTS
from envs.wrappers import VectorEnv
from src import devices, loop, plan, replay_buffer, train
from src.algorithms import ALGORITHMS
from src.checkpoint import CheckpointWriter, host_arrays
from src.command_line import check_config, parse, parse_config
from src.output import run_command
from src.process import enable_compilation_cache
from src.program import Program, make_program
from src.registries import REGISTRIES
from src.resume import with_backend
from utils import REFUSED, Config, ConfigError, config_of, derive_schedule, unknown, write_text


class Part(NamedTuple):
    """One thing to measure: `read` makes a request of the words of the command line, or raises a ValueError before
    anything compiles; `run` measures and prints."""

    read: Callable[[list[str]], Any]
    run: Callable[[Any], None]


def main(args: list[str]) -> int:
    """Runs the part that the first word names; returns the exit status."""
    named = bool(args) and not args[0].startswith("-")
    name, words = (args[0], args[1:]) if named else ("training", args)
    try:
        if name not in PARTS:
            raise ConfigError(unknown("part", name, PARTS))
        request = PARTS[name].read(words)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    PARTS[name].run(request)
    return 0


def take_turns(calls: dict[str, Callable[[], Any]], repeats: int, budget: float) -> dict[str, list[float]]:
    """Seconds of each call in the rounds that count: at most `repeats`, and no further one once `budget` seconds have
    passed. The first round does not count."""
    rounds: dict[str, list[float]] = {name: [] for name in calls}
    start = time.monotonic()
    for number in range(repeats + 1):
        if number > 1 and time.monotonic() - start > budget:
            break
        for name, call in calls.items():
            started = time.monotonic()
            call()
            rounds[name].append(time.monotonic() - started)
    return {name: seconds[1:] for name, seconds in rounds.items()}


def write_result(path: str, result: Any) -> None:
    """Writes JSON to a file, if one is named."""
    if path:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(path), json.dumps(result, indent=2) + "\n")


# The parts of training.

MATMUL_SIZE = 2048
LAYER_PRODUCTS = 100


@dataclasses.dataclass(frozen=True)
class BenchmarkFlags:
    """Times the parts of one training configuration: environment, sampler, update, training step, compilation, memory.
    Besides, `benchmark.py compare` takes several configurations; `checkpoint`, `mazes`, `engines`, `agreement` and
    `scale` have flags of their own."""

    repeats: int = 5
    """Rounds that count."""
    seconds: float = 60.0
    """Time for the rounds of one configuration, after which no further one begins; one at least counts."""
    updates: int = 200
    """Updates per timed call."""
    out: Annotated[str, Path] = ""
    """JSON file to write as well."""
    sweep: bool = False
    """Measure over `SWEEP`, one flag varied at a time; needs --out, beside which table and plot are put."""


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


def read_training(args: list[str]) -> tuple[Config, list[Config]]:
    """The configuration, and those to measure."""
    config = parse_config(args, REGISTRIES, "benchmark.py", BenchmarkFlags)
    if min(config.repeats, config.updates) < 1:
        raise ConfigError(f"--repeats {config.repeats} and --updates {config.updates} are at least 1")
    if config.sweep and not config.out:
        raise ConfigError("--sweep needs --out, the JSON file beside which table and plot are put")
    devices.spread_over_cores(config)
    config = with_backend(config)
    points = sweep_points(config) if config.sweep else [config]
    for point in points:
        make_program(point, derive_schedule(point))
    return config, points


def run_training(request: tuple[Config, list[Config]]) -> None:
    """A table per configuration; of a sweep, one table and a plot besides."""
    config, points = request
    results = []
    for point in points:
        results.append(benchmark(point))
        print(table(results[-1]), flush=True)
        write_result(config.out, results if config.sweep else results[0])
    if config.sweep:
        write_text(Path(config.out).with_suffix(".md"), sweep_table(results) + "\n")
        plot(results, Path(config.out).with_suffix(".png"))


def benchmark(config: Config) -> dict:
    """Measures one configuration."""
    program = make_program(config, derive_schedule(config))
    parts, compile_seconds = build(program, config)
    rounds = take_turns({name: call for name, (call, _) in parts.items()}, config.repeats, config.seconds)
    seconds = {name: statistics.median(each) for name, each in rounds.items()}
    return report(program, config, parts, seconds, compile_seconds) | {"rounds": len(rounds["update"])}


def build(
    program: Program, config: Config, names: Container[str] | None = None
) -> tuple[dict[str, tuple[Callable, Any]], dict[str, float]]:
    """Compiles every part, or those of some names, for all seeds together.

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
    functions = {
        "matmul": (jnp.matmul, lambda: (matrix, matrix)),
        "layer": (layer_products, lambda: layer),
        "env": (over_seeds(functools.partial(random_steps, program)), lambda: (live["state"],)),
        "sampler": (over_seeds(functools.partial(picks_alone, program)), lambda: (live["state"], keys)),
        "update": (
            over_seeds(functools.partial(train.learn, program), seed_axes=(0, 0, None, 0, 0)),
            lambda: (live["state"], drawn, updates, live["totals"], keys),
        ),
        "training step": (
            over_seeds(functools.partial(train.train_chunk, program), seed_axes=(0, 0, None, None)),
            lambda: (live["state"], live["totals"], one, scheduled),
        ),
    }
    parts, compile_seconds = {}, {}
    for name, (function, arguments) in functions.items():
        if names is not None and name not in names:
            continue
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


# Several configurations in turns.

COMPARED = ("update", "training step")


def read_compared(args: list[str]) -> dict[str, Config]:
    """Configurations by the words that stand for each: what all have in common, then ` -- ` and the flags of each."""
    common, *own = (list(words) for given, words in itertools.groupby(["", *args], lambda word: word != "--") if given)
    requests = {" ".join(words): read_training([*common[1:], *words])[0] for words in own}
    if len(requests) < 2:
        raise ConfigError("compare takes the flags of two configurations or more, a -- before those of each")
    if len({config.num_seeds for config in requests.values()}) > 1:
        raise ConfigError("compare: all configurations need the same --num_seeds, which shares out the cores")
    if any(config.sweep for config in requests.values()):
        raise ConfigError("compare takes no --sweep")
    return requests


def run_compared(requests: dict[str, Config]) -> None:
    """A Markdown table; shares are medians over rounds of the rate beside that of the first configuration."""
    enable_compilation_cache()
    first = next(iter(requests.values()))
    parts, env_steps = {}, {}
    for words, config in requests.items():
        print(f"compiling {words} ...", file=sys.stderr)
        program = make_program(config, derive_schedule(config))
        env_steps[words] = config.num_seeds * program.schedule.env_steps_per_training_step
        built, _ = build(program, config, COMPARED)
        parts |= {(words, name): call for name, (call, _) in built.items()}
    rounds = take_turns(parts, first.repeats, first.seconds)
    rates = {words: [env_steps[words] / each for each in rounds[words, "training step"]] for words in requests}
    results = {
        words: {
            "update ms": 1e3 * statistics.median(rounds[words, "update"]) / config.updates,
            "training env steps/s": statistics.median(rates[words]),
            "share of the first": median_ratio(rates[words], next(iter(rates.values()))),
        }
        for words, config in requests.items()
    }
    print("| configuration | one update, ms | training, env steps/s | share of the first |\n|---|---:|---:|---:|")
    for words, result in results.items():
        update, rate, share = result.values()
        print(f"| `{words}` | {update:.1f} | {rate:,.0f} | {share:.2f} |")
    write_result(first.out, results)


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


# What a checkpoint adds.


@dataclasses.dataclass(frozen=True)
class CheckpointFlags:
    """Times what a checkpoint of the whole state adds to one training configuration.

    Training steps with a checkpoint written beside them take turns with steps without one; the difference of the
    medians, copy included, is set against an epoch, the training between two evaluations."""

    pairs: int = 5
    """Steps with a checkpoint that count, and as many without."""
    out: Annotated[str, Path] = ""
    """JSON file to write as well."""


def read_checkpoint(args: list[str]) -> Program:
    """The program to train; its config has the flags of this part."""
    config = parse_config(args, REGISTRIES, "benchmark.py checkpoint", CheckpointFlags)
    program = make_program(config, derive_schedule(config))
    needed, planned = 2 * config.pairs + 3, program.schedule.training_steps
    if not config.pairs >= 1 or planned < needed:
        raise ConfigError(f"--pairs {config.pairs} needs {needed} training steps, there are {planned}")
    return program


def run_checkpoint(program: Program) -> None:
    """One figure per line."""
    enable_compilation_cache()
    result = checkpoint_cost(program, program.config.pairs)
    print("\n".join(f"{name}: {value:,.4g}" for name, value in result.items()))
    write_result(program.config.out, {"flags": dataclasses.asdict(program.config), **result})


def checkpoint_cost(program: Program, pairs: int) -> dict[str, float]:
    """Figures of one run, its prefill and the first pair of training steps left out."""
    writer = CheckpointWriter(lambda line: print(line, end="", flush=True))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    copies, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        moments = loop.run(program, [program.config.seed], lambda line: print(line, end=""), seconds_per_chunk=1e-9)
        prefill_steps = program.schedule.prefill_steps
        next(moment for moment in moments if moment.run_state.position.training_steps > prefill_steps)
        for number in range(2 * pairs + 2):
            started, with_checkpoint = time.monotonic(), number % 2 == 1
            moment = next(moments)
            while moment.metrics is not None:  # evaluations are no part of it
                started, moment = time.monotonic(), next(moments)
            if with_checkpoint:
                writer.wait()
            seconds[with_checkpoint].append(time.monotonic() - started)
            if not with_checkpoint:  # the next step pays for what starts here
                started = time.monotonic()
                arrays = host_arrays({"train_state": moment.run_state.train_state, "totals": moment.run_state.totals})
                copies.append(time.monotonic() - started)
                size = sum(array.nbytes for array in arrays.values())
                writer.save({Path(folder): (arrays, {"env_steps": number, "position": {}, "replay": True})})
    plain, copy = statistics.median(seconds[False][1:]), statistics.median(copies[1:])
    added = copy + statistics.median(seconds[True][1:]) - plain
    epoch = plain * statistics.mean(program.schedule.epoch_lengths)
    return {
        "checkpoint MiB": size / 2**20,
        "training step s": plain,
        "copy s": copy,
        "added by a checkpoint s": added,
        "epoch s": epoch,
        "added, share of an epoch": added / epoch,
    }


# Environments alone: engines side by side, and three moving walls against a box on every wall cell.


@dataclasses.dataclass(frozen=True)
class WalkFlags:
    """How random actions are timed."""

    num_envs: int = 256
    """Envs that step side by side."""
    steps: int = 4
    """Control steps per timed call."""
    repeats: int = 5
    """Rounds that count."""


def read_walks(flags: type[WalkFlags], prog: str, args: list[str]) -> Any:
    """The flags, checked."""
    options = parse(flags, args, prog)
    if min(options.num_envs, options.steps, options.repeats) < 1:
        raise ConfigError(
            f"--num_envs {options.num_envs}, --steps {options.steps} and --repeats {options.repeats} are at least 1"
        )
    return options


def time_walks(envs: dict[Any, Callable[[], GoalEnv]], options: WalkFlags) -> dict[Any, list[float]]:
    """Env steps per second of each env, one figure per round."""
    enable_compilation_cache()
    walks = {}
    for name, make in envs.items():
        print(f"compiling {name} ...", file=sys.stderr)
        walks[name] = random_walk(make(), options)
    seconds = take_turns(walks, options.repeats, float("inf"))
    return {name: [options.num_envs * options.steps / each for each in rounds] for name, rounds in seconds.items()}


def random_walk(env: GoalEnv, options: WalkFlags) -> Callable[[], Any]:
    """A compiled call that takes random steps and waits for the last."""
    vector = VectorEnv(env, episode_length=1000)

    def walk(env_state, key):
        def step(env_state, key):
            action = jax.random.uniform(key, (options.num_envs, env.action_size), minval=-1.0)
            return vector.step(env_state, action), None

        return jax.lax.scan(step, env_state, jax.random.split(key, options.steps))[0].obs

    env_state = jax.jit(vector.reset, static_argnums=1)(jax.random.key(0), options.num_envs)
    compiled = jax.jit(walk).lower(env_state, jax.random.key(1)).compile()
    return lambda: jax.block_until_ready(compiled(env_state, jax.random.key(1)))


def median_ratio(speeds: list[float], others: list[float]) -> float:
    """The median over rounds of how many times as fast the first is."""
    return statistics.median(one / other for one, other in zip(speeds, others, strict=True))


@dataclasses.dataclass(frozen=True)
class MazeFlags(WalkFlags):
    """Times random actions of the ant in mazes: three moving walls against a box on every wall cell.

    Env steps per second over all envs. The plain ant, which meets no walls, is there to compare."""

    layouts: tuple[Literal[*LAYOUTS], ...] = ("u_maze", "big_maze", "hardest_maze")
    """Mazes."""
    backend: Literal[*AntMaze.physics] = AntMaze.default_backend
    """Physics engine."""


def run_mazes(options: MazeFlags) -> None:
    """A Markdown table of speeds; ratios are medians over the rounds."""
    mazes = {
        (layout, walls): functools.partial(AntMaze, layout=layout, full_walls=walls == "full", backend=options.backend)
        for layout in options.layouts
        for walls in ("moving", "full")
    }
    speeds = time_walks({"ant": functools.partial(Ant, backend=options.backend), **mazes}, options)
    median = {name: statistics.median(rounds) for name, rounds in speeds.items()}
    print(f"\n{jax.devices()[0].device_kind}, {options.backend}, {options.num_envs} envs, env steps per second\n")
    print("| maze | three moving walls | a box on every wall cell | ratio |\n|---|---:|---:|---:|")
    for layout in options.layouts:
        moving, full = (layout, "moving"), (layout, "full")
        ratio = median_ratio(speeds[moving], speeds[full])
        print(f"| {layout} | {median[moving]:.0f} | {median[full]:.0f} | {ratio:.1f} |")
    print(f"| none (ant) | {median['ant']:.0f} | | |")


@dataclasses.dataclass(frozen=True)
class EngineFlags(WalkFlags):
    """Times random actions of environments on their own engine and on MuJoCo's, observation and reward included.

    Env steps per second over all envs, in turns."""

    envs: tuple[Literal[*ENVS], ...] = ("reacher", "cheetah", "pusher_easy", "ant", "ant_push", "humanoid")
    """Environments."""


def read_engines(args: list[str]) -> EngineFlags:
    """The flags, checked."""
    options = read_walks(EngineFlags, "benchmark.py engines", args)
    require_engine(options.envs)
    return options


def require_engine(names: tuple[str, ...]) -> None:
    """Refuses environments that MuJoCo's own engine cannot be compared on."""
    for name in names:
        if own_backend(name) is None:
            raise ConfigError(f"--envs: no engine steps {name}")
        if "mujoco" not in family(name).supported():
            raise ConfigError(f"--envs: mujoco does not step {name}")


def run_engines(options: EngineFlags) -> None:
    """A Markdown table of speeds; ratios are medians over the rounds."""
    pairs = {name: (own_backend(name), "mujoco") for name in options.envs}
    envs = {
        (name, backend): functools.partial(make_env, name, backend)
        for name, backends in pairs.items()
        for backend in backends
    }
    speeds = time_walks(envs, options)
    cores = devices.num_cores()
    print(f"\n{jax.devices()[0].device_kind}, {cores} cores, {options.num_envs} envs, env steps per second\n")
    print("| environment | own engine | | mujoco | ratio |\n|---|---|---:|---:|---:|")
    for name, (own, other) in pairs.items():
        medians = [statistics.median(speeds[name, backend]) for backend in (own, other)]
        ratio = median_ratio(speeds[name, other], speeds[name, own])
        print(f"| {name} | {own} | {medians[0]:,.0f} | {medians[1]:,.0f} | {ratio:.1f} |")


@dataclasses.dataclass(frozen=True)
class AgreementFlags:
    """How far joint positions by MJX are from those by MuJoCo's own engine, after one control step and after several.

    The same starts and random actions on both. MJX steps with the settings of the environment, which may end its solver
    before it has converged, and with the solver settings of MuJoCo's own engine."""

    envs: tuple[Literal[*ENVS], ...] = ("cheetah", "pusher_easy", "ant_push", "ant", "humanoid", "ant_u_maze")
    """Environments."""
    num_envs: int = 32
    """Envs that step side by side."""
    steps: int = 20
    """Control steps."""


def read_agreement(args: list[str]) -> AgreementFlags:
    """The flags, checked."""
    options = parse(AgreementFlags, args, "benchmark.py agreement")
    if min(options.num_envs, options.steps) < 1:
        raise ConfigError(f"--num_envs {options.num_envs} and --steps {options.steps} are at least 1")
    require_engine(options.envs)
    return options


def run_agreement(options: AgreementFlags) -> None:
    """A Markdown table: the median over environments of the largest difference of a joint, the largest in brackets."""
    enable_compilation_cache()
    after = f"after {options.steps}"
    print("| environment | converged, after 1 step | " + after + " | its own settings, after 1 step | " + after + " |")
    print("|---|---:|---:|---:|---:|")
    for name in options.envs:
        print(f"compiling {name} ...", file=sys.stderr)
        physics = family(name).physics
        exact = dataclasses.replace(physics["mjx"], option=physics["mjx"].option | native.SOLVER)
        reference, cells = joint_positions(make_env(name, "mujoco"), options), []
        for tried in (exact, physics["mjx"]):
            with mock.patch.dict(physics, mjx=tried):
                found = joint_positions(make_env(name, "mjx"), options)
            off = np.abs(found - reference).max(axis=2)
            cells += [f"{np.median(each):.1e} ({each.max():.1e})" for each in (off[0], off[-1])]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def joint_positions(env: GoalEnv, options: AgreementFlags) -> np.ndarray:
    """(steps, num_envs, nq) where random actions lead."""

    def step(env_state, key):
        action = jax.random.uniform(key, (options.num_envs, env.action_size), minval=-1.0)
        env_state = jax.vmap(env.step)(env_state, action)
        return env_state, env_state.pipeline_state.q

    starts = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(0), options.num_envs))
    keys = jax.random.split(jax.random.key(1), options.steps)
    return np.asarray(jax.jit(functools.partial(jax.lax.scan, step))(starts, keys)[1])


# A plan on paper: memory and time of one seed on many devices.


@dataclasses.dataclass(frozen=True)
class ScaleFlags:
    """Plans memory and time of one seed on many devices, from the memory plan and from parts measured on one device.

    The plan takes for granted that environments and updates divide evenly among the devices, and that a sum over
    devices sends twice its bytes at the given rate; it knows of no latency. So it says where the limits lie, not what
    will be reached."""

    measured: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FILE"), Path]]
    """JSON file that `benchmark.py --out FILE` wrote; of a sweep, its first configuration."""
    envs: tuple[int, ...] = (1024, 4096, 16_384, 65_536)
    """Numbers of environments."""
    devices: tuple[int, ...] = (1, 8, 64)
    """Numbers of devices."""
    gigabytes_per_second: float = 10.0
    """Between two devices."""


def read_scale(args: list[str]) -> tuple[ScaleFlags, dict]:
    """The flags, checked, and the measured parts."""
    options = parse(ScaleFlags, args, "benchmark.py scale")
    if min(*options.envs, *options.devices) < 1 or not options.gigabytes_per_second > 0:
        raise ConfigError("--envs, --devices and --gigabytes_per_second are above 0")
    try:
        measured = json.loads(Path(options.measured).read_text())
        measured = measured[0] if isinstance(measured, list) else measured
        measured = {name: measured[name] for name in ("flags", "env steps/s, env alone", "update ms")}
        config_of(measured["flags"], ALGORITHMS, "flags")
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise ConfigError(f"{options.measured} is no file of benchmark.py --out: {error}") from None
    return options, measured


def run_scale(request: tuple[ScaleFlags, dict]) -> None:
    """A Markdown table."""
    options, measured = request
    print(scale_table(measured, options.envs, options.devices, 1e9 * options.gigabytes_per_second))


def scale_plan(measured: dict, num_envs: int, num_devices: int, bytes_per_second: float) -> dict[str, float]:
    """GiB on each device, and seconds of each part of a million env steps."""
    flags = measured["flags"] | {"num_envs": num_envs, "num_seeds": 1}
    config = config_of(flags, ALGORITHMS, "the measured configuration")
    schedule = derive_schedule(config)
    costs = plan.measure(config, make_env(config.env_name, config.backend))
    memory = sum(plan.memory_plan(config, schedule, costs, (1, num_devices)).values())
    updates = 1e6 * schedule.updates_per_training_step / schedule.env_steps_per_training_step
    # Gradients are summed; the rows of the batch come from whoever holds them; every device sees all representations.
    sizes, representations = costs.sizes, 2 * getattr(config, "repr_dim", 0)
    rows = config.batch_size * (2 * sizes.state + sizes.action + representations)
    exchanged = 2 * 4 * (costs.parameters + rows) * (num_devices > 1)
    return {
        "GiB": memory / 2**30,
        "environments": 1e6 / measured["env steps/s, env alone"] / num_devices,
        "updates": updates * measured["update ms"] / 1e3 / num_devices,
        "exchange": updates * exchanged / bytes_per_second,
    }


def scale_table(measured: dict, envs: tuple[int, ...], counts: tuple[int, ...], bytes_per_second: float) -> str:
    """The plans as Markdown; the longest part is the limit."""
    lines = [
        "| envs | devices | memory per device | environments | updates | exchange | limit |",
        "|---:|---:|---:|---:|---:|---:|---|",
    ]
    for num_envs in envs:
        for num_devices in counts:
            parts = scale_plan(measured, num_envs, num_devices, bytes_per_second)
            memory = parts.pop("GiB")
            seconds = " | ".join(f"{value:,.1f} s" for value in parts.values())
            limit = max(parts, key=parts.get)
            lines.append(f"| {num_envs:,} | {num_devices} | {memory:,.2f} GiB | {seconds} | {limit} |")
    return "\n".join(lines)


PARTS = {
    "training": Part(read_training, run_training),
    "compare": Part(read_compared, run_compared),
    "checkpoint": Part(read_checkpoint, run_checkpoint),
    "mazes": Part(functools.partial(read_walks, MazeFlags, "benchmark.py mazes"), run_mazes),
    "engines": Part(read_engines, run_engines),
    "agreement": Part(read_agreement, run_agreement),
    "scale": Part(read_scale, run_scale),
}

if __name__ == "__main__":
    sys.exit(run_command(main))
