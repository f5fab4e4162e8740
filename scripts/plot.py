"""Learning curves, a final table and probabilities of improvement, from the metrics.csv files of runs alone.

    python scripts/plot.py runs/crl/test
    python scripts/plot.py runs/crl/energies --group_by energy_fn --metric eval/episode_success --out energies
    python scripts/plot.py runs/crl/test --dashboard --out dashboard

One curve per setting: interquartile mean over seeds with a stratified bootstrap interval, as in
https://arxiv.org/abs/2108.13264; one panel per environment; one figure per metric. Writes OUT.png, OUT.pdf, the tables
as OUT.md and OUT.csv, and OUT_improvement.csv when there are settings to compare. With --dashboard, one figure per
environment instead, with a panel per metric.
"""

import csv
import dataclasses
import difflib
import itertools
import json
import math
import os
import re
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import matplotlib
import numpy as np
import tyro
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from src.command_line import parse
from src.output import run_command
from src.statistics import (
    interquartile_mean,
    moving_average,
    pooled_interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
)
from utils import Before, Config, ConfigError, bookkeeping, fact

DEFAULT_METRIC = "eval/episode_success_any"
WALLTIME_PARTS = ("training/walltime", "eval/walltime")
UNKNOWN_ENV = "unknown environment"

# Names and units on the axes; other metrics go by their own name.
METRIC_LABELS = {
    "eval/episode_success_any": "success rate (share of episodes)",
    "eval/episode_success": "time near goal (env steps per episode)",
    "eval/avg_episode_length": "episode length (env steps)",
    "eval/sps": "evaluation speed (env steps / s)",
    "training/sps": "training speed (env steps / s)",
    "eval/walltime": "time spent evaluating (s)",
    "training/walltime": "time spent training (s)",
}
SHARES = ("eval/episode_success_any", "training/binary_accuracy", "training/categorical_accuracy")

# What a dashboard shows unless told otherwise.
DASHBOARD = (
    *("eval/episode_success_any", "eval/episode_success", "eval/episode_dist", "training/crl_critic_loss"),
    *("training/categorical_accuracy", "training/logits_pos", "training/logits_neg", "training/logsumexp"),
    *("training/sa_repr_mean", "training/actor_loss", "training/entropy", "training/alpha"),
)

# Okabe and Ito's palette, told apart with any colour vision; yellow, faint on white, comes last.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
LINE_STYLES = ("-", "--", ":", "-.")

# What the figure can be written as -> options, so that the same runs give the same bytes.
FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 250},
    "pdf": {"metadata": {"CreationDate": None}},
    "svg": {"metadata": {"Date": None}},
}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#DDDDDD",
    "grid.linewidth": 0.5,
    "axes.axisbelow": True,
    "lines.linewidth": 1.5,
    "lines.markersize": 3,
    "legend.frameon": False,
    "pdf.fonttype": 42,  # text as text: journals refuse Type 3 fonts
    "svg.hashsalt": "crl",  # names of elements that do not change
}


@dataclasses.dataclass(frozen=True)
class PlotConfig:
    """Draws learning curves of runs and tabulates their final scores."""

    runs: tyro.conf.Positional[tuple[str, ...]]
    """Run folders, folders that hold run folders at any depth, or CSV files with a column env_steps."""
    metric: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Column of metrics.csv to draw; repeat the flag for more figures. None given: eval/episode_success_any."""
    dashboard: bool = False
    """Draw the metrics (none given: the most telling ones) as the panels of one figure, without tables."""
    x: Literal["env_steps", "walltime"] = "env_steps"
    """Horizontal axis; walltime is the time spent training and evaluating."""
    group_by: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Flag that tells settings apart; repeat it for more. None given: the flags in which the runs of an environment
    differ, or else exp_name."""
    out: str = "figure"
    """Where the files go, without their endings; with several metrics, each adds its name. Ending in .svg: that format
    too."""
    smooth: int = 1
    """Evaluations that the drawn curves are averaged over; the table has its own rule, which it states."""
    confidence: float = 0.95
    """Confidence of the intervals."""
    repetitions: int = 2000
    """Resamples of the bootstrap."""
    seed: int = 0
    """Where the bootstrap's randomness comes from."""


