"""Times what a checkpoint of the whole state adds to training on this machine.

    python scripts/benchmark_checkpoint.py --env_name ant
    python scripts/benchmark_checkpoint.py --env_name ant --pairs 5 --out results/durability/checkpoint_cost.json

Takes every flag of training.py. Training steps with a checkpoint written beside them take turns with steps without one;
the difference of the medians, copy included, is set against an epoch, the training between two evaluations.
"""

import dataclasses
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from src.checkpoint import CheckpointWriter, host_arrays
from src.command_line import parse_config
from src.loop import run
from src.output import run_command
from src.process import enable_compilation_cache
from src.program import Program, make_program
from src.registries import REGISTRIES
from utils import REFUSED, ConfigError, derive_schedule, write_text


@dataclasses.dataclass(frozen=True)
class CheckpointFlags:
    """Times what a checkpoint adds to one training configuration."""

    pairs: int = 5
    """Steps with a checkpoint that count, and as many without."""
    out: str = ""
    """JSON file to write as well."""


def main(args: list[str]) -> int:
    """Measures and prints; returns the exit status."""
    try:
        config = parse_config(args, REGISTRIES, "benchmark_checkpoint.py", CheckpointFlags)
        program = make_program(config, derive_schedule(config))
        needed, planned = 2 * config.pairs + 3, program.schedule.training_steps
        if not config.pairs >= 1 or planned < needed:
            raise ConfigError(f"--pairs {config.pairs} needs {needed} training steps, there are {planned}")
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    enable_compilation_cache()
    result = measure(program, config.pairs)
    print("\n".join(f"{name}: {value:,.4g}" for name, value in result.items()))
    if config.out:
        Path(config.out).parent.mkdir(parents=True, exist_ok=True)
        write_text(Path(config.out), json.dumps({"flags": dataclasses.asdict(config), **result}, indent=2) + "\n")
    return 0


def measure(program: Program, pairs: int) -> dict[str, float]:
    """Figures of one run, its prefill and the first pair of training steps left out."""
    writer = CheckpointWriter(lambda line: print(line, end="", flush=True))
    seconds: dict[bool, list[float]] = {True: [], False: []}
    copies, size = [], 0
    with tempfile.TemporaryDirectory() as folder:
        moments = run(program, [program.config.seed], lambda line: print(line, end=""), seconds_per_chunk=1e-9)
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


if __name__ == "__main__":
    sys.exit(run_command(main))
