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
from src.command_line import parse, parse_config
from src.output import run_command
from src.registries import REGISTRIES
from utils import FAILED, REFUSED, ConfigError

RECORD = ("flags", "schedule", "versions", "git_commit", "devices")  # what config.json must say
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
    run_dirs = sorted(path.parent for path in folder.rglob("config.json"))
    if not run_dirs:
        return [f"{folder}: no run in it; it holds config.json and metrics.csv, or a folder per seed with both"]
    row = readme_row(folder)
    problems = [f"{run_dir}: {problem}" for run_dir in run_dirs for problem in check_run(run_dir, row)]
    if not row:
        problems.append(f"{folder.parent / 'README.md'} has no row | `{folder.name}` | command | what it shows |")
    elif not commands_of(row):
        problems.append(f"{folder.parent / 'README.md'}: the row of {folder.name} has no command `{TRAINING}...`")
    return problems


def readme_row(folder: Path) -> str:
    """The folder's row in the README.md beside it; empty if there is none."""
    path = folder.resolve().parent / "README.md"
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line for line in lines if line.startswith(f"| `{folder.resolve().name}` |")), "")


def commands_of(row: str) -> list[list[str]]:
    """The words of each of the row's training commands after training.py."""
    commands = [command for command in re.findall(r"`([^`]+)`", row) if command.startswith(TRAINING)]
    return [shlex.split(command.removeprefix(TRAINING)) for command in commands]


def check_run(run_dir: Path, row: str) -> list[str]:
    """What is missing or wrong in one run."""
    try:
        record = dict(json.loads((run_dir / "config.json").read_text()))
    except (OSError, ValueError, TypeError) as error:
        return [f"config.json cannot be read ({error})"]
    lacking = [f"config.json lacks {name}" for name in RECORD if not record.get(name)]
    lacking += [f"config.json lacks the version of {name}" for name in ("python", "jax") if not said(record, name)]
    if lacking:
        return lacking
    steps, problems = check_curve(run_dir / "metrics.csv")
    wanted = record["flags"]["num_timesteps"]
    if steps and steps[-1] < wanted and "stopped" not in row:
        problems.append(
            f"ends at {steps[-1]:,} of {wanted:,} env steps: the row in README.md must say that it was stopped"
        )
    return problems + check_command(record["flags"], row)


def said(record: dict, package: str) -> bool:
    """Whether the record has the version of a package, or of Python."""
    return bool((record.get("versions") or {}).get(package))


def check_curve(table: Path) -> tuple[list[int], list[str]]:
    """The env steps of a metrics.csv, and what is wrong with them."""
    try:
        with table.open(newline="") as file:
            rows = list(csv.DictReader(file))
        steps = [int(float(row["env_steps"])) for row in rows]
        values = [float(row[name] or "nan") for row in rows for name in (SUCCESS, TIME)]
    except (OSError, ValueError, KeyError, TypeError, csv.Error) as error:
        return [], [f"metrics.csv cannot be read ({type(error).__name__}: {error})"]
    problems = [] if len(rows) > 1 else [f"metrics.csv has {len(rows)} rows: no curve"]
    back = next((at for at in range(1, len(steps)) if steps[at] <= steps[at - 1]), None)
    if back is not None:
        problems.append(f"metrics.csv: after {steps[back - 1]:,} env steps come {steps[back]:,}")
    if not all(map(math.isfinite, values)):
        problems.append(f"metrics.csv: not every row has a number of {SUCCESS} and {TIME}")
    return steps, problems


def check_command(flags: dict, row: str) -> list[str]:
    """Whether a command in the row gives the recorded flags; else, in what the nearest one differs."""
    try:
        others = [differences(flags, parse_config(command, REGISTRIES)) for command in commands_of(row)]
    except ConfigError as error:
        return [f"its flags or its command cannot be read: {error}"]
    nearest = min(others, key=len, default=[])
    return [f"config.json has --{name} {flags.get(name)}, which the command does not give" for name in nearest]


if __name__ == "__main__":
    sys.exit(run_command(main))
