"""scripts/evaluate.py: its table against NumPy, intervals against their formulas, refusals of one line."""

import csv

import numpy as np
import pytest
from conftest import ProbeEnv, registered
from drawing import drawn_run

from scripts import evaluate
from scripts.evaluate import EvaluateConfig, distance_bins, scores, table_rows
from src import insight
from src.evaluator import Episodes


def episodes_of(near: np.ndarray) -> Episodes:
    blank = np.zeros((len(near), 2))
    return Episodes(blank, blank, blank, blank, {"success": near}, np.full(len(near), 8.0))


def test_success_has_wilsons_interval():
    row = scores(np.array([5.0] * 8 + [0.0] * 2), EvaluateConfig("run"))
    share, count, z = 0.8, 10, 1.959963985
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * np.sqrt(share * (1 - share) / count + z**2 / (4 * count**2))
    assert row["success"] == pytest.approx(share)
    assert (row["success low"], row["success high"]) == pytest.approx((middle - half, middle + half), abs=1e-6)


def test_time_near_goal_has_a_bootstrap_interval():
    near = np.random.default_rng(0).normal(100, 20, 400)
    row = scores(near, EvaluateConfig("run"))
    half = 1.96 * near.std() / np.sqrt(len(near))  # what the bootstrap of a mean comes to with many episodes
    assert row["time near goal"] == pytest.approx(near.mean())
    assert (row["time low"], row["time high"]) == pytest.approx((near.mean() - half, near.mean() + half), abs=0.5)
    narrower = scores(near, EvaluateConfig("run", confidence=0.5))
    assert narrower["time high"] - narrower["time low"] < row["time high"] - row["time low"]


def test_bins_are_no_narrower_than_the_goal():
    assert distance_bins(np.array([9.9, 10.1]), 0.5) == [(9.9, 10.1)]
    assert distance_bins(np.array([0.0, 1.0]), 0.2) == [(0.0, 0.5), (0.5, 1.0)]
    assert len(distance_bins(np.array([0.0, 100.0]), 0.5)) == evaluate.MOST_BINS
    assert distance_bins(np.array([3.0]), 0.5) == [(3.0, 3.0)]


def test_every_episode_is_in_one_bin():
    distances = np.array([0.0, 0.2, 0.5, 0.9, 1.0])
    near = np.array([1.0, 2.0, 0.0, 4.0, 0.0])
    bins = distance_bins(distances, 0.2)
    rows = table_rows(episodes_of(near), distances, bins, "stochastic", EvaluateConfig("run"))
    assert [row["distance to goal (m)"] for row in rows] == ["all", "0.00 to 0.50", "0.50 to 1.00"]
    assert [row["episodes"] for row in rows] == [5, 2, 3]
    assert [row["time near goal"] for row in rows] == pytest.approx([1.4, 1.5, 4 / 3])
    assert [row["success"] for row in rows] == pytest.approx([0.6, 1.0, 1 / 3])


def test_a_run_is_measured_deterministic_and_stochastic(finished_run, capsys):
    capsys.readouterr()
    with registered(probe=ProbeEnv):
        assert evaluate.main([str(finished_run), "--episodes", "50"]) == 0
    out = capsys.readouterr().out
    with (finished_run / "evaluation.csv").open() as file:
        rows = list(csv.DictReader(file))
    per_policy = {name: [row for row in rows if row["actions"] == name] for name in ("deterministic", "stochastic")}
    for all_of_them, *bins in per_policy.values():
        assert int(all_of_them["episodes"]) == 50 == sum(int(row["episodes"]) for row in bins)
    deterministic, stochastic = (each[0]["time near goal"] for each in per_policy.values())
    assert deterministic != stochastic
    assert "| deterministic | all " in out
    assert {path.name for path in finished_run.glob("*.png")} == {"energy.png", "reached_goals.png", "critic.png"}


def test_another_policy_or_env_leaves_files_of_its_own(finished_run, capsys, monkeypatch):
    monkeypatch.setitem(insight.PICTURES, "energy", lambda *_: 1 / 0)
    with registered(probe=ProbeEnv, far=ProbeEnv):
        more = ["--episodes", "9", "--params", "best", "--eval_env", "far"]
        assert evaluate.main([str(finished_run), *more]) == 1  # a picture is missing
    files = {path.name for ending in ("png", "csv") for path in finished_run.glob(f"*.{ending}")}
    assert files == {"metrics.csv", "evaluation_best_far.csv", "reached_goals_best_far.png", "critic_best_far.png"}
    assert "far, policy of" in capsys.readouterr().out


def test_a_kept_policy_is_named_by_its_env_steps_or_its_file(tmp_path, capsys, monkeypatch):
    run_dir = drawn_run(tmp_path, keep_policies=2)
    kept = sorted((run_dir / "policies").iterdir())[0]
    monkeypatch.setattr(insight, "PICTURES", {})
    with registered(probe=ProbeEnv):
        for params in (str(int(kept.stem)), f"{int(kept.stem)}.0", str(kept)):
            assert evaluate.main([str(run_dir), "--episodes", "9", "--params", params]) == 0
            (run_dir / f"evaluation_{int(kept.stem)}.csv").unlink()
        assert evaluate.main([str(run_dir), "--params", "7"]) == 2
    assert "holds no policy '7': there are last, best" in capsys.readouterr().err


def test_requests_that_cannot_be_carried_out(tmp_path, capsys):
    for args, text in (
        ([str(tmp_path)], "is not a run folder"),
        (["x" * 300], "is not a run folder"),
        ([str(tmp_path), "--episodes", "0"], "--episodes 0 is out of range"),
        ([str(tmp_path), "--episodes", "100001"], "--episodes 100001 is out of range"),
        ([str(tmp_path), "--confidence", "95"], "inside (0, 1)"),
        ([], "run_dir"),
    ):
        assert evaluate.main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text.lower() in line.lower()
