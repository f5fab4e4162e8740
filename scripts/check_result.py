"""Checks a folder of results/: are its curves whole, and is what it takes to make them again there?

    python scripts/check_result.py results/ant_cpu

A folder holds a run, or a folder per run: `config.json` and `metrics.csv` as training.py writes them. Its row in
results/README.md has the command, or the commands. CONTRIBUTING.md says how to add one.
"""

import csv
import dataclasses
import json
import math
import re
import shlex
import sys
from pathlib import Path
from typing import Annotated

import tyro

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts.results_table import SUCCESS, TIME
from scripts.settings import differences
from src.algorithms import ALGORITHMS
from src.command_line import parse, parse_config
from src.output import run_command
from src.registries import REGISTRIES
from utils import FAILED, RECORDED_PACKAGES, REFUSED, Config, ConfigError, config_of, derive_schedule

RECORD = ("flags", "schedule", "versions", "git_commit", "devices")  # what config.json must say
LEARNED = ("training/sps", "training/walltime")  # what an evaluation of a run that trains has besides
TRAINING = "python training.py "


@dataclasses.dataclass(frozen=True)
class CheckConfig:
    """Says what a folder of results/ lacks."""

    folder: tyro.conf.Positional[Annotated[str, tyro.conf.arg(metavar="FOLDER"), Path]]
    """The folder, beside the README.md that has its row."""


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 all is there, 1 something is missing, 2 no such folder."""
    try:
        folder = Path(parse(CheckConfig, args, prog="check_result.py").folder)
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder: give one of results/, such as results/ant_cpu")
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        return REFUSED
    problems = check(folder)
    print("\n".join(problems) or f"{folder}: complete")
    return FAILED if problems else 0


def check(folder: Path) -> list[str]:
    """What is missing or wrong, one line per problem; none if the folder is complete."""
    run_dirs = sorted({path.parent for name in ("config.json", "metrics.csv") for path in folder.rglob(name)})
    if not run_dirs:
        return [f"{folder}: no run in it; it holds config.json and metrics.csv, or a folder per seed with both"]
    row = readme_row(folder)
    if not row:
        return [f"{folder.parent / 'README.md'} has no row | `{folder.name}` | command | what it shows |"]
    try:
        commands = commands_of(row)
    except ConfigError as error:
        return [f"{folder.parent / 'README.md'}: a command of {folder.name} cannot be read: {error}"]
    if not commands:
        return [f"{folder.parent / 'README.md'}: the row of {folder.name} has no command `{TRAINING}...`"]
    seen: dict[tuple[Config, str], Path] = {}
    return [f"{run_dir}: {problem}" for run_dir in run_dirs for problem in check_run(run_dir, row, commands, seen)]


def readme_row(folder: Path) -> str:
    """The folder's row in the README.md beside it; empty if there is none."""
    path = folder.resolve().parent / "README.md"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(f"| `{folder.resolve().name}` |")), "")


def commands_of(row: str) -> list[Config]:
    """The configs of the row's training commands.

    Raises:
      ConfigError: training.py would refuse one.
    """
    commands = [command for command in re.findall(r"`([^`]+)`", row) if command.startswith(TRAINING)]
    try:
        return [parse_config(shlex.split(command.removeprefix(TRAINING)), REGISTRIES) for command in commands]
    except ValueError as error:  # of shlex as well
        raise ConfigError(str(error)) from None
    except SystemExit:
        raise ConfigError("it asks for help") from None


def check_run(run_dir: Path, row: str, commands: list[Config], seen: dict[tuple[Config, str], Path]) -> list[str]:
    """What is missing or wrong in one run, and whether it is one of those in `seen`, to which it is added."""
    try:
        record = dict(json.loads((run_dir / "config.json").read_text()))
        lacking = [f"config.json lacks {name}" for name in RECORD if not record.get(name)]
        if lacking:
            return lacking
        packages = ("python", *RECORDED_PACKAGES)
        lacking = [f"config.json lacks the version of {name}" for name in packages if not record["versions"].get(name)]
        config = config_of(record["flags"], ALGORITHMS, "config.json")
        config.check()
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return [f"config.json cannot be read ({error})"]
    if record["git_commit"].endswith("-dirty"):
        lacking.append(f"git_commit {record['git_commit']}: the code had changes that no commit holds")
    if (same := seen.setdefault((config, record["git_commit"]), run_dir)) != run_dir:
        lacking.append(f"the same flags, seed and commit as {same}")
    return lacking + check_curve(run_dir / "metrics.csv", config, row) + check_command(config, commands)


def check_curve(table: Path, config: Config, row: str) -> list[str]:
    """What is wrong with a metrics.csv."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        broken = next((number for number, each in enumerate(rows, 2) if None in each or None in each.values()), None)
        if broken:
            return [f"metrics.csv: line {broken} has not as many cells as the header"]
        values = [{name: float(text) for name, text in each.items() if text} for each in rows]
        steps = [int(each["env_steps"]) for each in values]
        missing = sorted({name for name in (SUCCESS, TIME) for each in values if name not in each})
        missing += [name for name in LEARNED if not any(name in each for each in values)]
    except (OSError, ValueError, KeyError, OverflowError, csv.Error) as error:
        return [f"metrics.csv cannot be read ({type(error).__name__}: {error})"]
    if len(rows) < 2 or missing:
        return [f"metrics.csv lacks {name}" for name in missing or [f"a curve: it has {len(rows)} rows"]]
    strange = {name for each in values for name, value in each.items() if not math.isfinite(value)}
    strange |= {SUCCESS for each in values if not 0 <= each[SUCCESS] <= 1}
    strange |= {TIME for each in values if not 0 <= each[TIME] <= config.episode_length}
    problems = [f"metrics.csv: {name} is no number, or one that it cannot be" for name in sorted(strange)]
    back = next((at for at in range(1, len(steps)) if steps[at] <= steps[at - 1]), None)
    if back is not None:
        problems.append(f"metrics.csv: after {steps[back - 1]:,} env steps come {steps[back]:,}")
    schedule = derive_schedule(config)
    due = [training_steps * schedule.env_steps_per_training_step for training_steps in schedule.eval_at]
    skipped = [at for at in due if at <= steps[-1] and at not in steps]
    if skipped and "resumed" not in row:
        problems.append(f"metrics.csv lacks the evaluation at {skipped[0]:,} env steps")
    if steps[-1] < config.num_timesteps and "stopped" not in row:
        problems.append(
            f"ends at {steps[-1]:,} of {config.num_timesteps:,} env steps: the row in README.md must say that it was "
            "stopped"
        )
    return problems


def check_command(config: Config, commands: list[Config]) -> list[str]:
    """Whether a command gives the recorded flags; else, in what the nearest one differs."""
    nearest = min((off(config, command) for command in commands), key=len)
    return [f"config.json has --{name} {getattr(config, name)}, which the command does not give" for name in nearest]


def off(config: Config, command: Config) -> list[str]:
    """The recorded flags that a command does not give."""
    names = differences(config, command)
    names += [name for name in ("num_timesteps", "num_eval_envs") if getattr(config, name) != getattr(command, name)]
    seeds = range(command.seed, command.seed + command.num_seeds)
    return names if config.seed in seeds else [*names, "seed"]


if __name__ == "__main__":
    sys.exit(run_command(main))
