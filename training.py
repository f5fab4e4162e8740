"""Trains one agent: `python training.py --env_name ant`. See `--help` for every flag."""

import os
import sys
import time
from pathlib import Path

import jax

from src.checkpoint import PARAMS_FILE, save_params
from src.train import Program, make_program, run
from utils import (
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
        run_dir = make_run_dir(config)
    except ValueError as error:  # ConfigError, and what the environments refuse
        print(f"error: {error}", file=sys.stderr)
        return 2
    try:
        train(program, run_dir)
    except FloatingPointError as error:
        print(f"error: stopped: {error}; see {run_dir}", file=sys.stderr)
        return 1
    return 0


def train(program: Program, run_dir: Path) -> None:
    """Trains, logs and saves into `run_dir`."""
    config = program.config
    cache = enable_compilation_cache() if config.compilation_cache else "off"
    devices = [str(device.device_kind) for device in jax.devices()]
    write_record(run_dir, config, program.schedule, devices)
    print(f"run folder {run_dir}\ndevice {devices[0]} x {len(devices)}, compilation cache {cache}", flush=True)
    print(f"flags {config}", flush=True)

    start = time.monotonic()
    loggers: list[Logger] = [CSVLogger(run_dir / "metrics.csv")]
    if config.log_wandb:
        loggers.append(WandbLogger(config, run_dir))
    progress = Progress(program.schedule.total_env_steps)
    for report in run(program, progress.announce, progress.update):
        progress.evaluated(report.env_steps, report.metrics.get("training/sps"), report.metrics)
        for logger in loggers:
            logger.log(report.metrics, report.env_steps)
        save_params(run_dir / PARAMS_FILE, report.agent_state)
    for logger in loggers:
        logger.close()
    print(summary(report.metrics, report.env_steps, time.monotonic() - start, run_dir), flush=True)


def summary(metrics: dict[str, float], env_steps: int, seconds: float, run_dir: Path) -> str:
    """The closing lines of a run."""
    any_success, near = metrics.get("eval/episode_success_any"), metrics.get("eval/episode_success")
    lines = [f"done: {env_steps:,} env steps in {seconds:.0f} s, {metrics['training/sps']:,.0f} env steps/s at the end"]
    if near is not None:
        lines.append(f"  success rate     {any_success:.3f} of the episodes reach the goal")
        lines.append(f"  time near goal   {near:.1f} env steps per episode")
    lines.append(f"  metrics          {run_dir / 'metrics.csv'}")
    lines.append(f"  parameters       {run_dir / PARAMS_FILE}")
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
