"""Trains agents: `python training.py --env_name ant`. See `--help` for every flag."""

import dataclasses
import math
import os
import sys
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from src.checkpoint import PARAMS_FILE, save_params
from src.train import Program, make_program, run
from utils import (
    Config,
    CSVLogger,
    Logger,
    Progress,
    WandbLogger,
    derive_schedule,
    describe_plan,
    make_run_dir,
    parse_config,
    write_record,
)


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 2 bad input, 1 a run that went wrong."""
    try:
        config = parse_config(args)
        schedule = derive_schedule(config)
        program = make_program(config, schedule)
        env = program.env.env
        print(describe_plan(config, schedule, env.state_dim, env.action_size, env.goal_dim), flush=True)
        if config.dry_run:
            return 0
        runs = [SeedRun(seed_config, make_run_dir(seed_config)) for seed_config in seed_configs(config)]
    except ValueError as error:  # ConfigError, and what the environments refuse
        print(f"error: {error}", file=sys.stderr)
        return 2
    train(program, runs)
    for seed_run in runs:
        if seed_run.failure:
            print(f"error: seed {seed_run.config.seed} stopped: {seed_run.failure}", file=sys.stderr)
    return 1 if any(seed_run.failure for seed_run in runs) else 0


def seed_configs(config: Config) -> list[Config]:
    """One config for each of the seeds trained together; each describes the single run that it equals."""
    seeds = range(config.seed, config.seed + config.num_seeds)
    return [dataclasses.replace(config, seed=seed, num_seeds=1) for seed in seeds]


class SeedRun:
    """The outside of one seed's training: its folder, its loggers, its parameters on disk, its end."""

    def __init__(self, config: Config, run_dir: Path):
        self.config = config
        self.run_dir = run_dir
        self.loggers: list[Logger] = []
        self.metrics: dict[str, float] = {}
        self.failure = ""

    def open(self, program: Program, devices: list[str]) -> None:
        """Records what is about to run and opens the loggers."""
        write_record(self.run_dir, self.config, program.schedule, devices)
        self.loggers.append(CSVLogger(self.run_dir / "metrics.csv"))
        if self.config.log_wandb:
            self.loggers.append(WandbLogger(self.config, self.run_dir))

    def report(self, metrics: dict[str, float], env_steps: int, agent_state: Any) -> None:
        """Logs an evaluation and saves the parameters. Numbers gone wrong end this seed; its last good file stays."""
        if self.failure:
            return
        self.metrics = metrics
        for logger in self.loggers:
            logger.log(metrics, env_steps)
        wrong = next((name for name, value in metrics.items() if not math.isfinite(value)), None)
        if wrong:
            self.failure = f"{wrong} is {metrics[wrong]} at env step {env_steps:,}; see {self.run_dir}"
        else:
            save_params(self.run_dir / PARAMS_FILE, agent_state)

    def close(self) -> None:
        for logger in self.loggers:
            logger.close()


def train(program: Program, runs: list[SeedRun]) -> None:
    """Trains all seeds, logging and saving into their folders."""
    config = program.config
    cache = enable_compilation_cache() if config.compilation_cache else "off"
    devices = [device.device_kind for device in jax.devices()]
    for seed_run in runs:
        seed_run.open(program, devices)
        print(f"run folder  {seed_run.run_dir}", flush=True)
    print(f"device      {devices[0]} x {len(devices)}, compilation cache {cache}")
    print(f"flags       {config}", flush=True)

    started = time.monotonic()
    progress = Progress(program.schedule.total_env_steps)
    for moment in run(program, [seed_run.config.seed for seed_run in runs], progress.announce):
        if moment.metrics is None:
            progress.update(moment.env_steps, moment.speed / len(runs))
            continue
        agent_state = jax.device_get(moment.run_state.train_state.agent_state)
        for index, (seed_run, metrics) in enumerate(zip(runs, moment.metrics, strict=True)):
            own_state = jax.tree.map(lambda leaf, i=index: leaf[i], agent_state) if len(runs) > 1 else agent_state
            seed_run.report(metrics, moment.env_steps, own_state)
        progress.evaluated(moment.env_steps, mean_metrics(moment.metrics))
        if all(seed_run.failure for seed_run in runs):
            break
    for seed_run in runs:
        seed_run.close()
    print(summary(runs, moment.env_steps, time.monotonic() - started), flush=True)


def mean_metrics(metrics: list[dict[str, float]]) -> dict[str, float]:
    """The mean over seeds of each metric."""
    return {name: float(np.mean([each[name] for each in metrics])) for name in metrics[0]}


def summary(runs: list[SeedRun], env_steps: int, seconds: float) -> str:
    """The closing lines of a run."""
    metrics = mean_metrics([seed_run.metrics for seed_run in runs])
    lines = [
        f"done: {env_steps:,} env steps a seed in {seconds:.0f} s, {metrics['training/sps']:,.0f} env steps/s last"
    ]
    if "eval/episode_success" in metrics:
        lines.append(f"  success rate    {metrics['eval/episode_success_any']:.3f} of the episodes reach the goal")
        lines.append(f"  time near goal  {metrics['eval/episode_success']:.1f} env steps per episode")
    lines += [f"  files           {seed_run.run_dir}/ (metrics.csv, {PARAMS_FILE})" for seed_run in runs]
    return "\n".join(lines)


def enable_compilation_cache() -> str:
    """Turns on JAX's persistent cache; the folder is $JAX_COMPILATION_CACHE_DIR or one under the user's cache."""
    base = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"))
    folder = os.environ.get("JAX_COMPILATION_CACHE_DIR", str(base / "crl" / "jax"))
    jax.config.update("jax_compilation_cache_dir", folder)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.5)
    return folder


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
