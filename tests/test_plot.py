"""The plot script, from run folders as the loggers write them to figures, tables and messages."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from scripts import plot
from src.statistics import interquartile_mean

METRIC = "eval/episode_success_any"


@pytest.fixture
def make_run(tmp_path):
    """Writes a run folder: make_run(values, flag=..., steps=...) -> its path."""

    def make(values, steps=None, columns=None, **flags):
        flags = {"exp_name": "test", "env_name": "reacher", "seed": 0, "energy_fn": "l2", "num_evals": 3} | flags
        folder = tmp_path / "runs" / f"run_{len(list(tmp_path.glob('runs/*')))}"
        folder.mkdir(parents=True)
        (folder / "config.json").write_text(json.dumps({"flags": flags}))
        table = {"env_steps": list(range(0, 100 * len(values), 100)) if steps is None else steps, METRIC: values}
        with (folder / "metrics.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(table | (columns or {}))
            writer.writerows(zip(*(table | (columns or {})).values(), strict=True))
        return folder

    return make


def read_csv(path):
    return list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []


@pytest.fixture
def draw_files(tmp_path, capsys, monkeypatch):
    """Runs the script: draw_files(flags) -> exit status, stderr's lines, the figure, its table."""
    figures = []
    original = plot.draw
    monkeypatch.setattr(plot, "draw", lambda *args: figures.append(original(*args)) or figures[-1])

    def run(*flags, runs=None):
        paths = [str(tmp_path / "runs")] if runs is None else [str(path) for path in runs]
        status = plot.main([*paths, "--out", str(tmp_path / "out" / "figure"), "--repetitions", "50", *flags])
        rows = read_csv(tmp_path / "out" / "figure.csv")
        return status, capsys.readouterr().err.splitlines(), figures[-1] if figures else None, rows

    return run


@pytest.fixture
def draw(draw_files, monkeypatch):
    """The same without the rendering, which takes most of the time."""
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: None)
    return draw_files


def legend(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_draws_a_curve_per_setting_and_writes_all_files(make_run, draw_files, tmp_path):
    scores = {"l2": [0.5, 0.6, 0.7, 0.8, 1.0], "dot": [0.1, 0.2, 0.3, 0.4, 0.5]}
    for energy_fn, ends in scores.items():
        for seed, end in enumerate(ends):
            make_run([0.0, end / 2, end], energy_fn=energy_fn, seed=seed, exp_name=f"try_{seed}")
    status, messages, figure, rows = draw_files()
    assert (status, messages) == (0, [])
    (axis,) = figure.axes
    assert legend(figure) == ["dot (n = 5)", "l2 (n = 5)"]
    assert [line.get_color() for line in axis.lines] == list(plot.PALETTE[:2])
    np.testing.assert_allclose(axis.lines[1].get_ydata(), [0.0, 0.35, 0.7])
    assert len(axis.collections) == 2
    assert (axis.get_title(), axis.get_xlabel()) == ("reacher", "env steps")
    assert axis.get_ylabel() == "success rate\n(share of episodes)"
    assert [(row["setting"], row["runs"], row["env_steps"]) for row in rows] == [
        ("dot", "5", "200"),
        ("l2", "5", "200"),
    ]
    assert [float(row["iqm"]) for row in rows] == pytest.approx([0.3, 0.7])
    assert all(float(row["low"]) < float(row["iqm"]) < float(row["high"]) for row in rows)
    out = tmp_path / "out"
    assert (out / "figure.png").read_bytes().startswith(b"\x89PNG")
    assert (out / "figure.pdf").read_bytes().startswith(b"%PDF")
    (improvement,) = read_csv(out / "figure_improvement.csv")
    assert (improvement["x"], improvement["y"]) == ("dot", "l2")
    assert float(improvement["probability"]) == pytest.approx(0.5 / 25)  # one tie among 25 pairs
    assert "| dot | l2 | 0.02 " in (out / "figure.md").read_text()


def test_a_dashboard_has_a_panel_per_metric_and_a_file_per_environment(make_run, draw_files, tmp_path, capsys):
    for env in ("ant", "reacher"):
        for seed in range(2):
            losses = {"training/crl_critic_loss": ["", 3.0, 2.0 + seed]}
            make_run([0.0, 0.5, 1.0], columns=losses, env_name=env, seed=seed)
    figures = ["--metric", METRIC, "--metric", "training/crl_critic_loss"]
    status, _, figure, _ = draw_files("--dashboard", *figures)
    assert status == 0
    assert [axis.get_title() for axis in figure.axes] == [METRIC, "training/crl_critic_loss"]
    np.testing.assert_allclose(figure.axes[1].lines[0].get_ydata(), [3.0, 2.5])
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        f"figure_{env}.{ending}" for env in ("ant", "reacher") for ending in ("pdf", "png")
    ]


