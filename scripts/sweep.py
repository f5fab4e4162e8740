"""Runs a W&B sweep file without W&B: Optuna chooses the settings, training.py runs them.

    python scripts/sweep.py scripts/sweep.yml
    python scripts/sweep.py scripts/sweep.yml --runs 20 --workers 2 -- --num_timesteps 1000000 --no_log_wandb
    python scripts/sweep.py scripts/sweep.yml -- --dry_run

What stands after `--` goes to every run. The study lives in a database: the same command continues it, and several
machines share it by --storage postgresql+psycopg://USER@HOST/DATABASE (pip install "psycopg[binary]"). With
`-- --dry_run` every run writes its plan into a log, and no study is made. The file is checked in full before anything
starts. docs/sweeps.md says what it can ask for, and what a program in the place of training.py must do.

Exit status: 0 every run has a score, 1 one has none, 2 refused, 75 left by a signal (the same command continues).
"""

import contextlib
import dataclasses
import math
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import optuna
import tyro
from optuna.trial import TrialState

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts.sweep_command import ROOT, ask_training, check_flags, flag_of  # noqa: E402
from scripts.sweep_file import check_name, one_line, read_sweep  # noqa: E402
from scripts.sweep_space import LARGEST_GRID, grid_size, settings_of  # noqa: E402
from scripts.sweep_study import STORAGE_ERRORS, check_url, open_study, opened_storage, origin, retry, sqlite_url  # noqa: E402
from scripts.sweep_worker import SIGNALS, Sweep, flags_text, is_dry, make_folder  # noqa: E402
from src.command_line import parse  # noqa: E402
from src.output import run_command  # noqa: E402
from utils import FAILED, INTERRUPTED, REFUSED, ConfigError  # noqa: E402

# Flags of a run that its sweep sets: flag -> what they are.
SET_HERE = {"output_dir": "sweep.py's own", "group_name": "the sweep's name", "exp_name": "the run's number"}
SET_HERE |= {"resume": "always on", "run_dir_file": "sweep.py's own"}


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Searches for good settings as a W&B sweep file describes it, without an account."""

    sweep: tyro.conf.Positional[str]
    """The sweep file."""
    runs: int | None = None
    """Runs of the whole sweep, on all machines; none given: run_cap of the file, and of a grid, all."""
    workers: int = 0
    """Runs at the same time on this machine; 0: one per GPU, or one."""
    here: int | None = None
    """Runs that this process starts at most."""
    study: str | None = None
    """Name of the sweep; none given: the file's name entry, or the file's own name."""
    storage: str | None = None
    """URL of the database that holds the study; none given: SQLite, OUTPUT_DIR/sweeps/STUDY.db."""
    output_dir: str = "runs"
    """Where run folders are made, and what the sweep says in OUTPUT_DIR/sweeps."""
    slurm: bool = False
    """Write a SLURM array script, one run per task, and stop."""


def number_of_runs(config: SweepConfig, sweep: dict[str, Any]) -> int:
    """Runs of the whole sweep.

    Raises:
      ConfigError: nobody says how many.
    """
    is_grid = sweep["method"] == "grid"
    runs = min(config.runs or sweep.get("run_cap") or math.inf, grid_size(sweep["parameters"]) if is_grid else math.inf)
    if runs == math.inf:
        raise ConfigError("how many runs? Give --runs, or run_cap in the sweep file")
    if is_grid and runs > LARGEST_GRID:
        raise ConfigError(f"a grid of {runs:,} runs is too large; give --runs, or run_cap, at most {LARGEST_GRID:,}")
    return int(runs)


def visible_gpus() -> list[str]:
    """The GPUs of this process, as CUDA_VISIBLE_DEVICES names them."""
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES")
    if chosen is not None:
        return [gpu for gpu in chosen.split(",") if gpu]
    try:
        listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    except OSError:
        return []
    return [str(index) for index, _ in enumerate(re.findall("^GPU ", listed, re.MULTILINE))]


def devices(workers: int, gpus: list[str]) -> list[str | None]:
    """The GPU of each worker, in turns; None where there is none to choose."""
    count = workers or len(gpus) or 1
    return [gpus[worker % len(gpus)] if gpus else None for worker in range(count)]


def slurm_script(config: SweepConfig, name: str, storage: str, runs: int, more: list[str]) -> str:
    """One task per run; each asks the study for one."""
    words = [sys.executable, str(ROOT / "scripts" / "sweep.py"), str(Path(config.sweep).resolve())]
    words += [f"--study={name}", f"--storage={storage}", f"--output_dir={config.output_dir}", f"--runs={runs}"]
    words += ["--workers=1", "--here=1", *(["--", *more] if more else [])]
    at_once = f"%{config.workers}" if config.workers else ""
    return f"""#!/usr/bin/env bash
