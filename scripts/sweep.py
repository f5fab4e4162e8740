"""Runs a W&B sweep file without W&B: Optuna chooses the settings, training.py runs them.

    python scripts/sweep.py scripts/sweep.yml
    python scripts/sweep.py scripts/sweep.yml --runs 20 --workers 2 -- --num_timesteps 1000000 --no_log_wandb

What stands after `--` goes to every run. The study lives in a database: the same command goes on with it, and several
machines share it by --storage postgresql+psycopg://USER@HOST/DATABASE (pip install "psycopg[binary]").
"""

import contextlib
import csv
import dataclasses
import itertools
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
import sqlalchemy
import tyro
import yaml
from optuna.trial import TrialState

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # so that it runs from any directory

from src.command_line import ConfigError, parse  # noqa: E402

# Statuses of a training: what it was asked for is refused; it left by a signal and can be resumed.
REFUSED, INTERRUPTED = 2, 75
IN_USE = "is being trained by another process"
HEARTBEAT_SECONDS, IN_USE_SECONDS, DEAD_AFTER_SECONDS, LOCK_SECONDS = 10, 60, 120, 60
STORAGE_ERRORS = optuna.exceptions.OptunaError, sqlalchemy.exc.SQLAlchemyError
UNDERSTOOD = {"program", "name", "description", "project", "method", "metric", "parameters", "run_cap"}


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
    """Write a SLURM array script, one run a task, and stop."""


# The sweep file.


def _number(trial: optuna.Trial, name: str, spec: dict[str, Any], **options: Any) -> float:
    return trial.suggest_float(name, float(spec["min"]), float(spec["max"]), **options)


# W&B's distributions -> the value that a trial takes.
DISTRIBUTIONS: dict[str, Callable[[optuna.Trial, str, dict[str, Any]], Any]] = {
    "constant": lambda trial, name, spec: spec["value"],
    "categorical": lambda trial, name, spec: trial.suggest_categorical(name, spec["values"]),
    "int_uniform": lambda trial, name, spec: trial.suggest_int(name, spec["min"], spec["max"]),
    "uniform": _number,
    "q_uniform": lambda trial, name, spec: _number(trial, name, spec, step=float(spec["q"])),
    "log_uniform_values": lambda trial, name, spec: _number(trial, name, spec, log=True),
}


def read_sweep(path: Path) -> dict[str, Any]:
    """The sweep file, every parameter with its distribution.

    Raises:
      ConfigError: it cannot be read or asks for something else than what is understood here.
    """
    try:
        sweep = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(sweep, dict) or not isinstance(sweep.get("parameters"), dict):
        raise ConfigError(f"{path} is not a sweep file: it has no parameters")
    strange = sorted(sweep.keys() - UNDERSTOOD)
    if strange:
        raise ConfigError(
            f"{path}: {', '.join(strange)} only works with W&B; understood: {', '.join(sorted(UNDERSTOOD))}"
        )
    if sweep.get("method") not in SAMPLERS:
        raise ConfigError(f"{path}: method {sweep.get('method')!r} is none of {', '.join(SAMPLERS)}")
    metric = sweep.get("metric") or {}
    if not metric.get("name") or metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise ConfigError(f"{path}: metric needs a name, and a goal that is minimize or maximize")
    parameters = {name: _with_distribution(name, spec, path) for name, spec in sweep["parameters"].items()}
    searched = {name: spec for name, spec in parameters.items() if spec["distribution"] != "constant"}
    endless = [name for name, spec in searched.items() if spec["distribution"] != "categorical"]
    if sweep["method"] == "grid" and endless:
        raise ConfigError(f"{path}: a grid needs a list of values of {', '.join(endless)}")
    return sweep | {"parameters": parameters}


def _with_distribution(name: str, spec: Any, path: Path) -> dict[str, Any]:
    """A parameter's entry with the distribution that W&B would take it to have."""
    if not isinstance(spec, dict):
        raise ConfigError(f"{path}: {name} needs value, values, or min and max")
    whole = all(isinstance(spec.get(bound), int) for bound in ("min", "max"))
    kinds = {"value": "constant", "values": "categorical", "min": "int_uniform" if whole else "uniform"}
    kind = spec.get("distribution") or next((kind for key, kind in kinds.items() if key in spec), None)
    needed = {"constant": {"value"}, "categorical": {"values"}, "q_uniform": {"min", "max", "q"}}
    missing = needed.get(kind, {"min", "max"}) - spec.keys()
    if kind not in DISTRIBUTIONS or missing:
        raise ConfigError(
            f"{path}: {name} needs value, values, or min and max"
            f" (and q), with one of the distributions {', '.join(DISTRIBUTIONS)}"
        )
    return spec | {"distribution": kind}