def test_a_dashboard_leaves_out_what_no_run_measured(make_run, draw):
    make_run([0.0, 1.0])
    status, messages, figure, _ = draw("--dashboard")
    assert status == 0
    assert [axis.get_title() for axis in figure.axes] == [METRIC]
    assert len(messages) == len(plot.DASHBOARD) - 1


def test_same_runs_give_the_same_bytes(make_run, draw_files, tmp_path):
    for seed in range(4):
        make_run([0.0, seed / 4], seed=seed)
    contents = []
    for _ in range(2):
        draw_files()
        contents.append([path.read_bytes() for path in sorted((tmp_path / "out").iterdir())])
    assert contents[0] == contents[1]


@pytest.mark.parametrize(
    ("out", "files"),
    [
        ("figure.svg", "figure.svg figure.png figure.pdf figure.md figure.csv"),
        ("Figure.PNG", "Figure.png Figure.pdf Figure.md Figure.csv"),
        ("lr_0.5", "lr_0.5.png lr_0.5.pdf lr_0.5.md lr_0.5.csv"),
        ("~/figure.v2.svg", "figure.v2.svg figure.v2.png figure.v2.pdf figure.v2.md figure.v2.csv"),
    ],
)
def test_out_may_end_in_a_format(make_run, tmp_path, monkeypatch, capsys, out, files):
    make_run([0.0, 1.0])
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "there")
    monkeypatch.setenv("HOME", str(tmp_path / "there"))
    (tmp_path / "there" / "runs").symlink_to(tmp_path / "runs")
    assert plot.main(["~/runs", "--out", out, "--repetitions", "50"]) == 0
    assert {path.name for path in Path().iterdir()} - {"runs"} == set(files.split())
    assert "written: " in capsys.readouterr().out
    if ".svg" in out:
        assert Path(files.split()[0]).read_text().startswith("<?xml")


def test_the_same_runs_give_the_same_svg(make_run, draw_files, tmp_path):
    make_run([0.0, 1.0])
    contents = []
    for _ in range(2):
        draw_files("--out", str(tmp_path / "figure.svg"))
        contents.append((tmp_path / "figure.svg").read_bytes())
    assert contents[0] == contents[1]


