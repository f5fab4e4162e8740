"""What a user adds is one piece and one line of a registry: toys of tests/toys.py train on `point` and are kept."""

import csv
import json

import numpy as np
import pytest
import toys

import training
from scripts import evaluate, plot
from src.algorithms import ALGORITHMS
from src.critics import CRITICS
from src.goals import GOAL_RULES
from src.policy import load_policy

POINT = ["--env_name", "point", "--num_envs", "16", "--episode_length", "30", "--unroll_length", "10"]
POINT += ["--batch_size", "32", "--min_replay_size", "30", "--max_replay_size", "300", "--h_dim", "16"]
POINT += ["--num_evals", "3", "--num_eval_envs", "32"]


@pytest.fixture(autouse=True)
def toys_registered(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "linear", toys.LINEAR)
    monkeypatch.setitem(CRITICS, "bounded", toys.bounded)
    monkeypatch.setitem(GOAL_RULES, "next", toys.next_rows)


def train(folder, *more):
    """Trains, and returns the folders of the runs."""
    folder.mkdir(exist_ok=True)
    names = folder / "names"
    assert training.main([*POINT, "--output_dir", str(folder), "--run_dir_file", str(names), *more]) == 0
    return [folder.__class__(line) for line in names.read_text().splitlines()]


def column(run_dir, name):
    with (run_dir / "metrics.csv").open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


def test_an_algorithm_of_one_file_has_all_that_the_others_have(tmp_path, capsys):
    """Flags, seeds, checkpoints, resuming bit for bit, a video, plots, evaluation, `load_policy`."""
    run_dirs = train(
        tmp_path, "--algorithm", "linear", "--num_timesteps", "20000", "--num_seeds", "2", "--step_size=.5"
    )
    assert len(run_dirs) == 2
    assert "flags       LinearConfig(" in capsys.readouterr().out
    for run_dir in run_dirs:
        assert json.loads((run_dir / "config.json").read_text())["flags"]["step_size"] == 0.5
        assert column(run_dir, "training/clone_loss")
        assert column(run_dir, "eval/episode_success_any")[-1] > 0.9 > column(run_dir, "eval/episode_success_any")[0]
        assert list((run_dir / "videos").glob("*.mp4"))
        assert not (run_dir / "energy.png").exists()  # it has no critic
    policy = load_policy(run_dirs[0])
    action = np.asarray(policy(np.array([-0.5, 0.0, 0.5, 0.0], np.float32)))
    assert action[0] > 0.3 > abs(action[1])

    resumed = train(tmp_path / "resumed", "--algorithm", "linear", "--num_timesteps", "12000", "--no_render")
    longer = ["--num_timesteps", "20000", "--resume", str(resumed[0]), "--no_render"]
    assert train(tmp_path / "resumed", "--algorithm", "linear", *longer) == resumed
    assert plot.main([*map(str, run_dirs), "--out", str(tmp_path / "figure.png")]) == 0
    assert (tmp_path / "figure.png").exists()
    assert evaluate.main([str(run_dirs[0]), "--episodes", "50"]) == 0
    assert training.main([*POINT, "--step_size", ".5"]) == 2
    assert "--step_size is a flag of --algorithm linear" in capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--critic", "bounded", "--num_critics", "2"], ["--goal_rule", "next"]])
def test_a_critic_and_a_goal_rule_are_one_function_each(tmp_path, flags):
    (run_dir,) = train(tmp_path, "--num_timesteps", "6000", "--no_render", *flags)
    flag, name = flags[0].removeprefix("--"), flags[1]
    assert json.loads((run_dir / "config.json").read_text())["flags"][flag] == name
    assert np.isfinite(column(run_dir, "training/crl_critic_loss")).all()
    if flag == "critic":
        assert column(run_dir, "training/sa_repr_mean")[-1] < 5 * np.sqrt(64)