def suggest(trial: optuna.Trial, parameters: dict[str, Any]) -> dict[str, Any]:
    """The flags of a trial."""
    return {name: DISTRIBUTIONS[spec["distribution"]](trial, name, spec) for name, spec in parameters.items()}


def grid(parameters: dict[str, Any]) -> list[dict[str, Any]]:
    """Every combination of the lists of values."""
    lists = {name: spec["values"] for name, spec in parameters.items() if spec["distribution"] == "categorical"}
    return [dict(zip(lists, values, strict=True)) for values in itertools.product(*lists.values())]


SAMPLERS: dict[str, Callable[[], optuna.samplers.BaseSampler]] = {
    "bayes": lambda: optuna.samplers.TPESampler(constant_liar=True),  # runs on the way count as bad ones
    "random": optuna.samplers.RandomSampler,
    "grid": optuna.samplers.RandomSampler,  # never asked: all combinations are queued from the start
}


class DatabaseError(ConfigError):
    """What the database says no to, perhaps because another process is making its tables."""


@contextlib.contextmanager
def opening(url: str) -> Iterator[None]:
    """Says in one line what goes wrong with a database inside."""
    try:
        yield
    except Exception as error:  # also a URL that is none, a driver that is not installed
        kind = DatabaseError if isinstance(error, sqlalchemy.exc.DBAPIError) else ConfigError
        raise kind(f"cannot open {url}: {' '.join(str(error).split())[:300]}") from None


def open_storage(url: str) -> optuna.storages.RDBStorage:
    """Optuna's storage, with SQLite too one in which a queued run is taken by one process alone.

    Optuna takes it by SELECT FOR UPDATE, which SQLite has not: there, a transaction gets the whole database from its
    start (https://docs.sqlalchemy.org/en/20/dialects/sqlite.html).

    Raises:
      ConfigError: no such database.
    """
    with opening(url):
        if not url.startswith("sqlite"):
            return optuna.storages.RDBStorage(url)
        storage = optuna.storages.RDBStorage(url, engine_kwargs={"connect_args": {"timeout": LOCK_SECONDS}})
    storage.engine.dispose()  # connections of before the listeners

    @sqlalchemy.event.listens_for(storage.engine, "connect")
    def begin_nothing_itself(connection: Any, _: Any) -> None:
        connection.isolation_level = None

    @sqlalchemy.event.listens_for(storage.engine, "begin")
    def begin_alone(connection: sqlalchemy.Connection) -> None:
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return storage


def open_study(name: str, storage: optuna.storages.RDBStorage, sweep: dict[str, Any], runs: int) -> optuna.Study:
    """The study in the database, made there if need be; a grid's `runs` are queued as it is made.

    Raises:
      ConfigError: the database refuses, or its study was made from another sweep file, or is not made yet.
    """
    made_from = {key: sweep[key] for key in ("method", "metric", "parameters")}
    options = {"storage": storage, "sampler": SAMPLERS[sweep["method"]](), "study_name": name}
    with opening(storage.url):
        try:
            study = optuna.create_study(**options, direction=sweep["metric"].get("goal", "minimize"))
            for settings in grid(sweep["parameters"])[:runs] if sweep["method"] == "grid" else ():
                study.enqueue_trial(settings, user_attrs={"queued": True})
            study.set_user_attr("made_from", made_from)  # last: other processes wait for the whole queue
        except optuna.exceptions.DuplicatedStudyError:
            study = optuna.load_study(**options)
        found = study.user_attrs.get("made_from")
    if found is None:
        raise DatabaseError(f"the study {name} is not made in full yet, or never was: --study NAME begins a new one")
    if found != made_from:
        raise ConfigError(f"the study {name} was made from another sweep file: --study NAME begins a new one")
    return study


def patiently(attempt: Callable[[], optuna.Study]) -> optuna.Study:
    """Tries again for a while what the database refuses."""
    for seconds in (0.5, 1.0, 2.0):
        with contextlib.suppress(DatabaseError):
            return attempt()
        time.sleep(seconds)
    return attempt()


# One run.


class TrainingFailed(Exception):
    """A run that ended without a score."""


class Interrupted(Exception):
    """A run that was asked to leave, and can go on."""


def score(output: str, metric: str) -> float:
    """The last value of a metric in the run that `output` speaks of, the mean over its seeds.

    Raises:
      TrainingFailed: there is none.
    """
    folders = re.findall(r"^run folder  (.+)$|^nothing left to train: (.+) is finished", output, re.MULTILINE)
    values = []
    for folder in map("".join, folders):
        with (Path(folder) / "metrics.csv").open(newline="", errors="replace") as file:
            column = [row.get(metric) for row in csv.DictReader(file)]
        values += [float(value) for value in column if value][-1:]
    if not values:
        raise TrainingFailed(f"its metrics.csv has no {metric}")
    return sum(values) / len(values)