#SBATCH --job-name={shlex.quote(name)}
#SBATCH --array=0-{runs - 1}{at_once}
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
cd {shlex.quote(os.getcwd())}
exec {shlex.join(words)}
"""


def parse_config(args: list[str]) -> SweepConfig:
    """Reads the command line, `~` in its paths expanded.

    Raises:
      ConfigError: an unknown flag, or a value of the wrong type or out of range.
    """
    config = parse(SweepConfig, args, prog="sweep.py")
    for flag, least in (("runs", 1), ("workers", 0), ("here", 1)):
        value = getattr(config, flag)
        if value is not None and value < least:
            raise ConfigError(f"--{flag} {value} is out of range: at least {least}")
    if config.study is not None:
        check_name(config.study, "--study")
    storage = config.storage
    if storage is not None and (home := re.fullmatch(r"(sqlite[^:]*:///)(~.*)", storage)):
        storage = home[1] + os.path.expanduser(home[2])
    paths = {flag: os.path.expanduser(getattr(config, flag)) for flag in ("sweep", "output_dir")}
    return dataclasses.replace(config, storage=storage, **paths)


def set_here(sweep: dict[str, Any]) -> list[str]:
    """The flags in the file that the sweep sets itself, as the same file may need them with W&B.

    Raises:
      ConfigError: one of them is searched.
    """
    specs = {flag_of(name): spec for name, spec in sweep["parameters"].items()}
    words = {flag_of(word) for word in sweep.get("command", ()) if word.startswith("--")}
    found = [flag for flag in SET_HERE if flag in specs.keys() | words]
    for flag in found:
        if specs.get(flag, {}).get("distribution", "constant") != "constant":
            raise ConfigError(f"{flag} cannot be searched, sweep.py sets it: it is {SET_HERE[flag]}")
    return found


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own, more = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    try:
        return start(parse_config(own), more)
    except ConfigError as error:
        print(f"error: {one_line(str(error))}", file=sys.stderr, flush=True)
        return REFUSED


def start(config: SweepConfig, more: list[str]) -> int:
    """Runs a sweep, or writes its job script; returns the exit status.

    Raises:
      ConfigError: something that is asked for cannot be; nothing was started.
    """
    sweep = read_sweep(Path(config.sweep))
    runs = number_of_runs(config, sweep)
    name = config.study or sweep.get("name") or check_name(Path(config.sweep).stem, "the file's name; give --study:")
    ignored = set_here(sweep)
    check_flags(sweep, more, ask_training)
    folder = Path(config.output_dir) / "sweeps"
    if config.storage is not None:
        check_url(config.storage)
    if config.slurm or config.storage is None:
        make_folder(folder)
    url = config.storage if config.storage is not None else sqlite_url((folder / f"{name}.db").resolve())
    if config.slurm:
        return write_slurm_script(folder / f"{name}.sbatch", slurm_script(config, name, url, runs, more))
    if ignored:
        said = ", ".join(f"{flag} ({SET_HERE[flag]})" for flag in ignored)
        print(f"set by sweep.py, not by the file: {said}", flush=True)
    with contextlib.ExitStack() as at_the_end:
        if is_dry(more):
            study = open_study(name, optuna.storages.InMemoryStorage(), sweep, runs)
        else:
            study = retry(lambda: open_study(name, at_the_end.enter_context(opened_storage(url)), sweep, runs, url))
        own = Sweep(sweep, study, runs, more, config.output_dir, config.here)
        return run(own, devices(config.workers, visible_gpus()))


def write_slurm_script(path: Path, text: str) -> int:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--output_dir: cannot write {path}: {error.strerror}") from None
    print(shlex.join(["sbatch", str(path)]), flush=True)
    return 0


@contextlib.contextmanager
def signals_asking(leave: Callable[[], None]) -> Iterator[None]:
    """Calls `leave` at every signal that asks to leave; SIGHUP that is ignored, as under nohup, stays ignored."""
    in_main = threading.current_thread() is threading.main_thread()
    ignored = {signal.SIGHUP} if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN else set()
    numbers = [number for number in SIGNALS if in_main and number not in ignored]
    before = {number: signal.signal(number, lambda *_: leave()) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def run(sweep: Sweep, own_devices: list[str | None]) -> int:
    """Runs a worker per device to its end; returns the exit status."""
    threads = [threading.Thread(target=sweep.work, args=(device,)) for device in own_devices]
    with signals_asking(sweep.leave):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for seconds in (1, 3, 5):
        with contextlib.suppress(*STORAGE_ERRORS):
            sweep.tell_all()
        if sweep.untold:
            time.sleep(seconds)
    if sweep.untold:
        print(
            f"error: {len(sweep.untold)} scores are not in the database; repeat the command",
            file=sys.stderr,
            flush=True,
        )
    if sweep.leaving.is_set():
        print("left early; the same command continues", flush=True)
        return INTERRUPTED
    failed = sweep.failed or sweep.untold
    if sweep.here is None and not sweep.dry:
        try:
            failed = failed or not report(sweep)
        except STORAGE_ERRORS as error:
            print(one_line(f"warning: the study cannot be read: {error}"), file=sys.stderr, flush=True)
    return FAILED if failed else 0


def report(sweep: Sweep) -> bool:
    """Says how many runs have a score, and which is the best; whether none of them lacks one."""
    trials = sweep.study.get_trials(states=(TrialState.COMPLETE,))
    print(f"{len(trials)} of {sweep.runs} runs have a score; the study is {sweep.study.study_name}", flush=True)
    if trials:
        best = sweep.study.best_trial
        print(f"best: run {origin(best)}, {sweep.sweep['metric']['name']} {best.value:g}", flush=True)
        print("  " + flags_text(settings_of(best.params, sweep.sweep["parameters"])), flush=True)
    return len(trials) >= sweep.runs or sweep.target_met()


if __name__ == "__main__":
    sys.exit(run_command(main))
