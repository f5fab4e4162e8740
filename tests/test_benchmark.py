"""The benchmark on sizes that say nothing: what it measures, and what a sweep leaves."""

import functools
import json
import math

import jax
import pytest
from conftest import ProbeEnv, flags, tiny, tiny_of

from scripts import benchmark, benchmark_checkpoint
from src.algorithms import ALGORITHMS
from src.plan import measure, planned_bytes

pytestmark = pytest.mark.usefixtures("probe_registered")


@pytest.mark.slow
def test_a_sweep_leaves_figures_table_and_plot(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(jax, "device_count", lambda: 4)  # of which the runs use one
    monkeypatch.setattr(benchmark, "MATMUL_SIZE", 8)
    monkeypatch.setattr(benchmark, "SWEEP", {"num_envs": (4, 6), "num_seeds": (1, 2)})
    out = tmp_path / "new" / "sweep.json"
    more = ["--num_devices", "1", "--repeats", "1", "--updates", "2", "--sweep", "--out", str(out)]
    assert benchmark.main([*flags(tiny()), *more]) == 0
    results = json.loads(out.read_text())
    assert [(each["flags"]["num_envs"], each["flags"]["num_seeds"]) for each in results] == [(4, 1), (6, 1), (4, 2)]
    for each in results:
        assert all(math.isfinite(value) and value > 0 for value in each.values() if isinstance(value, float))
    assert results[0]["planned MiB"] == pytest.approx(planned_bytes(tiny(), measure(tiny(), ProbeEnv()), 1) / 2**20)
    assert results[0]["device"].startswith("cpu x 1, ")
    assert results[2]["replay MiB"] == pytest.approx(2 * results[0]["replay MiB"])
    assert [each["flags"]["num_seeds"] for each in benchmark.along(results, "num_seeds")] == [1, 2]
    rows = out.with_suffix(".md").read_text().splitlines()
    assert len(rows) == 4 + 3 and rows[2].startswith("| num_envs | num_seeds |") and rows[6].startswith("| 4 | 2 |")
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert "matmul GFLOP/s" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "crl"])
def test_every_algorithm_can_be_measured(name, monkeypatch, tmp_path):
    monkeypatch.setattr(benchmark, "MATMUL_SIZE", 8)
    out = tmp_path / "figures.json"
    config = tiny_of(ALGORITHMS[name].config, batch_size=4)
    assert benchmark.main([*flags(config), "--repeats", "1", "--updates", "2", "--out", str(out)]) == 0
    figures = json.loads(out.read_text())
    assert figures["flags"]["algorithm"] == name
    assert all(math.isfinite(value) and value > 0 for value in figures.values() if isinstance(value, float))


def test_a_sweep_that_would_fail_is_refused_first(tmp_path, capsys):
    """The prefill of 64 envs is longer than the tiny config trains for."""
    assert benchmark.main([*flags(tiny()), "--sweep", "--out", str(tmp_path / "sweep.json")]) == 2
    assert "prefill of 640 env steps" in capsys.readouterr().err
    assert benchmark.main([*flags(tiny()), "--sweep"]) == 2
    assert "--sweep needs --out" in capsys.readouterr().err
    assert benchmark.main([*flags(tiny()), "--repeats", "0"]) == 2
    assert "--repeats 0 and --updates 200 are at least 1" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_the_cost_of_a_checkpoint_is_measured(tmp_path):
    out = tmp_path / "new" / "cost.json"
    config = tiny(num_timesteps=400, num_evals=4)
    assert benchmark_checkpoint.main([*flags(config), "--pairs", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["flags"]["pairs"] == 2
    assert result["checkpoint MiB"] > 0 and result["copy s"] > 0 and result["training step s"] > 0
    assert benchmark_checkpoint.main([*flags(config), "--pairs", "9"]) == 2
    assert result["epoch s"] == pytest.approx(6 * result["training step s"])  # 18 training steps in 3 epochs


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 2), (1e9, 4)])
def test_one_round_counts_however_long_it_takes(budget, rounds):
    calls = {name: [] for name in ("a", "b")}
    timed = {name: functools.partial(calls[name].append, None) for name in calls}
    medians, counted = benchmark.measure(timed, repeats=3, budget=budget)
    assert medians.keys() == calls.keys() and counted == rounds - 1
    assert {name: len(made) for name, made in calls.items()} == {"a": rounds, "b": rounds}