def check_status(status: int, output: str) -> None:
    """Raises TrainingFailed, with the line that says why, or Interrupted, unless the training went well."""
    if status in (INTERRUPTED, 130, -signal.SIGINT, -signal.SIGTERM):
        raise Interrupted
    if status:
        lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
        reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise TrainingFailed(f"status {status}, {reason[:300]}")


def origin(trial: optuna.trial.FrozenTrial) -> int:
    """The number of the run, which is that of its first trial, however often it was queued again."""
    return trial.user_attrs.get("goes_on", trial.number)


# The sweep.


class Sweep:
    """A study, and what the workers of this process share."""

    def __init__(self, config: SweepConfig, sweep: dict[str, Any], study: optuna.Study, more: list[str]):
        self.config, self.sweep, self.study, self.more = config, sweep, study, more
        self.logs = Path(config.output_dir) / "sweeps" / study.study_name
        self.logs.mkdir(parents=True, exist_ok=True)
        self.runs = number_of_runs(config, sweep)
        self.lock, self.leaving = threading.Lock(), threading.Event()
        self.started, self.failed = 0, 0
        self.children: list[subprocess.Popen] = []

    def work(self, device: str | None) -> None:
        """Runs trainings one after the other, until no run of the sweep is left, or this process's share is done."""
        while not self.leaving.is_set() and (self.config.here is None or self.started < self.config.here):
            trial = self._next()
            if trial:
                self._run(trial, device)
            elif not self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING)):
                return
            else:
                self.leaving.wait(1)  # for the runs of others, which may have to be taken over

    def _next(self) -> optuna.Trial | None:
        """The next run, one of a dead process first; None if all that are left are running."""
        with self.lock:
            self._take_over()
            waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
            if not waiting and (self.sweep["method"] == "grid" or len(self._origins()) >= self.runs):
                return None
            trial = self.study.ask()
            alive(trial)
            if not self._wanted(trial):
                self.study.tell(trial, state=TrialState.PRUNED)
                return None
            self.started += 1
            return trial

    def _wanted(self, trial: optuna.Trial) -> bool:
        """Whether a trial counts: another process may have taken the last one while this one asked."""
        if trial.user_attrs.keys() & {"goes_on", "queued"}:
            return True
        return self.sweep["method"] != "grid" and trial.number in sorted(self._origins())[: self.runs]

    def _origins(self) -> set[int]:
        trials = self.study.get_trials(deepcopy=False)
        return {origin(trial) for trial in trials if trial.state != TrialState.PRUNED}

    def _take_over(self) -> None:
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            last_sign = trial.user_attrs.get("alive", trial.datetime_start.timestamp())
            if time.time() - last_sign > DEAD_AFTER_SECONDS:
                self._queue_again(trial)

    def _queue_again(self, trial: optuna.trial.FrozenTrial) -> None:
        settings = trial.system_attrs.get("fixed_params", {}) | trial.params  # queued ones may not have been looked at
        with contextlib.suppress(ValueError, *STORAGE_ERRORS):  # another process was first
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(settings, user_attrs={"goes_on": origin(trial)})

    def _run(self, trial: optuna.Trial, device: str | None) -> None:
        settings = suggest(trial, self.sweep["parameters"])
        number = trial.user_attrs.get("goes_on", trial.number)
        searched = " ".join(f"--{name}={value}" for name, value in trial.params.items())
        print(f"run {number}: {searched}", flush=True)
        try:
            log = self.logs / f"run{number}.log"
            check_status(self._train(trial, self._command(number, settings), log, device), read(log))
            value = score(read(log), self.sweep["metric"]["name"])
        except Interrupted:
            self._queue_again(self.study.trials[trial.number])
            self.leaving.set()
        except (TrainingFailed, OSError, ValueError) as error:
            self._tell(trial, state=TrialState.FAIL)
            self.failed += 1
            print(f"run {number} failed: {error} ({log})", flush=True)
        else:
            self._tell(trial, value)
            print(f"run {number}: {self.sweep['metric']['name']} {value:g}", flush=True)

    def _tell(self, trial: optuna.Trial, value: float | None = None, state: TrialState | None = None) -> None:
        with contextlib.suppress(ValueError, *STORAGE_ERRORS):  # another process has taken it over, or will
            self.study.tell(trial, value, state)

    def _command(self, number: int, settings: dict[str, Any]) -> list[str]:
        """A training that goes on where it was left, if it was ever begun."""
        own = {"output_dir": self.config.output_dir, "group_name": self.study.study_name, "exp_name": f"run{number}"}
        flags = [f"--{name}={value}" for name, value in (settings | own).items()]
        return [sys.executable, str(ROOT / self.sweep.get("program", "training.py")), "--resume", *flags, *self.more]

    def _train(self, trial: optuna.Trial, command: list[str], log: Path, device: str | None) -> int:
        """Runs a training to its end, its output in `log`; returns its status. Waits for one that was left alone."""
        while (status := self._attempt(trial, command, log, device)) == REFUSED and IN_USE in read(log):
            alive(trial)
            if self.leaving.wait(IN_USE_SECONDS):
                return INTERRUPTED
        return status

    def _attempt(self, trial: optuna.Trial, command: list[str], log: Path, device: str | None) -> int:
        environment = os.environ | ({"CUDA_VISIBLE_DEVICES": device} if device is not None else {})
        with log.open("w") as file:
            process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment)
        self.children.append(process)
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                return process.wait(HEARTBEAT_SECONDS)
            alive(trial)

    def leave(self) -> None:
        """Starts no more runs and asks those that run to save and leave."""
        self.leaving.set()
        for process in self.children:
            process.terminate()


