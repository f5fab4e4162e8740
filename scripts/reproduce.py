"""Trains the rows of scripts/settings.yml, then writes a table and a figure of them beside the published values.

Paths are relative to the repository root, where scripts/reproduce.sh goes first.

    scripts/reproduce.sh                     every row
    scripts/reproduce.sh ant reacher         the rows of some environments, or rows by name
    scripts/reproduce.sh --dry_run           what would run
    scripts/reproduce.sh --table_only        table and figure of what there is

On a CPU every seed of a row is a job of its own, one per core and pinned to it where the system can. On a GPU a row is
one program of all its seeds, as many together as fit. An interrupted run resumes, a finished one is skipped, and so is
a seed that a run in results/ has trained with the same settings.
"""

import contextlib
import dataclasses
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts import plot, results_table
from scripts.settings import Row, choose_rows, read_settings
from src.command_line import command_line, parse
from src.output import run_command
from src.process import Interruption
from utils import FAILED, INTERRUPTED, NEWEST, REFUSED, ConfigError

GROUP = "reproduce"  # of the run folders


@dataclasses.dataclass(frozen=True)
class ReproduceConfig:
    """Trains the settings that the published values are compared with, and draws them."""

    rows: tyro.conf.Positional[tuple[str, ...]]
    """Environments or rows of the settings file; none given: all."""
    settings: Annotated[str, Path] = "scripts/settings.yml"
    """The settings file."""
    machine: Literal["cpu", "gpu"] | None = None
    """Whose sizes to take; None is what JAX finds here."""
    seeds: int = 0
    """Seeds per row, from 0 on; 0 is what the settings say."""
    jobs: int = 0
    """Trainings side by side on a CPU; 0 is one per core."""
    output_dir: Annotated[str, Path] = "runs"
    """Where run folders are made, as in training.py."""
    results: Annotated[str, Path] = "results"
    """Finished curves that count as well; gets table.md and table.png."""
    dry_run: bool = False
    """Print what would run and stop."""
    table_only: bool = False
    """Train nothing; write table and figure of the runs that there are."""


class Job(NamedTuple):
    """One training: its name, the words after python, and where what it prints goes."""

    name: str
    command: tuple[str, ...]
    log: Path


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    try:
        config = parse(ReproduceConfig, args, prog="reproduce.sh")
        for flag in ("seeds", "jobs"):
            if getattr(config, flag) < 0:
                raise ConfigError(f"--{flag} {getattr(config, flag)} is out of range: at least 0")
        if config.dry_run and config.table_only:
            raise ConfigError("--dry_run and --table_only: one writes nothing, the other only writes")
        if Path(config.results).exists() and not Path(config.results).is_dir():
            raise ConfigError(f"--results {config.results} is not a folder")
        rows = choose_rows(all_rows := read_settings(Path(config.settings)), config.rows)
        machine = config.machine or ("" if config.table_only else found_machine())
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    status = 0
    if not config.table_only:
        runs = results_table.load(run_folders(config))
        jobs = [job for row in rows if row.machine == machine for job in jobs_of(row, config, runs)]
        if config.dry_run:
            return 0
        status = train(jobs, cores(config.jobs) if machine == "cpu" else [None])
    results_table.write(all_rows, run_folders(config), Path(config.results) / "table")
    return status


def found_machine() -> str:
    """ "cpu" or "gpu". Asked in a process of its own: a process that holds a GPU leaves no memory for the trainings.

    Raises:
      ConfigError: JAX does not start.
    """
    command = [sys.executable, "-c", "import jax; print(jax.default_backend())"]
    asked = subprocess.run(command, capture_output=True, text=True, check=False)
    if asked.returncode or not asked.stdout.split():
        reason = ["", *asked.stderr.strip().splitlines()][-1]
        raise ConfigError(f"JAX finds no device, --machine cpu or gpu says which sizes to take ({reason})")
    return "cpu" if asked.stdout.split()[-1] == "cpu" else "gpu"


def run_folders(config: ReproduceConfig) -> list[Path]:
    """Where runs are looked for: those of this script, and finished ones."""
    folders = [Path(config.output_dir) / "crl" / GROUP, Path(config.results)]
    return [folder for folder in folders if folder.is_dir()]


