"""The settings that are compared with published values: what they train, skip and resume; their table and figure."""

import csv
import dataclasses
import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from scripts import reproduce, results_table
from scripts.settings import Published, choose_rows, read_settings
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import ConfigError

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "results"
ENVS = ("reacher", "cheetah", "pusher_easy", "pusher_hard", "ant", "ant_u_maze", "ant_big_maze", "ant_hardest_maze")
ENVS += ("ant_ball", "ant_push", "humanoid")


@pytest.fixture(scope="module")
def rows():
    return read_settings(ROOT / "scripts" / "settings.yml")


def row_of(rows, name, machine="cpu"):
    (row,) = [row for row in rows if (row.name, row.machine) == (name, machine)]
    return row


def recorded(folder):
    return json.loads((RESULTS / folder / "config.json").read_text())["flags"]


# The settings.


def test_every_environment_of_the_benchmark_has_a_row(rows):
    assert dict.fromkeys(row.config.env_name for row in rows) == dict.fromkeys(ENVS)
    for row in rows:
        assert row.why or row.config == dataclasses.replace(
            type(row.config)(),
            exp_name=row.name + ("_gpu" if row.machine == "gpu" else ""),
            env_name=row.config.env_name,
            num_envs=row.config.num_envs,
            num_timesteps=row.config.num_timesteps,
            num_evals=row.config.num_evals,
            render=False,
        ), f"{row.name} leaves the default flags and does not say why"
        assert [value.steps for value in row.published] == sorted(value.steps for value in row.published)
        assert row.source


def test_rows_are_chosen_by_name_and_by_environment(rows):
    assert {row.name for row in choose_rows(rows, ["ant"])} == {"ant", "ant_crl"}
    assert {row.name for row in choose_rows(rows, ["ant_crl", "reacher"])} == {"ant_crl", "reacher"}
    assert choose_rows(rows, []) == rows
    with pytest.raises(ConfigError, match="unknown row 'ants'.*did you mean 'ant"):
        choose_rows(rows, ["ants"])


def test_the_published_value_beside_a_curve(rows):
    row = row_of(rows, "pusher_hard")
    assert row.published_at(10_000_000) == row.published_at(11_100_000) == Published(11_000_000, success=0.36)
    assert row.published_at(12_000_000) == Published(16_000_000, success=0.50)
    assert row.published_at(60_000_000) == row.published[-1] == Published(50_000_000, success=0.66)
    assert row_of(rows, "cheetah").published_at(1) is None


