"""One seed's run folder: lock, files, loggers, failure."""

import contextlib
import dataclasses
import fcntl
import json
import math
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np

from src import devices
from src.checkpoint import (
    BEST_PARAMS_FILE,
    NOT_OFFERED,
    PARAMS_FILE,
    learned_arrays,
    list_checkpoints,
    save_params,
)
from src.command_line import command_line
from src.loggers import TensorBoardLogger, WandbLogger
from src.loop import Position
from src.output import CSVLogger, Logger, read_rows, survives
from src.program import Program
from utils import (
    Config,
    ConfigError,
    Schedule,
    make_run_dir,
    write_record,
    write_text,
)

# Blown-up envs per env step beyond which an epoch no longer says anything of the task.
_MOST_RESETS = 1e-3


class Checkpoint(NamedTuple):
    """Where a run can resume: the run's config now, its folder, the checkpoint's folder and manifest."""

    config: Config
    run_dir: Path
    path: Path
    manifest: dict[str, Any]

    @property
    def position(self) -> Position:
        return Position(**self.manifest["position"])

    def finished(self, schedule: Schedule) -> bool:
        return self.position.evaluated_at >= schedule.eval_at[-1]


def trained_with(run_dir: Path) -> list[str]:
    """The names of the run folders of all seeds that were trained together with this one, itself included."""
    record = json.loads((run_dir / "config.json").read_text())
    return record.get("trained_with", [run_dir.name])


class InUse(ConfigError):
    """Another process trains in the run folder."""


def lock(run_dir: Path) -> IO:
    """Takes a run folder for this process, until the file is closed or the process ends, however it ends.

    A file system without locks costs a warning.

    Raises:
      InUse: another process has it.
      ConfigError: it cannot be locked.
    """
    with contextlib.ExitStack() as on_failure:
        try:
            file = on_failure.enter_context((run_dir / "lock").open("a"))
            _take(file)
        except BlockingIOError:
            raise InUse(f"{run_dir} is being trained by another process") from None
        except OSError as error:
            raise ConfigError(f"cannot lock {run_dir}: {error.strerror}") from None
        on_failure.pop_all()
    return file


def _take(file: IO) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in NOT_OFFERED:
            raise
        print(f"warning: no locks here ({error.strerror}): nothing keeps others out of {file.name}", file=sys.stderr)


def take_run_dirs(
    config: Config, starts: list[tuple[Config, Checkpoint | None]], locks: contextlib.ExitStack
) -> list["SeedRun"]:
    """The seeds' runs in new folders or in those of their checkpoints, which are ours until `locks` is closed.

    Raises:
      ConfigError: one of them cannot be had; those made for it are gone again.
    """
    runs: list[SeedRun] = []
    try:
        for start in starts:
            runs.append(SeedRun(*start))
            locks.enter_context(lock(runs[-1].run_dir))
        list_run_dirs(config, [seed_run.run_dir for seed_run in runs])
    except ConfigError:
        for seed_run in runs:
            if seed_run.checkpoint is None:
                (seed_run.run_dir / "lock").unlink(missing_ok=True)
                seed_run.run_dir.rmdir()
        raise
    return runs


def list_run_dirs(config: Config, run_dirs: list[Path], mode: str = "a") -> None:
    """Adds run folders to --run_dir_file, one path per line; with `mode` "w" the file begins with them. The first
    process alone does.

    Raises:
      ConfigError: it cannot be written.
    """
    if config.run_dir_file and not config.dry_run and devices.is_first_process():
        try:
            with open(config.run_dir_file, mode) as file:
                file.writelines(f"{run_dir}\n" for run_dir in run_dirs)
        except OSError as error:
            raise ConfigError(f"--run_dir_file: cannot write {config.run_dir_file}: {error.strerror}") from None


# Running.