@dataclasses.dataclass(frozen=True)
class Run:
    """One metrics.csv: the flags beside it, its header, and `columns`, arrays (T,) with NaN where not measured."""

    path: Path
    flags: dict[str, Any]
    header: tuple[str, ...]
    columns: dict[str, np.ndarray]

    @property
    def name(self) -> str:
        return self.path.parent.name if self.path.name == "metrics.csv" else self.path.stem

    @property
    def env(self) -> str:
        """What the run is evaluated on, and what it was trained on if that is something else."""
        trained = str(self.flags.get("env_name") or UNKNOWN_ENV)
        evaluated = self.flags.get("eval_env") or trained
        return trained if evaluated == trained else f"{trained}, evaluated on {evaluated}"


@dataclasses.dataclass(frozen=True)
class Series:
    """One metric of one run: `x` (T,) increasing, `y` (T,), and the env steps of its last evaluation."""

    run: Run
    x: np.ndarray
    y: np.ndarray
    env_steps: float


@dataclasses.dataclass(frozen=True)
class Curve:
    """What is drawn of a setting: `x` and `middle` (T,), and `band`, low and high (T,), if there are seeds to vary."""

    x: np.ndarray
    middle: np.ndarray
    band: tuple[np.ndarray, np.ndarray] | None


Panels = dict[str, dict[str, list[Series]]]  # env -> setting -> runs


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 something was drawn, 2 nothing could be."""
    try:
        config = parse_config(args)
        metrics = tuple(dict.fromkeys(config.metric)) or (DASHBOARD if config.dashboard else (DEFAULT_METRIC,))
        runs = load_runs(config.runs, metrics)
        settings = name_settings(runs, config.group_by)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    by_metric = {metric: arrange(runs, settings, metric, config.x) for metric in metrics}
    by_metric = {metric: panels for metric, panels in by_metric.items() if panels}
    settings = sorted(set(settings), key=natural_order)
    try:
        drawn = (draw_dashboards if config.dashboard else report_all)(by_metric, settings, config)
    except OSError as error:
        print(f"error: --out: cannot write {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    if not drawn:
        print("error: nothing to draw", file=sys.stderr)
    return 0 if drawn else 2


def parse_config(args: list[str]) -> PlotConfig:
    """Reads the command line.

    Raises:
      ConfigError: an unknown flag, a value of the wrong type or out of range; one line.
      SystemExit: after --help.
    """
    config = parse(PlotConfig, args, prog="plot.py")
    if not config.runs:
        raise ConfigError("no runs given: name run folders, folders that hold them, or CSV files")
    for flag in ("smooth", "repetitions"):
        if getattr(config, flag) < 1:
            raise ConfigError(f"--{flag} {getattr(config, flag)} is out of range: at least 1")
    if not 0 < config.confidence < 1:
        raise ConfigError(f"--confidence {config.confidence} is out of range: it lies inside (0, 1), e.g. 0.95")
    if config.seed < 0:
        raise ConfigError(f"--seed {config.seed} is out of range: at least 0")
    runs = tuple(os.path.expanduser(run) for run in config.runs)
    config = dataclasses.replace(config, runs=runs, out=os.path.expanduser(config.out))
    split_out(config.out)
    return config


def split_out(out: str) -> tuple[str, str]:
    """--out without its ending, and the ending, which is "" where there is none; `lr_0.5` and a folder have none.

    Raises:
      ConfigError: the ending of a format that is not written.
    """
    if out.endswith("/") or os.path.isdir(out):
        return f"{out}/figure", ""
    ending = re.search(r"\.([A-Za-z]{2,5}|[A-Za-z]{2}[0-9])$", out)
    if ending is None:
        return out, ""
    if ending[1].lower() not in FORMATS:
        raise ConfigError(
            f"--out {out}: the ending .{ending[1]} is not one of .{', .'.join(FORMATS)}; .md and .csv are written too"
        )
    return out.removesuffix(ending[0]), ending[1].lower()


def warn(text: str) -> None:
    """Says in one line what is left out, or what to know when looking at the figure."""
    print(f"warning: {text}", file=sys.stderr)


# Reading runs.


def load_runs(paths: Sequence[str], metrics: Sequence[str]) -> list[Run]:
    """Reads every run under `paths`, each once; unreadable ones are named and left out."""
    tables = dict.fromkeys(table for path in paths for table in find_tables(Path(path)))
    runs = [load_run(table, metrics) for table in tables]
    return [run for run in runs if run is not None]


def find_tables(path: Path) -> list[Path]:
    """The CSV files that an argument stands for, in the order of their names."""
    if os.path.isfile(path):  # Path.is_file raises for a name that is too long
        return [path.resolve()]
    if not os.path.isdir(path):
        warn(f"{path}: no such file or folder")
        return []
    tables, visited, found = [], set(), False
    for name, subfolders, files in os.walk(path, followlinks=True):  # people collect runs to compare by links
        folder = Path(name).resolve()
        is_run = "metrics.csv" in files or "config.json" in files
        if is_run and folder not in visited:
            found = True
            if "metrics.csv" in files:
                tables.append(folder / "metrics.csv")
            else:
                warn(f"{folder}: a run without metrics.csv (nothing was evaluated yet?), left out")
        if is_run or folder in visited:  # what lies inside a run, such as W&B's folder, is no run
            subfolders.clear()
        subfolders.sort()
        visited.add(folder)
    if not found:
        warn(f"{path}: no run folder in it (one that holds config.json and metrics.csv)")
    return tables


def load_run(table: Path, metrics: Sequence[str]) -> Run | None:
    """Reads a metrics.csv and the flags beside it; None, with a warning, if there is nothing to draw."""
    try:
        lines = [line.rstrip("\r") for line in table.read_text("utf-8-sig", errors="replace").split("\n")]
    except OSError as error:
        warn(f"{table}: {error.strerror}, left out")
        return None
    header = split_row(lines[0])
    if "env_steps" not in header:
        warn(f"{table}: no column env_steps, left out")
        return None
    wanted = [name for name in dict.fromkeys(["env_steps", *WALLTIME_PARTS, *metrics]) if name in header]
    rows: dict[float, list[float]] = {}  # by env steps: a row written again replaces the first
    for number, line in enumerate(lines[1:], start=2):
        if line.strip():
            try:
                row = read_row(header, line, wanted)
                rows[row[0]] = row
            except ValueError as error:
                warn(f"{table}, line {number}: {error}, row skipped")
    if not rows:
        warn(f"{table}: no rows, left out")
        return None
    columns = np.array([rows[env_steps] for env_steps in sorted(rows)]).T
    return Run(table, read_flags(table), tuple(header), dict(zip(wanted, columns, strict=True)))


def split_row(line: str) -> list[str]:
    # Line by line, so that a stray quote spoils one row and not the rest of the file.
    try:
        return next(csv.reader([line]), [])
    except csv.Error:
        return []


def read_row(header: Sequence[str], line: str, wanted: Sequence[str]) -> list[float]:
    """The wanted numbers of a row, NaN for an empty cell.

    Raises:
      ValueError: too few or too many cells, no env steps, or a cell that is not a finite number.
    """
    cells = split_row(line)
    if len(cells) != len(header):
        raise ValueError(f"{len(cells)} cells under a header of {len(header)}")
    row = dict(zip(header, cells, strict=True))
    if not row["env_steps"].strip():
        raise ValueError("env_steps is empty")
    numbers = []
    for name in wanted:
        text = row[name].strip()
        try:
            numbers.append(float(text or "nan"))
        except ValueError:
            numbers.append(math.inf)
        if text and not math.isfinite(numbers[-1]):
            raise ValueError(f"{name} is {text[:40]!r}, not a finite number")
    return numbers


def read_flags(table: Path) -> dict[str, Any]:
    """The flags of the run that a metrics.csv belongs to, the flags of every algorithm that are younger than
    it with what code did before them; none for a CSV file on its own."""
    config = table.with_name("config.json")
    if table.name != "metrics.csv":
        return {}
    try:
        flags = dict(json.loads(config.read_text())["flags"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        warn(f"{config}: cannot be read ({type(error).__name__}), its run goes by its folder's name")
        return {}
    younger = {field.name: fact(field, Before) for field in dataclasses.fields(Config)}
    return {name: before.value for name, before in younger.items() if before} | flags


# Telling settings apart.


def name_settings(runs: Sequence[Run], group_by: Sequence[str]) -> list[str]:
    """A label per run, the same for runs of one setting."""
    known = sorted({flag for run in runs for flag in run.flags})
    for flag in group_by:
        if flag not in known and known:
            warn(f"--group_by {flag}: no run has this flag, ignored; nearest: {nearest(flag, known)}")
    flags = [flag for flag in group_by if flag in known] or differing_flags(runs) or ["exp_name"]
    settings = [label(run, flags) for run in runs]
    seeds: dict[tuple[str, str], list[Any]] = {}
    for run, setting in zip(runs, settings, strict=True):
        if run.flags:
            seeds.setdefault((run.env, setting), []).append(run.flags.get("seed"))
    for (env, setting), drawn in seeds.items():
        if len(set(drawn)) < len(drawn):
            warn(f"{env}, {setting}: {len(drawn)} runs, but {len(set(drawn))} seeds; every run is counted")
    return settings


def differing_flags(runs: Sequence[Run]) -> list[str]:
    """Flags in which runs of one environment differ; what differs only between environments is part of the task."""
    values: dict[str, dict[str, set[str]]] = {}
    for run in runs:
        for flag in run.flags.keys() - bookkeeping():
            values.setdefault(flag, {}).setdefault(run.env, set()).add(json.dumps(run.flags[flag]))
    order = {flag: None for run in runs for flag in run.flags}
    return [flag for flag in order if any(len(seen) > 1 for seen in values.get(flag, {}).values())]


def label(run: Run, flags: Sequence[str]) -> str:
    """A setting's name in the legend, without the flags that its algorithm does not have."""
    if not run.flags:
        return run.name
    values = {flag: run.flags[flag] for flag in flags if flag in run.flags}
    # One name needs no introduction, nor does an algorithm's; a number or a switch does.
    if len(values) == 1 and isinstance(value := next(iter(values.values())), str):
        return value
    words = [str(value) if flag == "algorithm" else f"{flag}={value}" for flag, value in values.items()]
    return ", ".join(words) or f"without {', '.join(flags)}"