def alive(trial: optuna.Trial) -> None:
    """Says that the process of a trial is alive; a database that is out of reach hears of it next time."""
    with contextlib.suppress(*STORAGE_ERRORS):
        trial.set_user_attr("alive", time.time())


def read(path: Path) -> str:
    return path.read_text(errors="replace")


def number_of_runs(config: SweepConfig, sweep: dict[str, Any]) -> int:
    """Runs of the whole sweep.

    Raises:
      ConfigError: nobody says how many.
    """
    runs = config.runs or sweep.get("run_cap") or (len(grid(sweep["parameters"])) if sweep["method"] == "grid" else 0)
    if runs < 1:
        raise ConfigError("how many runs? Give --runs, or run_cap in the sweep file")
    return runs


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
    """One task a run; each asks the study for one."""
    words = [sys.executable, str(ROOT / "scripts" / "sweep.py"), str(Path(config.sweep).resolve()), "--study", name]
    words += ["--storage", storage, "--output_dir", config.output_dir, "--runs", str(runs)]
    words += ["--workers", "1", "--here", "1", *(["--", *more] if more else [])]
    at_once = f"%{config.workers}" if config.workers else ""
    return f"""#!/usr/bin/env bash
#SBATCH --job-name={name}
#SBATCH --array=0-{runs - 1}{at_once}
#SBATCH --gpus=1
#SBATCH --cpus-per-task=8
#SBATCH --time=24:00:00
#SBATCH --signal=B:TERM@120
cd {shlex.quote(os.getcwd())}
exec {shlex.join(words)}
"""


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    own, more = (args[: args.index("--")], args[args.index("--") + 1 :]) if "--" in args else (args, [])
    try:
        config = parse(SweepConfig, own, prog="sweep.py")
        sweep = read_sweep(Path(config.sweep))
        runs = number_of_runs(config, sweep)
        name = config.study or str(sweep.get("name") or Path(config.sweep).stem)
        folder = Path(config.output_dir) / "sweeps"
        folder.mkdir(parents=True, exist_ok=True)
        storage = config.storage or f"sqlite:///{(folder / name).resolve()}.db"
        if config.slurm:
            script = folder / f"{name}.sbatch"
            script.write_text(slurm_script(config, name, storage, runs, more))
            print(f"sbatch {script}")
            return 0
        study = patiently(lambda: open_study(name, open_storage(storage), sweep, runs))
        return run(Sweep(config, sweep, study, more))
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(sweep: Sweep) -> int:
    """Runs all workers to their end; returns the exit status."""
    own = devices(sweep.config.workers, visible_gpus())
    threads = [threading.Thread(target=sweep.work, args=(device,)) for device in own]
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sweep.leave())
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if sweep.leaving.is_set():
        print("left early; the same command goes on", flush=True)
        return INTERRUPTED
    if sweep.config.here is not None:
        return 1 if sweep.failed else 0
    trials = sweep.study.get_trials(states=(TrialState.COMPLETE,))
    print(f"{len(trials)} of {sweep.runs} runs have a score; the study is {sweep.study.study_name}")
    if trials:
        best = sweep.study.best_trial
        print(f"best: run {origin(best)}, {sweep.sweep['metric']['name']} {best.value:g}")
        print("  " + " ".join(f"--{name}={value}" for name, value in best.params.items()))
    return 1 if sweep.failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
