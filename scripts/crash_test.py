"""Kills a training again and again, resumes it each time, and compares it with one that was left alone.

    python scripts/crash_test.py --env_name reacher --kills 20

A third of the kills hit the start of the program, a third training, a third the writing of a checkpoint. On the CPU the
metrics (but for the clock's) and parameters must be the same bit for bit. Writes results/durability/ENV.csv.
"""

import csv
import dataclasses
import random
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from src.command_line import parse
from src.output import run_command
from utils import FAILED, REFUSED, ConfigError

ROOT = Path(__file__).resolve().parents[1]
CLOCK_METRICS = {"eval/sps", "eval/walltime", "training/sps", "training/walltime"}
PARAMETERS = ("params.npz", "best_params.npz")
COMPILED = "compiling training and evaluation ... "


@dataclasses.dataclass(frozen=True)
class CrashConfig:
    """Kills and resumes a training, and compares it with one that was left alone."""

    env_name: str = "reacher"
    """Environment to train on."""
    kills: int = 20
    """How often to kill it."""
    seed: int = 0
    """Where the moments of the kills come from."""
    flags: str = (
        "--num_envs 32 --episode_length 100 --unroll_length 20 --batch_size 32 --min_replay_size 100 "
        "--max_replay_size 500 --num_timesteps 100000 --num_evals 40 --num_eval_envs 16 --checkpoint_every 0.02 "
        "--no_render"
    )
    """Further flags of the training, as one word: --flags="--num_envs 8 --num_evals 20"."""
    program: str = "training.py"
    """What is killed."""
    out: Annotated[str, Path] = "results/durability"
    """Folder of the table."""