def test_runs_from_any_directory(make_run, tmp_path):
    make_run([0.0, 1.0])
    script = Path(plot.__file__).resolve()
    done = subprocess.run([sys.executable, script, "runs"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "| reacher | test " in done.stdout
    assert {path.name for path in tmp_path.glob("figure*")} == {f"figure.{end}" for end in ("png", "pdf", "md", "csv")}


def test_a_single_run_has_no_interval(make_run, draw):
    make_run([0.0, 0.5])
    _, _, figure, rows = draw()
    assert not figure.axes[0].collections
    assert (rows[0]["low"], rows[0]["high"]) == ("", "")


@pytest.mark.parametrize(
    ("first", "second", "flags", "labels"),
    [
        ({"energy_fn": "l2", "seed": 0}, {"energy_fn": "dot", "seed": 1}, [], ["dot", "l2"]),
        ({"exp_name": "a"}, {"exp_name": "b"}, [], ["a", "b"]),
        ({"h_dim": 256}, {"h_dim": 64}, [], ["h_dim=64", "h_dim=256"]),
        ({"h_dim": 64, "use_ln": True}, {"h_dim": 64, "use_ln": False}, [], ["use_ln=False", "use_ln=True"]),
        ({"seed": 0, "num_evals": 9}, {"seed": 1, "group_name": "x"}, [], ["test"]),
        ({"seed": 0, "run_dir_file": "a"}, {"seed": 1, "run_dir_file": "b", "num_devices": 2}, [], ["test"]),
        ({"seed": 0, "h_dim": 8}, {"seed": 1, "h_dim": 9}, ["--group_by", "seed"], ["seed=0", "seed=1"]),
        ({"h_dim": 8, "energy_fn": "dot"}, {"h_dim": 9}, [], ["dot, 8", "l2, 9"]),
        ({"h_dim": 8, "seed": 1}, {}, [], ["test"]),  # written before there was such a flag
        ({}, {"algorithm": "sac"}, [], ["crl", "sac"]),  # the first before there was a choice
        (
            {"algorithm": "sac", "her_ratio": 0.8},
            {"algorithm": "ppo"},
            ["--group_by", "algorithm", "--group_by", "her_ratio"],
            ["ppo", "sac, her_ratio=0.8"],
        ),
        ({"exp_name": "_a$b"}, {"exp_name": "c^d$"}, [], [r"_a\$b", r"c^d\$"]),
    ],
)
def test_settings_are_told_apart(make_run, draw, first, second, flags, labels):
    make_run([0.0, 0.5], **first)
    make_run([0.1, 0.6], **second)
    status, _, figure, _ = draw(*flags)
    texts = [text.rsplit(" (", 1)[0] for text in legend(figure)]
    assert status == 0
    assert [text.replace("energy_fn=", "").replace(", h_dim=", ", ") for text in texts] == labels


def test_environments_get_a_panel_each_and_a_common_row(make_run, draw):
    scores = {"ant": [0.1, 0.2, 0.6], "reacher": [0.9, 0.8, 1.0]}
    for env_name, ends in scores.items():
        for seed, end in enumerate(ends):
            make_run([0.0, end], env_name=env_name, seed=seed, episode_length=len(env_name))
    make_run([0.0, 0.7], env_name="ant", eval_env="ant_maze")
    status, messages, figure, rows = draw()
    assert status == 0
    assert "not mixed" in messages[0] and len(messages) == 1
    assert [axis.get_title() for axis in figure.axes] == ["ant", "ant, evaluated on ant_maze", "reacher"]
    assert legend(figure) == ["test (n = 1 to 3)"]  # episode_length differs with the environment only
    assert [row["env"] for row in rows] == ["ant", "ant, evaluated on ant_maze", "reacher", "all 3"]
    assert float(rows[-1]["iqm"]) == pytest.approx(interquartile_mean([*scores["ant"], *scores["reacher"], 0.7]))


def test_different_evaluation_steps_meet_on_a_common_grid(make_run, draw):
    make_run([0.0, 1.0], steps=[0, 100], seed=0)
    make_run([1.0, 0.5, 0.5], steps=[20, 60, 100], seed=1, num_evals=5)
    _, messages, figure, _ = draw()
    line = figure.axes[0].lines[0]
    assert not messages
    np.testing.assert_allclose(line.get_xdata(), [20, 60, 100])
    np.testing.assert_allclose(line.get_ydata(), [0.6, 0.55, 0.75])


def test_an_unfinished_run_ends_its_curve_and_is_named(make_run, draw):
    make_run([0.0, 0.2, 0.4, 0.6], seed=0)
    short = make_run([0.0, 0.4], seed=1)
    _, messages, figure, _ = draw()
    assert figure.axes[0].lines[0].get_xdata()[-1] == 100
    assert len(messages) == 1 and "up to 100 of 300" in messages[0] and str(short) in messages[0]


def test_runs_without_a_common_range_are_not_drawn(make_run, draw):
    make_run([0.0, 0.2], steps=[0, 10], seed=0)
    make_run([0.0, 0.2], steps=[20, 30], seed=1)
    status, messages, _, _ = draw()
    assert status == 2
    assert "share no range" in messages[0]


def test_wall_time_is_training_plus_evaluation(make_run, draw):
    columns = {"training/walltime": ["", 700, 1500], "eval/walltime": [60, 80, 100]}
    make_run([0.0, 0.5, 1.0], columns=columns)
    _, _, figure, _ = draw("--x", "walltime")
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [1, 13, 1600 / 60])
    assert figure.axes[0].get_xlabel() == "wall time (min)"


def test_wall_time_that_is_missing_or_goes_backwards_is_named(make_run, draw):
    lacking = make_run([0.0, 1.0])
    backwards = make_run([0.0, 1.0], columns={"training/walltime": [5, 3]})
    status, messages, _, _ = draw("--x", "walltime")
    assert status == 2
    assert f"{lacking / 'metrics.csv'}: no column training/walltime" in messages[0 if "no column" in messages[0] else 1]
    assert any(f"{backwards / 'metrics.csv'}: its wall time goes backwards" in message for message in messages)


def test_smoothing_changes_the_curve_and_not_the_table(make_run, draw):
    make_run([0.0, 1.0, 0.2])
    _, _, rough, rough_rows = draw()
    _, _, smooth, smooth_rows = draw("--smooth", "2")
    np.testing.assert_allclose(rough.axes[0].lines[0].get_ydata(), [0.0, 1.0, 0.2])
    np.testing.assert_allclose(smooth.axes[0].lines[0].get_ydata(), [0.0, 0.5, 0.6])
    assert rough_rows == smooth_rows


def test_final_score_is_the_published_one():
    values = np.random.default_rng(0).normal(size=50)
    expected = np.mean([values[end - 5 : end].mean() for end in range(41, 51)])
    assert plot.final_score(values) == pytest.approx(expected)
    assert plot.final_score(np.arange(10.0)) == 8.5  # a window of one, the last two
    assert plot.final_score(np.array([3.0])) == 3.0


def test_corrupted_rows_are_skipped_and_named(make_run, draw):
    table = make_run([0.0, 0.25, 0.5, 0.75, 1.0, 0.125]) / "metrics.csv"
    lines = table.read_text().splitlines()
    lines[2:6] = ["100,0.25,7", "200,ha|f", ",0.75", '400,"1.0']
    table.write_text("\n".join([*lines, "600,nan", "700", "", "800,", "900,0.375\x00"]))
    status, messages, figure, _ = draw()
    assert status == 0
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [0, 400, 500])
    assert [message.split(": ", 2)[1].removeprefix(f"{table}, ") for message in messages] == [
        "line 3",
        "line 4",
        "line 5",
        "line 8",
        "line 9",
        "line 12",
    ]
    assert "3 cells under a header of 2" in messages[0] and "'ha|f', not a finite number" in messages[1]


