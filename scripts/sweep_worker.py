"""The work of a sweep: asking the study for runs, running them to their end, telling it how they ended."""

import contextlib
import csv
import json
import math
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import optuna
from optuna.trial import TrialState

from scripts.sweep_command import DEFAULT_COMMAND, expand, search_path
from scripts.sweep_file import one_line
from scripts.sweep_space import settings_of, suggest
from scripts.sweep_study import CONTINUES, STORAGE_ERRORS, heartbeat, origin
from utils import IN_USE, INTERRUPTED, ConfigError

SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# What a run that was asked to leave ends with; by a signal itself if it came before the run listened to it.
LEFT = {INTERRUPTED, *(-number for number in SIGNALS), *(128 + number for number in SIGNALS)}
HEARTBEAT_SECONDS, IN_USE_SECONDS, DEAD_AFTER_SECONDS = 10, 60, 120
DATABASE_SECONDS, DATABASE_PATIENCE_SECONDS = 10, 3600

_Answer = TypeVar("_Answer")


class TrainingFailed(Exception):
    """A run that ended without a score."""


class Interrupted(Exception):
    """A run that was asked to leave, and can be resumed."""


def score(run_dir_file: Path, metric: str) -> float:
    """The last value of a metric in the run folders that a training has named, the mean over its seeds.

    Raises:
      TrainingFailed: there is none.
    """
    try:
        folders = [Path(os.fsdecode(line)) for line in run_dir_file.read_bytes().splitlines() if line.strip()]
    except OSError:
        folders = []
    if not folders:
        raise TrainingFailed("it has not written its run folder to the file of --run_dir_file")
    values = []
    for folder in folders:
        with (folder / "metrics.csv").open(newline="", errors="replace") as file:
            column = [row.get(metric) for row in csv.DictReader(file)]
        values += [float(value) for value in column if value][-1:]
    if not values:
        raise TrainingFailed(f"its metrics.csv has no {metric}")
    mean = sum(values) / len(values)
    if not math.isfinite(mean):
        raise TrainingFailed(f"its {metric} is {mean}")
    return mean


def check_status(status: int, output: str) -> None:
    """Raises TrainingFailed, with the line that says why, or Interrupted, unless the training went well."""
    if status in LEFT:
        raise Interrupted
    if status:
        lines = [line for line in output.splitlines() if line.strip()] or ["no output"]
        reason = next((line for line in lines if line.startswith("error: ")), lines[-1])
        raise TrainingFailed(f"status {status}, {reason[:300]}")


def flags_text(settings: dict[str, Any]) -> str:
    """Settings as they would be typed."""
    return shlex.join(f"--{name}={value}" for name, value in settings.items())


# The sweep.