@dataclasses.dataclass(frozen=True)
class Kill:
    """One kill: what it was aimed at, seconds after the start, and the newest checkpoint then ("" is none)."""

    aim: str
    seconds: float
    checkpoint: str
    writing: bool


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 the same bit for bit, 1 different, 2 bad input."""
    try:
        config = parse(CrashConfig, args, prog="crash_test.py")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    with tempfile.TemporaryDirectory() as folder:
        reference, seconds = train_alone(config, Path(folder) / "reference")
        crashed, kills = train_with_kills(config, Path(folder) / "crashed", seconds)
        differences = compare(reference, crashed)
    write_table(Path(config.out) / f"{config.env_name}.csv", kills, differences)
    print(f"{len(kills)} kills, {sum(kill.writing for kill in kills)} while a checkpoint was written: ", end="")
    print("; ".join(differences) or "metrics and parameters are the same bit for bit")
    if len(kills) < config.kills:
        print(f"error: the run ended before it was killed {config.kills} times; train longer", file=sys.stderr)
        return FAILED
    if not any(kill.checkpoint for kill in kills):
        print("error: no kill came after a checkpoint, so nothing was resumed; train longer", file=sys.stderr)
        return FAILED
    return FAILED if differences else 0


def command(config: CrashConfig, folder: Path) -> list[str]:
    flags = ["--env_name", config.env_name, "--output_dir", str(folder), "--resume", *shlex.split(config.flags)]
    return [sys.executable, str(ROOT / config.program), *flags]


def train_alone(config: CrashConfig, folder: Path) -> tuple[Path, dict[str, float]]:
    """Trains without a kill; returns the run folder and the seconds spent starting and training."""
    started = time.monotonic()
    compiled = started
    with subprocess.Popen(command(config, folder), stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout:
            if line.startswith(COMPILED):
                compiled = time.monotonic()
    if process.returncode:
        raise RuntimeError(f"the training itself failed with status {process.returncode}")
    return run_folder(folder), {"start": compiled - started, "training": time.monotonic() - compiled}


def train_with_kills(config: CrashConfig, folder: Path, seconds: dict[str, float]) -> tuple[Path, list[Kill]]:
    """Trains to the end through `config.kills` kills; returns the run folder and the kills that hit."""
    chance = random.Random(config.seed)
    kills: list[Kill] = []
    while True:
        left = config.kills - len(kills)
        aim = chance.choice(("start", "training", "checkpoint")) if left else "nothing"
        # Long enough to get on from kill to kill, short enough that the run does not end before the last one, even
        # where it is now twice as fast as when its seconds were taken.
        delay = chance.uniform(
            0, {"start": seconds["start"], "training": seconds["training"] / config.kills}.get(aim, 0.05)
        )
        kill = start_and_kill(command(config, folder), folder, aim, delay, chance.randint(1, 2))
        if kill is None:
            return run_folder(folder), kills
        kills.append(kill)
        print(f"kill {len(kills)}: {kill}", flush=True)


def start_and_kill(words: list[str], folder: Path, aim: str, delay: float, checkpoint: int) -> Kill | None:
    """Starts the command and kills it `delay` seconds after what is aimed at begins, the `checkpoint`th one where it is
    a checkpoint; None if it ended before.

    Raises:
      RuntimeError: it ended by itself, with an error.
    """
    started, leftovers = time.monotonic(), unfinished(folder)
    started_checkpoints: set[tuple[Path, int]] = set()
    with tempfile.TemporaryFile("w+") as output:
        process = subprocess.Popen(words, stdout=output, stderr=subprocess.STDOUT)

        def said() -> str:
            output.seek(0)
            return output.read()

        def writes() -> bool:
            started_checkpoints.update(unfinished(folder) - leftovers)
            return len(started_checkpoints) >= checkpoint

        reached: dict[str, Callable[[], bool]] = {
            "start": lambda: True,
            "training": lambda: COMPILED in said(),
            "checkpoint": writes,
            "nothing": lambda: False,
        }
        while process.poll() is None and not reached[aim]():
            time.sleep(0.002)
        try:
            process.wait(delay)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
            newest = [path.name for path in sorted(folder.glob("*/*/*/checkpoints/[!.]*"))]
            return Kill(
                aim, time.monotonic() - started, newest[-1] if newest else "", bool(unfinished(folder) - leftovers)
            )
        if process.returncode:
            raise RuntimeError(f"a resumed training failed with status {process.returncode}:\n{said()}")
        return None


def unfinished(folder: Path) -> set[tuple[Path, int]]:
    """The checkpoints being written, or left half written by a kill."""
    found = folder.glob("*/*/*/checkpoints/.[0-9]*")
    return {(path, path.stat().st_ino) for path in found if path.exists()}


def run_folder(folder: Path) -> Path:
    """The only finished run under `folder`; one that was killed before its first checkpoint was started again."""
    return next(path.parent for path in folder.glob("*/*/*/params.npz") if list(path.parent.glob("checkpoints/*")))


def compare(reference: Path, other: Path) -> list[str]:
    """What differs between two run folders, the clock's metrics left out; empty if nothing does."""
    rows = [timeless_rows(folder / "metrics.csv") for folder in (reference, other)]
    differences = []
    if [row["env_steps"] for row in rows[0]] != [row["env_steps"] for row in rows[1]]:
        differences.append(f"metrics.csv: {len(rows[0])} rows and {len(rows[1])}, or of other env steps")
    for one, two in zip(*rows, strict=False):
        names = [name for name in one | two if one.get(name) != two.get(name)]
        if names:
            differences.append(f"metrics.csv at env step {one['env_steps']}: {', '.join(names)}")
    for name in PARAMETERS:
        files = [dict(np.load(folder / name)) if (folder / name).exists() else {} for folder in (reference, other)]
        same = files[0].keys() == files[1].keys() and all(
            np.array_equal(files[0][key], files[1][key]) for key in files[0]
        )
        differences += [] if same else [name]
    return differences


def timeless_rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return [{name: row[name] for name in row if name not in CLOCK_METRICS} for row in csv.DictReader(file)]


def write_table(path: Path, kills: list[Kill], differences: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["kill", "aimed_at", "seconds_after_start", "newest_checkpoint", "checkpoint_being_written"])
        for number, kill in enumerate(kills, 1):
            writer.writerow([number, kill.aim, f"{kill.seconds:.2f}", kill.checkpoint, kill.writing])
        writer.writerow(["end", "; ".join(differences) or "bit-identical to the uninterrupted run", "", "", ""])


if __name__ == "__main__":
    sys.exit(run_command(main))