def test_missing_values_are_left_out_not_drawn_as_zero(make_run, draw):
    make_run(["", 0.5, "", 1.0])
    _, messages, figure, _ = draw()
    assert not messages
    np.testing.assert_allclose(figure.axes[0].lines[0].get_xdata(), [100, 300])


def test_an_unknown_metric_is_named_and_the_others_drawn(make_run, draw, tmp_path):
    make_run([0.0, 1.0])
    status, messages, _, _ = draw("--metric", "eval/episode_sucess_any", "--metric", METRIC)
    assert status == 0
    assert messages == [f"warning: --metric eval/episode_sucess_any: no run has it; nearest: {METRIC}"]
    assert (tmp_path / "out" / "figure_eval_episode_success_any.csv").exists()


def test_bad_run_folders_are_named_and_the_others_drawn(make_run, draw, tmp_path):
    make_run([0.0, 1.0])
    lacking, empty, other = make_run([0.0]), make_run([]), make_run([1.0])
    (lacking / "metrics.csv").unlink()
    (other / "metrics.csv").write_text("step,loss\n1,2\n")
    broken = make_run([0.0, 0.5])
    (broken / "config.json").write_text("{")
    (tmp_path / "nothing").mkdir()
    paths = [tmp_path / "runs", tmp_path / "nothing", tmp_path / "absent"]
    status, messages, figure, _ = draw(runs=paths)
    assert status == 0
    for path, text in [
        (lacking, "without metrics.csv"),
        (empty / "metrics.csv", "no rows"),
        (other / "metrics.csv", "no column env_steps"),
        (broken / "config.json", "cannot be read"),
        (tmp_path / "nothing", "no run folder"),
        (tmp_path / "absent", "no such file"),
    ]:
        assert sum(message.startswith(f"warning: {path}: ") and text in message for message in messages) == 1
    assert legend(figure) == ["run_4 (n = 1)", "test (n = 1)"]