def nearest(name: str, names: Sequence[str]) -> str:
    """The few most similar names, for an error message."""
    return ", ".join(difflib.get_close_matches(name, names, n=3, cutoff=0.0))


def natural_order(text: str) -> tuple[list[tuple[int, float, str]], str]:
    """Sorts numbers in labels by their size: h_dim=64 before h_dim=256."""
    key: list[tuple[int, float, str]] = []
    for word in text.replace("=", " = ").replace(",", " ").split():
        try:
            key.append((0, float(word), ""))
        except ValueError:
            key.append((1, 0.0, word))
    return key, text


# From runs to curves and scores.


def arrange(runs: Sequence[Run], settings: Sequence[str], metric: str, axis: str) -> Panels:
    """Sorts what was measured of a metric by environment and setting; empty if no run has it."""
    names = {name for run in runs for name in run.header} - {"env_steps"}
    if runs and metric not in names:
        warn(f"--metric {metric}: no run has it; nearest: {nearest(metric, sorted(names)) or 'there are none'}")
        return {}
    panels: Panels = {}
    for run, setting in sorted(zip(runs, settings, strict=True), key=lambda pair: natural_order(pair[1])):
        series = extract(run, metric, axis)
        if series is not None:
            panels.setdefault(run.env, {}).setdefault(setting, []).append(series)
    return dict(sorted(panels.items()))


