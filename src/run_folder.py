"""The outside of one seed's training: its folder and who owns it, where it can go on, its files, its end."""

import contextlib
import dataclasses
import fcntl
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, NamedTuple

import jax
import numpy as np

from src.checkpoint import (
    BEST_PARAMS_FILE,
    PARAMS_FILE,
    device_tree,
    host_arrays,
    learned_arrays,
    list_checkpoints,
    read_arrays,
    read_manifest,
    save_params,
)
from src.loggers import TensorBoardLogger, WandbLogger
from src.loop import Position, RunState, make_init
from src.program import Program
from src.train import empty_replay
from utils import (
    NEWEST,
    Config,
    ConfigError,
    CSVLogger,
    Logger,
    Schedule,
    command_line,
    make_run_dir,
    read_config,
    read_rows,
    survives,
    write_record,
    write_text,
)

# Flags that change no number of a run, and its length, which may grow.
_MAY_DIFFER = {
    *("resume", "dry_run", "output_dir", "log_wandb", "wandb_mode", "log_tensorboard", "compilation_cache"),
    *("checkpoint_every", "checkpoint_replay", "keep_policies", "num_evals", "num_timesteps"),
    *("render", "video_every"),
    *("seed_batch", "num_devices", "coordinator_address", "num_processes", "process_id"),
}
# Blown-up envs per env step beyond which an epoch no longer says anything of the task.
_MOST_RESETS = 1e-3


class Checkpoint(NamedTuple):
    """Where a run can go on: the run's config now, its folder, the checkpoint's folder and manifest."""

    config: Config
    run_dir: Path
    path: Path
    manifest: dict[str, Any]

    @property
    def position(self) -> Position:
        return Position(**self.manifest["position"])

    def finished(self, schedule: Schedule) -> bool:
        return self.position.evaluated_at >= schedule.eval_at[-1]


# Finding what to resume.