class SeedRun:
    """One seed's folder while it trains.

    Attributes:
      metrics: of the last evaluation.
      failure: why this seed stopped on its own; empty while it trains.
    """

    def __init__(self, config: Config, checkpoint: Checkpoint | None = None):
        """Makes a new folder, or takes that of `checkpoint`.

        Raises:
          ConfigError: the folder cannot be made.
        """
        self.config = config
        self.run_dir = checkpoint.run_dir if checkpoint else make_run_dir(config)
        self.checkpoint = checkpoint
        self.metrics: dict[str, float] = {}
        self.failure = ""
        self._unwritten: dict[str, Callable[[], None]] = {}

    def open(
        self, program: Program, kinds: list[str], together: list[str], wait_for_writer: Callable[[], None]
    ) -> None:
        """Records what is about to run and opens the loggers.

        Args:
          together: names of the run folders of all seeds trained together.
          wait_for_writer: waits for checkpoints that are being written.
        """
        self._wait_for_writer = wait_for_writer
        per_step = program.schedule.env_steps_per_training_step
        position, run_id = (
            (self.checkpoint.position, self.checkpoint.manifest["wandb_run_id"])
            if self.checkpoint
            else (Position(), None)
        )
        self.evaluated_at, self.checked_at = position.evaluated_at * per_step, position.training_steps * per_step
        (self.run_dir / "failure.json").unlink(missing_ok=True)
        for leftover in (self.run_dir / "checkpoints").glob(".*"):  # half written when the process was killed
            shutil.rmtree(leftover, ignore_errors=True)
        names = trained_with(self.run_dir) if self.checkpoint else together
        self._write("config.json", lambda: write_record(self.run_dir, self.config, program.schedule, kinds, names))
        self.csv = CSVLogger(self.run_dir / "metrics.csv", read_rows(self.run_dir / "metrics.csv", self.evaluated_at))
        self.wandb = WandbLogger(self.config, self.run_dir, run_id) if self.config.log_wandb else None
        self.loggers: list[Logger] = [self.csv, *([self.wandb] if self.wandb else [])]
        if self.config.log_tensorboard:
            self.loggers.append(TensorBoardLogger(self.run_dir, self.evaluated_at if self.checkpoint else None))
        self.best = max(
            (float(row["eval/episode_success"]) for row in self.csv.rows if "eval/episode_success" in row),
            default=-math.inf,
        )

    def check_finite(self, values: dict[str, Any], env_steps: int) -> None:
        """Ends this seed at the first of `values` that is not finite; what is on disk stays as it was before."""
        for name, value in values.items():
            wrong = np.asarray(value)[~np.isfinite(value)]
            if wrong.size and not self.failure:
                self._fail(name, float(wrong[0]), env_steps, f"{name} is {wrong[0]}")

    def require_rows(self, drawable: int, env_steps: int) -> None:
        """Ends this seed if there is no row of its replay to learn from."""
        if not drawable and not self.failure:
            text = "the replay holds nothing to draw, every trajectory in it is too short"
            self._fail("training/replay_drawable", drawable, env_steps, text)

    def report(self, metrics: dict[str, float], env_steps: int, agent_state: Any, env_resets: np.ndarray) -> None:
        """Logs an evaluation and saves the parameters. `env_resets` (N,) counts how often each env blew up."""
        self.metrics = metrics
        for logger in self.loggers:
            logger.log(metrics, env_steps)
        self.check_finite(metrics | learned_arrays(agent_state), env_steps)
        resets, epoch = int(env_resets.sum()), env_steps - max(self.evaluated_at, 0)
        if resets > _MOST_RESETS * epoch and not self.failure:
            worst = int(env_resets.argmax())
            text = f"physics blew up {resets:,} times in {epoch:,} env steps, most often ({env_resets[worst]:,}) in env"
            self._fail("training/env_resets_nonfinite", resets, env_steps, f"{text} {worst}")
        self.evaluated_at = env_steps
        if not self.failure:
            self._save_policies(metrics, env_steps, agent_state)

    def _save_policies(self, metrics: dict[str, float], env_steps: int, agent_state: Any) -> None:
        self._write(PARAMS_FILE, lambda: save_params(self.run_dir / PARAMS_FILE, agent_state))
        if metrics.get("eval/episode_success", -math.inf) > self.best:
            self.best = metrics["eval/episode_success"]
            self._write(BEST_PARAMS_FILE, lambda: save_params(self.run_dir / BEST_PARAMS_FILE, agent_state))
        if self.config.keep_policies:
            policies = self.run_dir / "policies"
            survives("policies", lambda: save_params(policies / f"{env_steps:012d}.npz", agent_state))
            for old in sorted(policies.glob("*.npz"))[: -self.config.keep_policies]:
                old.unlink(missing_ok=True)

    def _write(self, name: str, write: Callable[[], None]) -> None:
        """Writes a file that the run must leave; `close` tries again what failed."""
        self._unwritten.pop(name, None)
        if not survives(str(self.run_dir / name), write):
            self._unwritten[name] = write

    def _fail(self, quantity: str, value: float, env_steps: int, text: str) -> None:
        self._wait_for_writer()
        before = list_checkpoints(self.run_dir)
        self.failure = f"{text} at env step {env_steps:,}; see {self.run_dir}/failure.json"
        failure = {
            "quantity": quantity,
            "value": str(value),
            "env_steps": [self.checked_at, env_steps],
            "checkpoint_before": str(before[-1]) if before else None,
            "reproduce": command_line(dataclasses.replace(self.config, resume=str(before[-1]) if before else None)),
        }
        self._write(
            "failure.json", lambda: write_text(self.run_dir / "failure.json", json.dumps(failure, indent=2) + "\n")
        )

    def manifest(self, position: Position, env_steps: int) -> dict[str, Any]:
        """What a checkpoint says of itself."""
        return {
            "env_steps": env_steps,
            "position": dataclasses.asdict(position),
            "replay": self.config.checkpoint_replay,
            "wandb_run_id": self.wandb.run_id if self.wandb else None,
        }

    def close(self) -> bool:
        """Closes the loggers, and whether all that the run must leave is on disk."""
        for name, write in list(self._unwritten.items()):
            self._write(name, write)
        for logger in self.loggers:
            logger.close()
        return not self._unwritten and self.csv.complete