def test_a_recorded_run_belongs_to_the_row_of_its_settings(rows):
    def names(folder):
        return [(row.name, row.machine) for row in rows if row.describes(recorded(folder))]

    assert names("ant_cpu") == [("ant_crl", "cpu")]
    assert names("ant_gpu/s3") == [("ant_crl", "gpu")]
    assert names("ant_chunks3_cpu/seed_0") == [("ant", "cpu")]
    assert names("cheetah_cpu") == names("cheetah_3m_cpu/seed_0") == [("cheetah", "cpu")]  # two engines of a model
    assert names("pusher_easy_random_goals_cpu") == []  # on other physics than the row's
    assert not row_of(rows, "ant_crl").describes(recorded("ant_cpu") | {"backend": "mujoco"})
    assert names("ant_fixed_goals_cpu") == []
    assert names("pusher_easy_cpu") == []
    assert not row_of(rows, "ant").describes({"algorithm": "ppo"} | recorded("ant_cpu"))


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("energy_fn: dot", "energy_fn: dots", "row pusher_hard: .*unknown energy 'dots'"),
        ("    evals: 25\n", "    eval: 25\n", "row ant_crl: unknown key 'eval'.*did you mean 'evals'"),
        ("    env: cheetah\n", "", "row cheetah: lacks env"),
        ("rows:\n", "settings:\n", "it holds source, machines and rows"),
        ("rows:\n", "rows: [\n", "cannot read"),
        ("rows:\n", "rows:\nother:\n", "rows holds no row"),
        ("rows:\n", "rows:\n  new: text\n", "row new: it holds names and values, not 'text'"),
        ("flags: {num_envs: 256, render: false}", "flags: none", "cpu: flags holds names and values, not 'none'"),
        ("rows:\n", "rows:\n  ant: {}\n", "cannot read .*ant stands twice"),
        ("  gpu: {", "  tpu: {", "machines holds cpu and gpu"),
        ("{seeds: 1,", "{seeds: two,", "cpu: seeds 'two' is no number from 1 on"),
        ("{seeds: 1,", "{seeds: 0,", "cpu: seeds 0 is no number from 1 on"),
        ("    label: dot energy\n", "    label: 5\n", "row pusher_hard: label 5 is no text"),
        ("energy_fn: dot}", "energy_fn: dot, seed: 3}", "row pusher_hard: flags: seed is not for flags to say"),
        ("energy_fn: dot}", "env_name: ant}", "row pusher_hard: flags: env_name is not for flags to say"),
        (
            "steps: 6_000_000, success: 0.17",
            "steps: 6M, success: 0.17",
            "row pusher_hard: published: steps '6M' is not",
        ),
        ("steps: 6_000_000, success: 0.17", "steps: 6_000_000", "at 6,000,000 steps: neither success nor time"),
        ("steps: 6_000_000, success: 0.17", "steps: 6_000_000, success: 17", "success 17 is not a number from 0 to 1"),
        ("steps: 6_000_000, success: 0.17", "steps: 12_000_000, success: 0.17", "in the order of their steps"),
    ],
)
def test_a_settings_file_with_a_mistake_is_refused_in_one_line(tmp_path, old, new, said, capsys):
    text = (ROOT / "scripts" / "settings.yml").read_text()
    assert old in text
    (tmp_path / "settings.yml").write_text(text.replace(old, new))
    with pytest.raises(ConfigError, match=said):
        read_settings(tmp_path / "settings.yml")
    assert reproduce.main(["--settings", str(tmp_path / "settings.yml")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


BOTH, NO_FOLDER = ["--dry_run", "--table_only"], ["--results", __file__]


@pytest.mark.parametrize(
    "words", [["ants"], ["--seeds", "-1"], ["--jobs=-2"], ["--machine", "tpu"], ["--fast"], BOTH, NO_FOLDER]
)
def test_bad_input_is_one_line(words, capsys):
    assert reproduce.main(["--machine", "cpu", *words]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: ") and error.count("\n") == 1


# What is trained.

# In the place of python: keeps its arguments and does what DO says, with the row's name in $row.
PYTHON = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$KEPT"
echo >>"$KEPT"
row="$(grep -o -- '--exp_name [a-z_]*' <<<"$*" | cut -d' ' -f2)"
eval "$DO"
"""


@pytest.fixture
def run(tmp_path, monkeypatch):
    """run(*words, do="") -> exit status, the commands that were given to python."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    kept = tmp_path / "kept"
    kept.touch()
    (tmp_path / "results").mkdir()
    monkeypatch.setenv("KEPT", str(kept))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.chdir(ROOT)

    def start(*words, do=""):
        monkeypatch.setenv("DO", do)
        folders = ["--output_dir", str(tmp_path / "runs"), "--results", str(tmp_path / "results")]
        status = reproduce.main([*folders, *words])
        return status, [shlex.split(line) for line in kept.read_text().splitlines()]

    return start


def test_on_a_cpu_every_seed_is_a_job_and_resumes(run, rows):
    status, commands = run("reacher", "ant_crl", "--machine", "cpu", "--seeds", "2")
    assert status == 0
    configs = [parse_config(words, REGISTRIES) for program, *words in commands if program == "training.py"]
    assert {(config.exp_name, config.seed, config.num_seeds) for config in configs} == {
        (name, seed, 1) for name in ("reacher", "ant_crl") for seed in (0, 1)
    }
    for config in configs:
        row = row_of(rows, config.exp_name)
        assert row.describes(dataclasses.asdict(config))
        assert (config.resume, config.group_name, config.num_timesteps) == (
            "newest",
            reproduce.GROUP,
            row.config.num_timesteps,
        )


def test_a_machine_without_a_device_is_named(run, capsys):
    assert run("reacher", do='echo "RuntimeError: no cuda" >&2; exit 1')[0] == 2
    error = capsys.readouterr().err
    assert "RuntimeError: no cuda" in error and "--machine" in error and error.count("\n") == 1


def test_on_a_gpu_the_seeds_of_a_row_are_one_program(run):
    status, ((_, *words),) = run("humanoid", "--machine", "gpu")
    config = parse_config(words, REGISTRIES)
    assert (status, config.num_seeds, config.num_envs, config.num_timesteps) == (0, 4, 1024, 10_000_000)


def test_a_seed_that_results_hold_is_skipped(run, tmp_path, capsys):
    shutil.copytree(RESULTS / "ant_cpu", tmp_path / "results" / "ant_cpu")
    status, commands = run("ant_crl", "--machine", "cpu", "--seeds", "2")
    assert status == 0
    assert [parse_config(words, REGISTRIES).seed for _, *words in commands] == [1]
    assert f"ant_crl seed 0: finished, {tmp_path / 'results' / 'ant_cpu'}" in capsys.readouterr().out
    assert "| 6M " in (tmp_path / "results" / "table.md").read_text()


def test_a_dry_run_trains_nothing_and_writes_nothing(run, tmp_path, capsys):
    status, commands = run("ant", "--machine", "cpu", "--dry_run")
    assert (status, commands) == (0, [])
    assert "ant seed 0: python training.py" in capsys.readouterr().out
    assert list((tmp_path / "results").iterdir()) == []


def test_a_run_that_goes_wrong_does_not_stop_the_others(run, capsys):
    wrong = '[[ "$row" != ant ]] || { echo "error: seed 0 stopped: it is nan"; exit 1; }'
    status, commands = run("ant", "ant_ball", "--machine", "cpu", "--jobs", "1", do=wrong)
    assert (status, len(commands)) == (1, 3)
    assert "ant seed 0: went wrong, status 1: error: seed 0 stopped: it is nan" in capsys.readouterr().out


def test_a_refusal_ends_the_loop(run, capsys):
    status, commands = run("ant", "--machine", "cpu", "--jobs", "1", do='echo "error: no"; exit 2')
    assert (status, len(commands)) == (2, 1)
    assert "ant seed 0: refused: error: no" in capsys.readouterr().out


def test_a_signal_reaches_the_trainings_which_save(run, capsys):
    """The job sends it to the process that started it, which passes it on; nothing further is started."""
    status, commands = run(
        *("ant", "--machine", "cpu", "--jobs", "1"),
        do='sleep 60 & trap "kill $!; exit 75" TERM; kill -TERM $PPID; wait',
    )
    assert (status, len(commands)) == (75, 1)
    assert "interrupted and saved" in capsys.readouterr().out


# Table and figure.


def write_run(folder, flags, curve):
    """A run folder with a curve of (env steps, success, time)."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"flags": flags}))
    with (folder / "metrics.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["env_steps", results_table.SUCCESS, results_table.TIME])
        writer.writerows(curve)


def table_of(path):
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    header, _, *cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in cells]


def test_table_and_figure_by_hand(rows, tmp_path):
    row = row_of(rows, "ant_u_maze_crl")
    curves = {
        0: [(0, 0.0, 0), (1_000_000, 0.4, 100), (2_200_000, 0.6, 230)],
        1: [(0, 0.0, 0), (1_000_000, 0.5, 120), (2_200_000, 0.8, 250)],
        2: [(0, 0.0, 0), (1_000_000, 0.1, 10)],  # interrupted early: the others are not cut to its length
    }
    for seed, curve in curves.items():
        write_run(tmp_path / f"run_{seed}", dataclasses.asdict(row.config) | {"seed": seed}, curve)
    write_run(tmp_path / "copy", dataclasses.asdict(row.config), curves[0][:2])  # of seed 0, shorter
    results_table.write(rows, [tmp_path], tmp_path / "table")
    table = table_of(tmp_path / "table.md")
    assert len(table) == len({row.name for row in rows})
    (line,) = [line for line in table if line["env"] == "`ant_u_maze`" and line["setting"] == "CRL"]
    assert line == {
        "env": "`ant_u_maze`",
        "setting": "CRL",
        "env steps": "2.2M",
        "seeds": "2",
        "success": "0.70 (0.60 to 0.80)",
        "time": "240",
        "published": "0.47, time 225 at 50M",
        "passed at": "2.2M (0.474)",
    }
    (other,) = [line for line in table if line["env"] == "`humanoid`"]
    assert (other["env steps"], other["success"], other["published"]) == ("", "", "0.20 at 50M, a reproduction")
    assert (tmp_path / "table.png").stat().st_size > 10_000


def test_a_setting_that_both_machines_share_stands_once(rows, tmp_path):
    row = row_of(rows, "pusher_easy")
    write_run(tmp_path / "run", dataclasses.asdict(row.config), [(0, 0.0, 0), (2_000_000, 0.4, 30)])
    results_table.write(rows, [tmp_path], tmp_path / "table")
    (line,) = [line for line in table_of(tmp_path / "table.md") if line["env"] == "`pusher_easy`"]
    assert (line["setting"], line["env steps"]) == (f"{row.label}, on mujoco", "2M")


def test_what_the_untrained_policy_reaches_is_not_called_learned(rows, tmp_path):
    row = row_of(rows, "reacher")
    write_run(tmp_path / "run", dataclasses.asdict(row.config), [(0, 1.0, 150), (650_000, 1.0, 900)])
    results_table.write(rows, [tmp_path], tmp_path / "table")
    (line,) = [line for line in table_of(tmp_path / "table.md") if line["env"] == "`reacher`"]
    assert line["passed at"] == "untrained"


def test_a_value_that_is_published_as_time_alone(rows):
    row = row_of(rows, "ant_hardest_maze")
    assert results_table.published_text(row.published[-1]) == "time 215 at 100M, networks of depth 4"


def test_a_figure_has_a_line_at_the_published_value(rows, tmp_path, monkeypatch):
    row = row_of(rows, "ant_ball")
    write_run(tmp_path / "run", dataclasses.asdict(row.config), [(0, 0.0, 0), (5_000_000, 0.2, 30)])
    figures = []
    original = results_table.plot.draw
    monkeypatch.setattr(results_table.plot, "draw", lambda *args: figures.append(original(*args)) or figures[-1])
    results_table.write(rows, [tmp_path], tmp_path / "table")
    (axis,) = [axis for axis in figures[0].axes if axis.get_visible()]
    assert axis.get_title() == "ant_ball"
    assert [list(line.get_ydata()) for line in axis.lines] == [[0.0, 0.2], [0.249, 0.249]]


def test_the_table_in_results_has_the_rows_of_the_settings(rows):
    table = table_of(RESULTS / "table.md")
    assert {line["env"].strip("`") for line in table} == set(ENVS)
    assert {line["setting"] for line in table} <= {results_table.name_of(row) for row in rows}


@pytest.mark.slow
def test_a_row_is_trained_for_real_and_skipped_when_finished(tmp_path, monkeypatch, capsys):
    settings = """
source: nobody
machines: {cpu: {seeds: 2, flags: {render: false, num_envs: 8}}, gpu: {seeds: 1, flags: {num_envs: 8}}}
rows:
  point:
    env: point
    label: CRL
    flags: {batch_size: 16, episode_length: 40, unroll_length: 10, min_replay_size: 20, max_replay_size: 100}
    why: small
    steps: 1000
    evals: 3
    published: [{steps: 1000, success: 0.0}]
"""
    (tmp_path / "settings.yml").write_text(settings)
    (tmp_path / "results").mkdir()
    monkeypatch.chdir(ROOT)
    words = ["--settings", str(tmp_path / "settings.yml"), "--output_dir", str(tmp_path / "runs"), "--machine", "cpu"]
    words += ["--results", str(tmp_path / "results")]
    assert reproduce.main(words) == 0
    (line,) = table_of(tmp_path / "results" / "table.md")
    assert (line["env"], line["seeds"], line["passed at"]) == ("`point`", "2", "untrained")
    assert reproduce.main(words) == 0
    assert "point seed 1: finished" in capsys.readouterr().out
    assert len(list((tmp_path / "runs" / "crl" / "reproduce").glob("point_*"))) == 2