def extract(run: Run, metric: str, axis: str) -> Series | None:
    """One metric of one run; None, with a warning, if it cannot be drawn."""
    steps, missing = run.columns["env_steps"], np.full_like(run.columns["env_steps"], math.nan)
    measured = np.isfinite(run.columns.get(metric, missing))
    if not measured.any():
        warn(f"{run.path}: no value of {metric}, left out")
        return None
    x = steps
    if axis == "walltime":
        parts = [run.columns[name] for name in WALLTIME_PARTS if name in run.columns]
        if not parts:
            warn(f"{run.path}: no column {' or '.join(WALLTIME_PARTS)}, left out")
            return None
        x = np.nansum(parts, axis=0)  # the evaluation before training has no training time
        if (np.diff(x[measured]) <= 0).any():
            warn(f"{run.path}: its wall time goes backwards (a resumed run?), left out")
            return None
    return Series(run, x[measured], run.columns[metric][measured], steps[measured][-1])


def summarise(runs: Sequence[Series], name: str, config: PlotConfig) -> Curve | None:
    """Interquartile mean and interval of a setting on a grid that all its runs cover."""
    first, last = max(run.x[0] for run in runs), min(run.x[-1] for run in runs)
    if first > last:
        warn(f"{name}: its runs share no range of {config.x}, not drawn")
        return None
    longest = max(run.x[-1] for run in runs)
    if config.x == "env_steps" and last < 0.95 * longest:
        shortest = min(runs, key=lambda run: run.x[-1]).run.path
        warn(f"{name}: drawn up to {last:,.0f} of {longest:,.0f} env steps, where its shortest run ends: {shortest}")
    grid = runs[0].x
    if any(not np.array_equal(run.x, grid) for run in runs):
        points = max(np.count_nonzero((run.x >= first) & (run.x <= last)) for run in runs)
        grid = np.linspace(first, last, max(points, 2)) if last > first else np.array([first])
    values = np.stack([np.interp(grid, run.x, moving_average(run.y, config.smooth)) for run in runs])
    return Curve(grid, interquartile_mean(values), interval([values], config))