def jobs_of(row: Row, config: ReproduceConfig, runs: Sequence[plot.Run]) -> list[Job]:
    """The trainings that a row still needs; says of each seed what there is to do."""
    finished = results_table.finished_seeds(row, runs)
    wanted = range(config.seeds or row.seeds)
    seeds = [seed for seed in wanted if seed not in finished]
    for seed, folder in sorted(finished.items()):
        print(f"{row.name} seed {seed}: finished, {folder}")
    # On a GPU all of them, since a program resumes with the seeds that it began with.
    groups = [(0, len(wanted))] if seeds and row.machine == "gpu" else [(seed, 1) for seed in seeds]
    jobs = [make_job(row, seed, number, config) for seed, number in groups]
    for job in jobs:
        print(f"{job.name}: python {shlex.join(job.command)}")
    return jobs


def make_job(row: Row, seed: int, num_seeds: int, config: ReproduceConfig) -> Job:
    """The training of `num_seeds` seeds of a row from `seed` on."""
    own = dataclasses.replace(
        row.config,
        group_name=GROUP,
        output_dir=config.output_dir,
        seed=seed,
        num_seeds=num_seeds,
        resume=NEWEST,
    )
    name = f"{row.name} seed {seed}" + (f" to {seed + num_seeds - 1}" if num_seeds > 1 else "")
    log = Path(config.output_dir) / "crl" / GROUP / "logs" / f"{name.replace(' ', '_')}_{row.machine}.log"
    return Job(name, tuple(shlex.split(command_line(own))[1:]), log)


def cores(jobs: int) -> list[int]:
    """The cores that trainings are given, one each."""
    usable = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else list(range(os.cpu_count() or 1))
    return usable[: jobs or None]


def train(jobs: Sequence[Job], places: Sequence[int | None]) -> int:
    """Trains all jobs, one per place; returns the exit status of all. A run that goes wrong does not stop the others; a
    refusal or a signal does, and they save themselves."""
    waiting, free = deque(jobs), deque(places)
    running: dict[Job, tuple[subprocess.Popen, int | None]] = {}
    statuses: dict[Job, int] = {}
    with contextlib.ExitStack() as until_the_end:
        interruption = until_the_end.enter_context(Interruption().noticed())
        interruption.started = True  # a signal waits for the trainings
        leaving = False
        while running or (waiting and not leaving):
            while waiting and free and not leaving:
                job, place = waiting.popleft(), free.popleft()
                running[job] = start(job, place), place
            for job, (process, place) in list(running.items()):
                if process.poll() is not None:
                    statuses[job] = process.returncode
                    free.append(place)
                    del running[job]
                    print(f"{job.name}: {outcome(job, process.returncode)}", flush=True)
            if not leaving and (interruption.requested or {REFUSED, INTERRUPTED} & set(statuses.values())):
                leaving = True
                for process, _ in running.values():
                    process.send_signal(signal.SIGTERM)
            time.sleep(0.1)
    if leaving:
        return REFUSED if REFUSED in statuses.values() else INTERRUPTED
    return FAILED if any(statuses.values()) else 0


def start(job: Job, place: int | None) -> subprocess.Popen:
    """Starts a training on a core (None: anywhere). A session of its own, so that Ctrl-C reaches it once, by us."""
    pinned = ["taskset", "-c", str(place)] if place is not None and shutil.which("taskset") else []
    job.log.parent.mkdir(parents=True, exist_ok=True)
    print(f"{job.name}: started{f' on core {place}' if pinned else ''}, {job.log}", flush=True)
    with job.log.open("a") as log:
        return subprocess.Popen(
            [*pinned, sys.executable, *job.command], stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )


def outcome(job: Job, status: int) -> str:
    """What an exit status of training.py means, with its last words if something is wrong."""
    if status in (0, INTERRUPTED):
        return "interrupted and saved" if status else "finished"
    last = ["", *job.log.read_text(errors="replace").splitlines()][-1]
    return f"{'refused' if status == REFUSED else f'went wrong, status {status}'}: {last}"


if __name__ == "__main__":
    sys.exit(run_command(main))