class Sweep:
    """A study, and what the workers of this process share."""

    def __init__(
        self,
        sweep: dict[str, Any],
        study: optuna.Study,
        runs: int,
        more: list[str],
        output_dir: str = "runs",
        here: int | None = None,
    ):
        """`runs` is how many the whole sweep has, `here` how many this process starts at most; `more` goes to each.

        Raises:
          ConfigError: the folder of the logs cannot be made.
        """
        self.sweep, self.study, self.runs, self.more = sweep, study, runs, more
        self.output_dir, self.here, self.dry = output_dir, here, is_dry(more)
        self.logs = Path(output_dir) / "sweeps" / study.study_name / ("dry_run" if self.dry else "")
        make_folder(self.logs)
        self.lock, self.leaving = threading.RLock(), threading.Event()
        self.started, self.failed = 0, 0
        self.children: list[subprocess.Popen] = []
        self.untold: list[tuple[optuna.Trial, float | None, TrialState | None]] = []

    def work(self, device: str | None) -> None:
        """Runs trainings one after the other, until no run of the sweep is left, or this process's share is done."""
        try:
            while not self.leaving.is_set() and (self.here is None or self.started < self.here):
                trial = self._patiently(self._next)
                if trial:
                    self._run(trial, device)
                elif not self._patiently(self._any_left):
                    return
                else:
                    self.leaving.wait(1)  # for the runs of others, which may have to be taken over
        except Exception as error:  # a worker that ends early is a failure of the sweep, whatever ended it
            self.failed += 1
            print(one_line(f"error: a worker ended: {type(error).__name__}: {error}"), file=sys.stderr, flush=True)

    def _patiently(self, attempt: Callable[[], _Answer]) -> _Answer:
        """What the database answers; waits, with a warning, for one that is full or out of reach."""
        patient_until, said = time.monotonic() + DATABASE_PATIENCE_SECONDS, False
        while True:
            try:
                return attempt()
            except STORAGE_ERRORS as error:
                if self.leaving.is_set() or time.monotonic() > patient_until:
                    raise
                if not said:
                    print(one_line(f"warning: waiting for the database: {error}"), file=sys.stderr, flush=True)
                said = True
            self.leaving.wait(DATABASE_SECONDS)

    def _next(self) -> optuna.Trial | None:
        """The next run, one of a dead process first; None if there is none at the moment."""
        with self.lock:
            self.tell_all()
            return self._ask()

    def _ask(self) -> optuna.Trial | None:
        self._take_over()
        waiting = self.study.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        queued_only = self.sweep["method"] == "grid" or len(self._origins()) >= self.runs
        if self.target_met() or (queued_only and not waiting):
            return None
        trial = self.study.ask()
        heartbeat(trial)
        if not self._wanted(trial):
            self.study.tell(trial, state=TrialState.PRUNED)
            return None
        self.started += 1
        return trial

    def _any_left(self) -> bool:
        """Whether runs are on the way or queued."""
        states = (TrialState.RUNNING,) if self.target_met() else (TrialState.RUNNING, TrialState.WAITING)
        return bool(self.study.get_trials(deepcopy=False, states=states))

    def target_met(self) -> bool:
        """Whether a run has reached the metric's target; no run is started then."""
        target, sign = self.sweep["metric"].get("target"), 1 if self.sweep["metric"].get("goal") == "maximize" else -1
        scored = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return target is not None and any(sign * (trial.value - target) >= 0 for trial in scored)

    def _wanted(self, trial: optuna.Trial) -> bool:
        """Whether a trial counts: another process may have taken the last one while this one asked."""
        if trial.user_attrs.keys() & {CONTINUES, "queued"}:
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
        chosen = trial.system_attrs.get("fixed_params", {}) | trial.params  # queued ones may not have been looked at
        with contextlib.suppress(ValueError, *STORAGE_ERRORS):  # another process was first
            self.study.tell(trial.number, state=TrialState.FAIL)
            self.study.enqueue_trial(chosen, user_attrs={CONTINUES: origin(trial)})

    def _run(self, trial: optuna.Trial, device: str | None) -> None:
        number = trial.user_attrs.get(CONTINUES, trial.number)
        log = self.logs / f"run{number}.log"
        metric = self.sweep["metric"]["name"]
        try:
            settings = self._patiently(lambda: suggest(trial, self.sweep["parameters"]))
            print(f"run {number}: {flags_text(settings_of(trial.params, self.sweep['parameters']))}", flush=True)
            check_status(*self._train(trial, self._command(number, settings), log, device))
            value = None if self.dry else score(self._run_dir_file(number), metric)
        except Interrupted:
            self.leaving.set()
            with contextlib.suppress(*STORAGE_ERRORS):  # then it is taken over like the run of a dead process
                self._queue_again(self.study.trials[trial.number])
        except Exception as error:  # whatever a run dies of, the sweep carries on with the next one
            self._tell(trial, state=TrialState.FAIL)
            self.failed += 1
            reason = str(error) if isinstance(error, TrainingFailed) else f"{type(error).__name__}: {error}"
            print(f"run {number} failed: {one_line(reason)} ({log})", flush=True)
        else:
            self._tell(trial, value, TrialState.FAIL if self.dry else None)
            print(f"run {number}: {f'its plan is in {log}' if self.dry else f'{metric} {value:g}'}", flush=True)

    def _tell(self, trial: optuna.Trial, value: float | None = None, state: TrialState | None = None) -> None:
        """Tells the study how a run ended; a database that is out of reach hears of it later."""
        with self.lock:
            self.untold.append((trial, value, state))
            with contextlib.suppress(*STORAGE_ERRORS):
                self.tell_all()

    def tell_all(self) -> None:
        """Tells the study what it could not be told when it happened."""
        while self.untold:
            with contextlib.suppress(ValueError, optuna.exceptions.UpdateFinishedTrialError):  # taken over by another
                self.study.tell(*self.untold[0])
            self.untold.pop(0)

    def _run_dir_file(self, number: int) -> Path:
        """Where a training writes its run folders; kept between the attempts, of which the last may train nothing."""
        return self.logs / f"run{number}.folders"

    def _command(self, number: int, settings: dict[str, Any]) -> list[str]:
        """A training that resumes where it was left, if it ever started."""
        own = {"output_dir": self.output_dir, "group_name": self.study.study_name, "exp_name": f"run{number}"}
        own |= {"project_name": self.sweep["project"]} if "project" in self.sweep else {}
        own |= {"run_dir_file": self._run_dir_file(number)}
        words, json_file = self.sweep.get("command", DEFAULT_COMMAND), (self.logs / f"run{number}.json").resolve()
        if "${args_json_file}" in words:
            json_file.write_text(json.dumps(settings), encoding="utf-8")
        command = expand(words, self.sweep["program"], settings, json_file)
        resume = [] if self.dry else ["--resume"]  # a plan is that of a new run
        return [*command, *resume, *(f"--{name}={value}" for name, value in own.items()), *self.more]

    def _train(self, trial: optuna.Trial, command: list[str], log: Path, device: str | None) -> tuple[int, str]:
        """Runs a training to its end, its output in `log`; returns its status and what it said. A run folder that
        another process still trains in, since only its sweep died, is waited for."""
        while (ended := self._attempt(trial, command, log, device))[0] == IN_USE:
            heartbeat(trial)
            if self.leaving.wait(IN_USE_SECONDS):
                return INTERRUPTED, ""
        return ended

    def _attempt(self, trial: optuna.Trial, command: list[str], log: Path, device: str | None) -> tuple[int, str]:
        environment = os.environ | {"PATH": search_path()}
        if device is not None:
            environment["CUDA_VISIBLE_DEVICES"] = device
        if "entity" in self.sweep:
            environment["WANDB_ENTITY"] = self.sweep["entity"]
        with opened_log(log) as file:
            before = file.tell() if file else 0
            output = file or subprocess.DEVNULL
            process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        self.children.append(process)
        if self.leaving.is_set():  # since the list was gone through
            process.terminate()
        while True:
            with contextlib.suppress(subprocess.TimeoutExpired):
                status = process.wait(HEARTBEAT_SECONDS)
                return status, said_since(log, before)
            heartbeat(trial)

    def leave(self) -> None:
        """Starts no more runs and asks those that run to save and leave."""
        self.leaving.set()
        for process in self.children:
            process.terminate()


@contextlib.contextmanager
def opened_log(path: Path) -> Iterator[Any]:
    """A log to write on at its end; None, with a warning, if it cannot be opened."""
    try:
        file = path.open("ab")
    except OSError as error:
        print(f"warning: {path}: {error.strerror}; the run goes without a log", file=sys.stderr, flush=True)
        yield None
    else:
        with file:
            yield file


def said_since(path: Path, start: int) -> str:
    """What a log holds from a position on."""
    with contextlib.suppress(OSError), path.open("rb") as file:
        file.seek(start)
        return file.read().decode("utf-8", "replace")
    return ""


def make_folder(path: Path) -> None:
    """Makes a folder; ConfigError if that cannot be."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"--output_dir: cannot make {path}: {error.strerror}") from None


def is_dry(more: list[str]) -> bool:
    """Whether the runs only print their plans."""
    return any(word.replace("-", "_").lower() in ("__dry_run", "__dry_run=true") for word in more)