def interval(strata: list[np.ndarray], config: PlotConfig) -> tuple[np.ndarray, np.ndarray] | None:
    """Bootstrap interval of the interquartile mean; None if a stratum has a single run, which tells of no spread."""
    if min(len(runs) for runs in strata) < 2:
        return None
    return stratified_bootstrap(strata, confidence=config.confidence, repetitions=config.repetitions, seed=config.seed)


def final_score(values: np.ndarray) -> float:
    """A run's score: moving average over its evaluations (T,), mean of the last fifth.

    Published: average over 5, last 10 of 50 evaluations. A shorter run's average spans a tenth of it, so that it does
    not reach back to the start.
    """
    window = min(5, max(1, len(values) // 10))
    return float(moving_average(values, window)[-max(1, len(values) // 5) :].mean())


def final_rows(panels: Panels, config: PlotConfig) -> list[dict[str, Any]]:
    """The final table: a row per environment and setting, and one over all environments where a setting has them."""
    settings = list(dict.fromkeys(setting for by_setting in panels.values() for setting in by_setting))
    groups = [(env, setting, [runs]) for env, by_setting in panels.items() for setting, runs in by_setting.items()]
    if len(panels) > 1:
        for setting in settings:
            if all(setting in by_setting for by_setting in panels.values()):
                tasks = [by_setting[setting] for by_setting in panels.values()]
                groups.append((f"all {len(panels)}", setting, tasks))
    rows = []
    for env, setting, tasks in groups:
        strata = [np.array([final_score(run.y) for run in runs]) for runs in tasks]
        row = {"env": env, "setting": setting, "iqm": float(pooled_interquartile_mean(strata))}
        row |= interval_cells(interval(strata, config))
        steps = int(min(run.env_steps for runs in tasks for run in runs))
        rows.append(row | {"runs": sum(map(len, strata)), "env_steps": steps})
    return rows


def improvement_rows(panels: Panels, config: PlotConfig) -> list[dict[str, Any]]:
    """How probably a run of X scores above one of Y, for settings that share environments with two runs or more."""
    scores: dict[str, dict[str, np.ndarray]] = {}
    for env, by_setting in panels.items():
        for setting, runs in by_setting.items():
            if len(runs) > 1:
                scores.setdefault(setting, {})[env] = np.array([final_score(run.y) for run in runs])
    rows = []
    for x, y in itertools.combinations(sorted(scores, key=natural_order), 2):
        tasks = [env for env in scores[x] if env in scores[y]]
        if not tasks:
            continue
        x_strata, y_strata = [scores[x][env] for env in tasks], [scores[y][env] for env in tasks]
        limits = stratified_bootstrap(
            [*x_strata, *y_strata],
            lambda drawn: probability_of_improvement(drawn[: len(drawn) // 2], drawn[len(drawn) // 2 :]),
            confidence=config.confidence,
            repetitions=config.repetitions,
            seed=config.seed,
        )
        row = {"x": x, "y": y, "probability": probability_of_improvement(x_strata, y_strata)}
        rows.append(row | interval_cells(limits) | {"envs": len(tasks)})
    return rows


def interval_cells(limits: tuple[np.ndarray, np.ndarray] | None) -> dict[str, float | None]:
    low, high = (None, None) if limits is None else map(float, limits)
    return {"low": low, "high": high}


# Drawing.


def draw(
    panels: Panels,
    settings: Sequence[str],
    metric: str,
    config: PlotConfig,
    published: Mapping[str, float] | None = None,
) -> Figure | None:
    """One panel per environment (or metric, in a dashboard), one colour per setting of `settings`; a line at the value
    that is published of an environment. None if no curve can be drawn."""
    curves: dict[str, dict[str, Curve]] = {}
    for env, by_setting in panels.items():
        for setting, runs in by_setting.items():
            curve = summarise(runs, f"{env}, {setting}", config)
            if curve is not None:
                curves.setdefault(env, {})[setting] = curve
    if not curves:
        return None
    across = len(curves) if len(curves) <= 3 else math.ceil(math.sqrt(len(curves)))
    down = math.ceil(len(curves) / across)
    width = 4.2 if across == 1 else 2.8 * across
    figure = Figure(figsize=(width, 2.4 * down), layout="constrained")
    axes = figure.subplots(down, across, squeeze=False).flatten()
    furthest = max(curve.x[-1] for by_setting in curves.values() for curve in by_setting.values())
    x_label, scale = unit_of(furthest, config.x)
    handles = {}
    for place, (env, by_setting) in enumerate(curves.items()):
        axis = axes[place]
        for setting, curve in by_setting.items():
            handles[setting] = draw_curve(axis, curve, scale, settings.index(setting))
        if env in (published or {}):
            draw_level(axis, published[env], "published")
        axis.set_title("" if env == UNKNOWN_ENV and len(curves) == 1 else plain(env))
        axis.margins(x=0.02)
        if metric in SHARES or env in SHARES:
            axis.set_ylim(-0.02, 1.02)
        axis.set_xlabel(x_label if place + across >= len(curves) else "")
        axis.set_ylabel("" if place % across else METRIC_LABELS.get(metric, plain(metric)).replace(" (", "\n("))
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    add_legend(figure, {setting: handles[setting] for setting in settings if setting in handles}, panels)
    return figure


def draw_curve(axis: Axes, curve: Curve, scale: float, rank: int) -> Line2D:
    """Draws a line and its band; returns the line, for the legend."""
    colour, style = PALETTE[rank % len(PALETTE)], LINE_STYLES[rank // len(PALETTE) % len(LINE_STYLES)]
    marker = "o" if len(curve.x) <= 12 else None  # few points: show where they are
    (line,) = axis.plot(curve.x / scale, curve.middle, color=colour, linestyle=style, marker=marker)
    if curve.band is not None:
        axis.fill_between(curve.x / scale, *curve.band, color=colour, alpha=0.2, linewidth=0)
    return line


def draw_level(axis: Axes, level: float, name: str) -> None:
    """Draws a horizontal line across the panel, its name above its left end."""
    axis.axhline(level, color="#555555", linestyle="--", linewidth=0.8)
    place = {"xy": (0.02, level), "xycoords": axis.get_yaxis_transform(), "xytext": (0, 2)}
    axis.annotate(name, **place, textcoords="offset points", fontsize=7, color="#555555")


def add_legend(figure: Figure, handles: dict[str, Line2D], panels: Panels) -> None:
    """Puts the settings and their numbers of runs under the panels, in as many columns as fit; adds the height."""
    texts = []
    for setting in handles:
        counts = sorted({len(by_setting[setting]) for by_setting in panels.values() if setting in by_setting})
        span = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
        texts.append(textwrap.fill(plain(f"{setting} (n = {span})"), 60))
    width, height = figure.get_size_inches()
    longest = max(len(line) for text in texts for line in text.split("\n"))
    columns = max(1, min(len(texts), int(width / (0.07 * longest + 0.5))))
    lines = math.ceil(len(texts) / columns) * max(text.count("\n") + 1 for text in texts)
    figure.set_size_inches(width, height + 0.17 * lines + 0.1)
    figure.legend(list(handles.values()), texts, loc="outside lower center", ncols=columns, fontsize=8)


def plain(text: str) -> str:
    """Text that matplotlib will not read as a formula."""
    return text.replace("$", r"\$")


def unit_of(furthest: float, axis: str) -> tuple[str, float]:
    """The label of the horizontal axis, and what to divide by for its unit."""
    if axis == "walltime":
        units = [(3 * 3600, "wall time (h)", 3600), (300, "wall time (min)", 60), (0, "wall time (s)", 1)]
    else:
        units = [(1e6, "env steps (millions)", 1e6), (1e4, "env steps (thousands)", 1e3), (0, "env steps", 1)]
    return next((text, scale) for least, text, scale in units if furthest >= least)


# Writing. All of it raises OSError if a file cannot be written.


def report_all(by_metric: dict[str, Panels], settings: Sequence[str], config: PlotConfig) -> int:
    """Figure and tables of every metric; returns how many there was something to draw of."""
    several = len(set(config.metric)) > 1
    suffixes = {metric: "_" + metric.replace("/", "_") if several else "" for metric in by_metric}
    return sum(report(panels, settings, metric, config, suffixes[metric]) for metric, panels in by_metric.items())


def draw_dashboards(by_metric: dict[str, Panels], settings: Sequence[str], config: PlotConfig) -> int:
    """One figure per environment, a panel per metric; returns how many there was something to draw of."""
    envs = sorted({env for panels in by_metric.values() for env in panels})
    drawn = 0
    for env in envs:
        panels = {metric: by_env[env] for metric, by_env in by_metric.items() if env in by_env}
        stem = write_figure(panels, settings, "", config, f"_{env.replace(' ', '_')}" if len(envs) > 1 else "")
        drawn += stem is not None
        if stem is not None:
            print(f"written: {stem}.{' .'.join(endings(config))}")
    return drawn


def write_figure(panels: Panels, settings: Sequence[str], metric: str, config: PlotConfig, suffix: str) -> Path | None:
    """Draws into --out and returns the files' path without their endings; None if there was no curve to draw."""
    out, _ = split_out(config.out)
    stem = Path(out + suffix)
    with matplotlib.rc_context(STYLE):
        figure = draw(panels, settings, metric, config)
        if figure is None:
            return None
        stem.parent.mkdir(parents=True, exist_ok=True)
        for ending in endings(config):
            figure.savefig(f"{stem}.{ending}", **FORMATS[ending])
    return stem


def endings(config: PlotConfig) -> list[str]:
    """The formats of the figure: PNG, PDF, and the one that --out asks for."""
    return list(dict.fromkeys(("png", "pdf", split_out(config.out)[1] or "png")))


def report(panels: Panels, settings: Sequence[str], metric: str, config: PlotConfig, suffix: str) -> bool:
    """Writes figure and tables of a metric and prints the tables; False if there was no curve to draw."""
    if len(panels) > 1:
        warn(f"{metric}: runs of {len(panels)} environments are not mixed: one panel each ({', '.join(panels)})")
    stem = write_figure(panels, settings, metric, config, suffix)
    if stem is None:
        return False
    final, improvement = final_rows(panels, config), improvement_rows(panels, config)
    text = markdown(final, improvement, config)
    title = METRIC_LABELS.get(metric, metric)
    Path(f"{stem}.md").write_text(f"# {title}\n\n`{metric}`\n\n![{title}]({stem.name}.png)\n\n{text}")
    write_csv(Path(f"{stem}.csv"), final)
    if improvement:
        write_csv(Path(f"{stem}_improvement.csv"), improvement)
    written = [*endings(config), "md", "csv"]
    print(f"{metric}\n\n{text}\nwritten: {stem}.{' .'.join(written)}{' _improvement.csv' if improvement else ''}\n")
    return True


def markdown(final: list[dict[str, Any]], improvement: list[dict[str, Any]], config: PlotConfig) -> str:
    """Both tables as Markdown, with the rules they were made by."""
    text = (
        "Interquartile mean (iqm) over runs of their final scores; a score is the mean over the last fifth of a run's "
        "evaluations, after a moving average over 5 of them (over a tenth, if they are fewer than 50). low, high: "
        f"{100 * config.confidence:g} % stratified bootstrap interval, {config.repetitions} resamples.\n\n"
    )
    text += markdown_table(final)
    if improvement:
        text += "\nHow probably a run of x scores higher than a run of y (ties count half, mean over environments):\n\n"
        text += markdown_table(improvement)
    return text


def markdown_table(rows: list[dict[str, Any]]) -> str:
    """An aligned Markdown table of rows with the same keys."""
    cells = [list(rows[0]), *[[cell_text(value) for value in row.values()] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = [" | ".join(map(str.ljust, row, widths)) for row in cells]
    lines.insert(1, " | ".join("-" * width for width in widths))
    return "".join(f"| {line} |\n" for line in lines)


def cell_text(value: str | int | float | None) -> str:
    """A cell of a Markdown table: three digits, thousands separated, nothing for what was not measured."""
    if isinstance(value, float) and abs(value) < 1000:
        return f"{value:.3g}"
    if isinstance(value, int | float):
        return f"{value:,.0f}"
    return "" if value is None else value.replace("|", r"\|")


def write_csv(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


if __name__ == "__main__":
    sys.exit(run_command(main))