def test_takes_files_and_links_and_counts_a_run_once(make_run, draw, tmp_path):
    run = make_run([0.0, 1.0])
    (tmp_path / "picked").mkdir()
    (tmp_path / "picked" / "link").symlink_to(run)
    (tmp_path / "picked" / "loop").symlink_to(tmp_path / "picked")
    (tmp_path / "peer.csv").write_text(f'"env_steps","{METRIC}"\n0,0.5\n100,0.75\n')
    _, messages, figure, rows = draw(
        runs=[tmp_path / "picked", run / "metrics.csv", tmp_path / "runs", tmp_path / "peer.csv"]
    )
    assert [axis.get_title() for axis in figure.axes] == ["reacher", "unknown environment"]
    assert [(row["setting"], row["runs"]) for row in rows] == [("test", "1"), ("peer", "1")]
    assert len(messages) == 1 and "not mixed" in messages[0]


def test_repeated_seeds_are_pointed_out(make_run, draw):
    make_run([0.0, 1.0], seed=3)
    make_run([0.0, 0.5], seed=3)
    _, messages, _, _ = draw()
    assert messages == ["warning: reacher, test: 2 runs, but 1 seeds; every run is counted"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--metrics", METRIC], "Unrecognized options: --metrics.*did you mean --metric"),
        (["--x", "hours"], "invalid choice 'hours'"),
        (["--smooth", "few"], "--smooth 'few' is no whole number"),
        (["--smooth", "0"], "--smooth 0 is out of range"),
        (["--confidence", "95"], "--confidence 95.0 is out of range"),
        (["--seed", "-1"], "--seed -1 is out of range"),
        (["--out", "/dev/null/figure"], "--out: cannot write"),
        (["--out", "figure.gif"], "--out figure.gif: the ending .gif is not one of .png, .pdf, .svg"),
        (["--out", "there/figure.jp2"], "the ending .jp2 is not one of .png, .pdf, .svg"),
        (["--out", "table.csv"], "the ending .csv is not one of .png, .pdf, .svg; .md and .csv are written too"),
        (["--metric", "loss"], "nothing to draw"),
    ],
)
def test_bad_flags_end_with_status_2_and_one_error(make_run, draw, flags, message):
    make_run([0.0, 1.0])
    status, messages, _, _ = draw(*flags)
    (error,) = [line for line in messages if line.startswith("error: ")]
    assert status == 2
    assert re.search(message, error)


def test_an_unknown_flag_to_group_by_is_ignored_with_the_nearest(make_run, draw):
    make_run([0.0, 1.0])
    status, messages, _, _ = draw("--group_by", "enrgy_fn")
    assert status == 0
    assert "--group_by enrgy_fn: no run has this flag, ignored; nearest: energy_fn" in messages[0]


def test_more_settings_than_colours_change_the_line_style(make_run, draw):
    for width in range(10):
        make_run([0.0, width / 10], h_dim=width)
    _, _, figure, _ = draw()
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == 10
