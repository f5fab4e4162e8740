"""The table and the figure of the rows of scripts/settings.yml beside the published values, from metrics.csv files."""

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import matplotlib

from envs import own_backend, quicker_backend
from scripts import plot
from scripts.settings import Published, Row
from utils import write_text

SUCCESS, TIME = "eval/episode_success_any", "eval/episode_success"
# Of a row's runs, those count that came at least this share as far as the longest one.
AS_FAR = 0.95
PLOT = plot.PlotConfig(runs=())

HEAD = """# Our curves beside the published ones

Written by `scripts/reproduce.sh`; flags, reasons and sources are in [scripts/settings.yml](../scripts/settings.yml).
`success` is the share of evaluation episodes that reach the goal, `time` how many of an episode's 1,000 steps are spent
near it. Both are of the last evaluation: the interquartile mean over seeds, success with its 95 % bootstrap interval.
`published` is the first published value at as many env steps or more, or else the last one. `passed at` is our first
evaluation that reached the last published value, which stands behind it: success, or time where only that is published;
"untrained" if it had it from the start. A row without numbers has not been trained.

"""


class Curves(NamedTuple):
    """What there is of a row: its runs as series of success, and the curves of success and time."""

    row: Row
    series: list[plot.Series]
    success: plot.Curve
    time: plot.Curve


def load(folders: Sequence[Path]) -> list[plot.Run]:
    """Every run under the folders."""
    return plot.load_runs([str(folder) for folder in folders], (SUCCESS, TIME))


def write(rows: Sequence[Row], folders: Sequence[Path], out: Path) -> None:
    """Writes OUT.md and OUT.png of the runs under the folders.

    Raises:
      OSError: they cannot be written.
    """
    runs, rows = load(folders), settings_of(rows)
    found = [curves for row in rows if (curves := curves_of(row, runs))]
    lines = []
    for _, machines in itertools.groupby(rows, key=lambda row: row.name):
        machines = list(machines)
        trained = [curves for curves in found if curves.row in machines]
        lines += [cells(curves.row, curves) for curves in trained] or [cells(machines[0], None)]
    figure = f"![Success over env steps, a panel per environment]({out.name}.png)\n"
    write_text(out.with_suffix(".md"), f"{HEAD}{plot.markdown_table(lines)}\n{figure if found else ''}")
    if found:
        draw(found, out.with_suffix(".png"))
    else:  # the figure of other curves
        out.with_suffix(".png").unlink(missing_ok=True)
    print(f"written: {out}.md{' .png' if found else ''}")


def settings_of(rows: Sequence[Row]) -> list[Row]:
    """The rows without those whose setting is the same on a machine that came before."""

    def again(row: Row, before: Sequence[Row]) -> bool:
        return any(row.name == other.name and row.describes(dataclasses.asdict(other.config)) for other in before)

    return [row for number, row in enumerate(rows) if not again(row, rows[:number])]


def curves_of(row: Row, runs: Sequence[plot.Run]) -> Curves | None:
    """The curves of a row's runs, one per seed; None if there are none."""
    by_seed: dict[int, plot.Run] = {}
    for run in sorted((run for run in runs if row.describes(run.flags)), key=reached):
        by_seed[run.flags["seed"]] = run  # the longest stays: a run may lie in results/ and in its run folder
    own = [run for run in by_seed.values() if reached(run) >= AS_FAR * max(map(reached, by_seed.values()))]
    success, time = (
        [each for run in own if (each := plot.extract(run, name, "env_steps"))] for name in (SUCCESS, TIME)
    )
    if not (success and time):
        return None
    curves = [plot.summarise(series, row.name, PLOT) for series in (success, time)]
    return None if None in curves else Curves(row, success, *curves)


def reached(run: plot.Run) -> float:
    """The env steps of a run's last evaluation."""
    return run.columns["env_steps"][-1]


def finished_seeds(row: Row, runs: Sequence[plot.Run]) -> dict[int, Path]:
    """The seeds that runs have trained to the row's end, with the run's folder."""
    own = [run for run in runs if row.describes(run.flags) and reached(run) >= row.config.num_timesteps]
    return {run.flags["seed"]: run.path.parent for run in own}


# The table.


def cells(row: Row, curves: Curves | None) -> dict[str, str]:
    """One line of the table."""
    steps = curves.success.x[-1] if curves else 0
    return {
        "env": f"`{row.config.env_name}`",
        "setting": name_of(row),
        "env steps": millions(steps) if curves else "",
        "seeds": str(len(curves.series)) if curves else "",
        "success": with_interval(curves.success) if curves else "",
        "time": f"{curves.time.middle[-1]:.0f}" if curves else "",
        "published": published_text(row.published_at(steps)),
        "passed at": passed_text(row, curves) if curves else "",
    }


def name_of(row: Row) -> str:
    """A row in the legend: its label, and what a GPU's sizes and another engine than the environment's add to it."""
    name, own = row.config.env_name, own_backend(row.config.env_name)
    backend = row.config.backend or (quicker_backend(name, "cpu") if row.machine == "cpu" else None) or own
    sizes = f", {row.config.num_envs:,} envs" if row.machine == "gpu" else ""
    return row.label + sizes + (f", on {backend}" if backend != own else "")


def millions(steps: float) -> str:
    """Env steps as 3.1M."""
    return f"{steps / 1e6:.1f}".removesuffix(".0") + "M"


def with_interval(curve: plot.Curve) -> str:
    """The last value of a curve, and its interval if there are seeds to vary."""
    last = f"{curve.middle[-1]:.2f}"
    return last if curve.band is None else f"{last} ({curve.band[0][-1]:.2f} to {curve.band[1][-1]:.2f})"


def published_text(value: Published | None) -> str:
    """A published value: success, time near the goal, and after how many env steps."""
    if value is None:
        return "-"
    parts = [] if value.success is None else [f"{value.success:.2f}"]
    parts += [] if value.time is None else [f"time {value.time:.0f}"]
    return f"{', '.join(parts)} at {millions(value.steps)}" + (f", {value.by}" if value.by else "")


def passed_text(row: Row, curves: Curves) -> str:
    """Where the curve first reached the last published value."""
    if not row.published:
        return "-"
    last = row.published[-1]
    curve, level = (curves.time, last.time) if last.success is None else (curves.success, last.success)
    if curve.middle[0] >= level:  # flailing reaches every goal
        return "untrained"
    above = curve.x[curve.middle >= level]
    return f"{millions(above[0])} ({level:.3g})" if len(above) else "not yet"


# The figure.


def draw(found: Sequence[Curves], path: Path) -> None:
    """A panel per environment: a curve per setting, and the last published success as a line."""
    panels: plot.Panels = {}
    levels: dict[str, float] = {}
    for row, series, _, _ in found:
        panels.setdefault(row.config.env_name, {})[name_of(row)] = series
        if row.published and row.published[-1].success is not None:
            levels[row.config.env_name] = row.published[-1].success
    settings = list(dict.fromkeys(name_of(curves.row) for curves in found))
    with matplotlib.rc_context(plot.STYLE):
        figure = plot.draw(panels, settings, SUCCESS, PLOT, levels)
        figure.savefig(path, **plot.FORMATS["png"])