def seed_configs(config: Config) -> list[Config]:
    """One config for each of the seeds trained together; each describes the single run that it equals."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [dataclasses.replace(config, seed=seed, num_seeds=1, seed_batch=0) for seed in seeds]


def find_checkpoints(config: Config) -> list[Checkpoint]:
    """What `--resume` goes on from, one checkpoint a seed; empty when a bare `--resume` finds no run.

    Seeds that stopped on their own are left out, unless all did.

    Raises:
      ConfigError: no such run, no usable checkpoint, or a config that differs.
    """
    path = _newest_run(config) if config.resume == NEWEST else Path(config.resume)
    if path is None:
        return []
    chosen = path.name if path.parent.name == "checkpoints" else None
    first = path.parent.parent if chosen else path
    configs = seed_configs(config)
    _require_same(configs[0], read_config(first), first)
    names = [first.name] if config.num_seeds == 1 else _trained_with(first)
    if len(names) != config.num_seeds:
        raise ConfigError(
            f"{config.num_seeds} seeds: {first} was trained with {len(names)} together; give the --num_seeds or the "
            f"--seed_batch of then"
        )
    runs = [(own, first.parent / name) for own, name in zip(configs, names, strict=True)]
    runs = [(own, run_dir) for own, run_dir in runs if not (run_dir / "failure.json").exists()] or runs
    common = set.intersection(*({path.name for path in list_checkpoints(run_dir)} for _, run_dir in runs))
    if not (chosen or common):
        raise ConfigError(f"{first} holds no checkpoint to go on from")
    paths = [run_dir / "checkpoints" / (chosen or max(common)) for _, run_dir in runs]
    return [Checkpoint(*run, path, read_manifest(path)) for run, path in zip(runs, paths, strict=True)]


def _newest_run(config: Config) -> Path | None:
    """The run of the same names, env and seed that was active last, of those with a checkpoint."""
    group = Path(config.output_dir) / config.project_name / config.group_name
    found = []
    for run_dir in group.iterdir() if group.is_dir() else ():
        with contextlib.suppress(ConfigError):
            same = all(
                getattr(read_config(run_dir), name) == getattr(config, name)
                for name in ("exp_name", "env_name", "seed")
            )
            if same and list_checkpoints(run_dir):
                found.append(run_dir)
    return max(found, key=lambda run_dir: (run_dir / "checkpoints").stat().st_mtime, default=None)


def trained_together(config: Config) -> int | None:
    """How many seeds the run that a bare `--resume` goes on from was trained with; None if there is no such run."""
    newest = _newest_run(config)
    return len(_trained_with(newest)) if newest else None


def _trained_with(run_dir: Path) -> list[str]:
    record = json.loads((run_dir / "config.json").read_text())
    return record.get("trained_with", [run_dir.name])


def _require_same(config: Config, stored: Config, run_dir: Path) -> None:
    now, then = dataclasses.asdict(config), dataclasses.asdict(stored)
    differences = [
        f"--{flag}: {then[flag]} -> {now[flag]}" for flag in now if flag not in _MAY_DIFFER and now[flag] != then[flag]
    ]
    if config.num_timesteps < stored.num_timesteps:
        differences.append(
            f"--num_timesteps: {stored.num_timesteps} -> {config.num_timesteps}, only longer is possible"
        )
    if differences:
        raise ConfigError(
            f"{run_dir} was trained with other flags, it cannot go on with these: {'; '.join(differences)}"
        )


def load_run_state(program: Program, checkpoints: list[Checkpoint]) -> RunState:
    """The state of all seeds to go on from.

    Raises:
      ConfigError: a checkpoint is damaged, or its arrays do not fit the program.
    """
    stored = []
    for checkpoint in checkpoints:
        arrays = read_arrays(checkpoint.path, checkpoint.manifest)
        if not checkpoint.manifest["replay"]:
            arrays |= host_arrays({"train_state": {"buffer_state": empty_replay(program)}})
        stored.append(arrays)
    several = len(checkpoints) > 1
    arrays = {name: np.stack([each[name] for each in stored]) for name in stored[0]} if several else stored[0]
    init, start_keys, _ = make_init(program, [checkpoint.config.seed for checkpoint in checkpoints])
    train_state, totals = jax.eval_shape(init, start_keys)
    try:
        state = device_tree(arrays, {"train_state": train_state, "totals": totals})
    except ValueError as error:
        raise ConfigError(f"checkpoint {checkpoints[0].path} does not fit this version of the code: {error}") from None
    return RunState(**state, position=checkpoints[0].position)


def lock(run_dir: Path) -> IO:
    """Takes a run folder for this process, until the file is closed or the process ends, however it ends.

    Raises:
      ConfigError: another process has it.
    """
    with contextlib.ExitStack() as on_failure:
        try:
            file = on_failure.enter_context((run_dir / "lock").open("a"))
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(f"{run_dir} is being trained by another process") from None
        except OSError as error:
            raise ConfigError(f"cannot lock {run_dir}: {error.strerror}") from None
        on_failure.pop_all()
    return file


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

    def open(self, program: Program, devices: list[str], trained_with: list[str], settle: Callable[[], None]) -> None:
        """Records what is about to run and opens the loggers. `settle` waits for checkpoints that are being written."""
        self._settle = settle
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
        names = _trained_with(self.run_dir) if self.checkpoint else trained_with
        self._write("config.json", lambda: write_record(self.run_dir, self.config, program.schedule, devices, names))
        self.csv = CSVLogger(self.run_dir / "metrics.csv", read_rows(self.run_dir / "metrics.csv", self.evaluated_at))
        self.wandb = WandbLogger(self.config, self.run_dir, run_id) if self.config.log_wandb else None
        self.loggers: list[Logger] = [self.csv, *([self.wandb] if self.wandb else [])]
        if self.config.log_tensorboard:
            self.loggers.append(TensorBoardLogger(self.run_dir, self.evaluated_at if self.checkpoint else None))
        self.best = max(
            (float(row["eval/episode_success"]) for row in self.csv.rows if "eval/episode_success" in row),
            default=-math.inf,
        )

    def watch(self, values: dict[str, Any], env_steps: int) -> None:
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
        self.watch(metrics | learned_arrays(agent_state), env_steps)
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
        self._settle()
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
