"""Which seeds are trained together, and from which checkpoints they resume."""

import contextlib
import dataclasses
import os
from pathlib import Path

import jax
import numpy as np

from envs import make_env, quicker_backend
from src import devices
from src.algorithms import ALGORITHMS
from src.checkpoint import device_tree, host_arrays, list_checkpoints, read_arrays, read_manifest
from src.loop import RunState, make_init
from src.plan import measure, seeds_that_fit
from src.program import Program
from src.run_folder import Checkpoint, trained_with
from src.train import empty_replay
from utils import NEWEST, Config, ConfigError, may_differ, read_config


def with_backend(config: Config) -> Config:
    """The config with the engine that will step the environment, where the flags leave it open: that of the run it
    resumes, or one that is quicker on this device than the environment's own.

    Raises:
      ConfigError: a run folder to resume that is none.
    """
    if config.backend is not None:
        return config
    path = resumed_path(config)
    if path is None:
        return dataclasses.replace(config, backend=quicker_backend(config.env_name, jax.default_backend()))
    return dataclasses.replace(config, backend=read_config(_run_dir(path), ALGORITHMS).backend)


def seed_batches(config: Config) -> list[Config]:
    """One config for each group of seeds that are trained together; the groups are trained one after the other.

    Raises:
      ValueError: an env that cannot be built, a group that does not divide among the devices, or a `--resume RUN_DIR`
        that could mean one group only.
    """
    named = config.resume not in (None, NEWEST)
    resumed = trained_together(config) if config.resume == NEWEST and config.num_seeds > 1 else None
    size = config.seed_batch or resumed or config.num_seeds
    if named and size < config.num_seeds:
        raise ConfigError(
            f"--resume {config.resume} continues the seeds of one --seed_batch: give a bare --resume, which continues "
            f"all, or --num_seeds {size}"
        )
    if config.num_seeds > 1 and not (config.seed_batch or resumed or named):
        costs = measure(config, make_env(config.env_name, config.backend))
        memory = devices.memory_per_device()
        if memory and config.checkpoint_replay and jax.default_backend() == "cpu":
            memory //= 2  # for the copy of the replay that a checkpoint is written from
        size = seeds_that_fit(config, costs, devices.count(config), memory)
    end = config.seed + config.num_seeds
    batches = [
        dataclasses.replace(config, seed=first, num_seeds=min(size, end - first))
        for first in range(config.seed, end, size)
    ]
    for batch in batches:
        devices.make_mesh(batch)
    return batches


def seed_configs(config: Config) -> list[Config]:
    """One config for each of the seeds trained together; each describes the single run that it equals."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [dataclasses.replace(config, seed=seed, num_seeds=1, seed_batch=0) for seed in seeds]


def find_checkpoints(config: Config) -> list[Checkpoint]:
    """What `--resume` continues, one checkpoint per seed; empty when a bare `--resume` finds no run.

    Seeds that stopped on their own are left out, unless all did.

    Raises:
      ConfigError: no such run, no usable checkpoint, or a config that differs.
    """
    path = resumed_path(config)
    if path is None:
        return []
    first = _run_dir(path)
    chosen = path.name if path != first else None
    configs = seed_configs(config)
    _require_same(configs[0], read_config(first, ALGORITHMS), first)
    names = [first.name] if config.num_seeds == 1 else trained_with(first)
    if len(names) != config.num_seeds:
        raise ConfigError(
            f"{config.num_seeds} seeds: {first} was trained with {len(names)} together; use the original --num_seeds "
            f"or --seed_batch"
        )
    folders = [first, *(first.parent / name for name in names[1:])]  # the first may have been renamed
    missing = [str(folder) for folder in folders if not folder.is_dir()]
    if missing:
        raise ConfigError(f"{first} was trained together with {', '.join(missing)}: not there any more")
    runs = list(zip(configs, folders, strict=True))
    runs = [(own, run_dir) for own, run_dir in runs if not (run_dir / "failure.json").exists()] or runs
    common = set.intersection(*({path.name for path in list_checkpoints(run_dir)} for _, run_dir in runs))
    if not (chosen or common):
        raise ConfigError(f"{first} holds no checkpoint to resume from")
    paths = [run_dir / "checkpoints" / (chosen or max(common)) for _, run_dir in runs]
    return [Checkpoint(*run, path, read_manifest(path)) for run, path in zip(runs, paths, strict=True)]


def resumed_path(config: Config) -> Path | None:
    """The run folder, or the checkpoint in one, that `--resume` means; None if there is nothing to resume."""
    if config.resume is None:
        return None
    path = _newest_run(config) if config.resume == NEWEST else Path(config.resume)
    return path and Path(os.path.realpath(path))  # the other seeds lie beside the folder, not beside a link to it


def _run_dir(path: Path) -> Path:
    return path.parent.parent if path.parent.name == "checkpoints" else path


def _newest_run(config: Config) -> Path | None:
    """The run of the same names, env and seed that was active last, of those with a checkpoint."""
    group = Path(config.output_dir) / config.project_name / config.group_name
    found = []
    for run_dir in group.iterdir() if group.is_dir() else ():
        with contextlib.suppress(ConfigError):
            stored = read_config(run_dir, ALGORITHMS)
            same = all(getattr(stored, name) == getattr(config, name) for name in ("exp_name", "env_name", "seed"))
            if same and list_checkpoints(run_dir):
                found.append(run_dir)
    return max(found, key=lambda run_dir: (run_dir / "checkpoints").stat().st_mtime, default=None)


def trained_together(config: Config) -> int | None:
    """How many seeds the run that a bare `--resume` continues was trained with; None if there is no such run."""
    newest = _newest_run(config)
    return len(trained_with(newest)) if newest else None


def _require_same(config: Config, stored: Config, run_dir: Path) -> None:
    """Raises ConfigError unless the stored run can continue with this config."""
    if config.algorithm != stored.algorithm:
        raise ConfigError(f"{run_dir} was trained with --algorithm {stored.algorithm}, not {config.algorithm}")
    differences = [
        f"--{field.name}: {getattr(stored, field.name)} -> {getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if not may_differ(field) and getattr(config, field.name) != getattr(stored, field.name)
    ]
    if config.num_timesteps < stored.num_timesteps:
        differences.append(
            f"--num_timesteps: {stored.num_timesteps} -> {config.num_timesteps}, only longer is possible"
        )
    if differences:
        raise ConfigError(
            f"{run_dir} was trained with other flags, it cannot continue with these: {'; '.join(differences)}"
        )


def load_resumed(program: Program, checkpoints: list[Checkpoint]) -> RunState:
    """The state to resume from, and says so.

    Raises:
      ConfigError: a checkpoint cannot be read.
    """
    resumed = load_run_state(program, checkpoints)
    steps, per_step = resumed.position.training_steps, program.schedule.env_steps_per_training_step
    print(f"resume      at {steps * per_step:,} env steps, from {checkpoints[0].path}")
    if not checkpoints[0].manifest["replay"]:
        refilled = min(steps, program.schedule.prefill_steps) * per_step
        print(f"resume      the checkpoint has no replay: filling it by {refilled:,} env steps of the current policy")
    return resumed


def load_run_state(program: Program, checkpoints: list[Checkpoint]) -> RunState:
    """The state of all seeds to resume from.

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
