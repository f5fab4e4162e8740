"""The benchmark on sizes that say nothing: what its parts measure, what a sweep leaves, and the plan on paper."""

import dataclasses
import functools
import json
import math

import jax
import pytest
from conftest import ProbeEnv, flags, tiny, tiny_of

from envs import make_env
from scripts import benchmark
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from src.plan import measure, memory_plan, planned_bytes
from utils import derive_schedule

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
@pytest.mark.parametrize("name", ["sac", "ppo", "chrono"])
def test_other_algorithms_can_be_measured(name, monkeypatch, tmp_path):
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
    assert benchmark.main(["checkpoint", *flags(config), "--pairs", "2", "--out", str(out)]) == 0
    result = json.loads(out.read_text())
    assert result["flags"]["pairs"] == 2
    assert result["checkpoint MiB"] > 0 and result["copy s"] > 0 and result["training step s"] > 0
    assert benchmark.main(["checkpoint", *flags(config), "--pairs", "9"]) == 2
    assert result["epoch s"] == pytest.approx(6 * result["training step s"])  # 18 training steps in 3 epochs


@pytest.mark.parametrize(("budget", "rounds"), [(0.0, 2), (1e9, 4)])
def test_one_round_counts_however_long_it_takes(budget, rounds):
    calls = {name: [] for name in ("a", "b")}
    timed = {name: functools.partial(calls[name].append, None) for name in calls}
    seconds = benchmark.take_turns(timed, repeats=3, budget=budget)
    assert {name: len(each) for name, each in seconds.items()} == {"a": rounds - 1, "b": rounds - 1}
    assert {name: len(made) for name, made in calls.items()} == {"a": rounds, "b": rounds}


def test_an_unknown_part_is_refused(capsys):
    assert benchmark.main(["maze"]) == 2
    assert "mazes" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--steps", "0"], "--steps 0"),
        (["--layouts", "u_maze", "nowhere"], "nowhere"),
        (["--backend", "nothing"], "nothing"),
    ],
)
def test_mazes_that_cannot_be_measured_are_refused(words, said, capsys):
    assert benchmark.main(["mazes", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_configurations_take_turns(capsys, tmp_path):
    more = ["--repeats", "2", "--updates", "2", "--out", str(tmp_path / "compared.json")]
    settings = [flags(tiny()), flags(tiny_of(ALGORITHMS["td3"].config))]
    assert benchmark.main(["compare", *more, "--", *settings[0], "--", *settings[1]]) == 0
    results = json.loads((tmp_path / "compared.json").read_text())
    assert list(results) == [" ".join(words) for words in settings]
    assert all(value > 0 for result in results.values() for value in result.values())
    shares = [result["share of the first"] for result in results.values()]
    assert shares[0] == 1 != shares[1]
    rows = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| `")]
    assert [row.split("`")[1] for row in rows] == list(results)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "two configurations"),
        (["--env_name", "ant", "--", "--seed", "1"], "two configurations"),
        (["--", "--seed", "1", "--", "--seed", "1"], "two configurations"),
        (["--", "--seed", "1", "--", "--num_seeds", "2"], "same --num_seeds"),
        (["--", "--env_name", "ant", "--", "--env_name", "nowhere"], "nowhere"),
        (["--updates", "0", "--", "--seed", "1", "--", "--seed", "2"], "at least 1"),
    ],
)
def test_configurations_that_cannot_be_compared_are_refused(words, said, capsys):
    assert benchmark.main(["compare", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_engines_take_turns(capsys):
    words = ["--envs", "reacher", "simple_u_maze", "--num_envs", "2", "--steps", "1", "--repeats", "1"]
    assert benchmark.main(["engines", *words]) == 0
    rows = [line.split("|")[1:-1] for line in capsys.readouterr().out.splitlines() if line.startswith("|")][2:]
    assert [[cell.strip() for cell in row[:2]] for row in rows] == [
        ["reacher", "generalized"],
        ["simple_u_maze", "spring"],
    ]
    for *_, own, other, ratio in rows:
        own, other = (float(cell.replace(",", "")) for cell in (own, other))
        assert min(own, other) > 0
        assert float(ratio) == pytest.approx(other / own, rel=0.1, abs=0.1)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--envs", "point"], "no engine steps point"),
        (["--envs", "nowhere"], "nowhere"),
        (["--steps", "0"], "at least 1"),
    ],
)
@pytest.mark.parametrize("part", ["engines", "agreement"])
def test_engines_that_cannot_be_measured_are_refused(part, words, said, capsys):
    assert benchmark.main([part, *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.slow
def test_engines_agree_where_their_solvers_have_converged(capsys):
    assert benchmark.main(["agreement", "--envs", "reacher", "--num_envs", "3", "--steps", "2"]) == 0
    (row,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| reacher")]
    medians = [float(cell.split()[0]) for cell in row.split("|")[2:-1]]
    assert len(medians) == 4 and medians[0] < 1e-6 and 0 < medians[1] < 1e-6


# The plan on paper.

MEASURED = {"flags": dataclasses.asdict(CRLConfig(num_envs=256)), "env steps/s, env alone": 1e5, "update ms": 2.0}


def test_parts_divide_among_devices_and_the_exchange_appears():
    one, four = (benchmark.scale_plan(MEASURED, 1024, devices, 1e9) for devices in (1, 4))
    assert one["environments"] == 10 and four["environments"] == 2.5
    assert one["updates"] == pytest.approx(1e6 / 15.89 * 2e-3, rel=1e-3)
    assert four["updates"] == pytest.approx(one["updates"] / 4)
    assert one["exchange"] == 0 < four["exchange"]
    assert benchmark.scale_plan(MEASURED, 1024, 4, 2e9)["exchange"] == four["exchange"] / 2
    config = CRLConfig(num_envs=1024)
    costs = measure(config, make_env("reacher"))
    assert one["GiB"] == sum(memory_plan(config, derive_schedule(config), costs).values()) / 2**30


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_can_be_planned(name):
    config = ALGORITHMS[name].config(num_envs=256)
    measured = MEASURED | {"flags": dataclasses.asdict(config)}
    parts = benchmark.scale_plan(measured, 1024, 4, 1e9)
    costs = measure(config, make_env("reacher"))
    batch = config.batch_size * (2 * costs.sizes.state + costs.sizes.action + 2 * getattr(config, "repr_dim", 0))
    schedule = derive_schedule(dataclasses.replace(config, num_envs=1024))
    updates = 1e6 * schedule.updates_per_training_step / schedule.env_steps_per_training_step
    assert parts["exchange"] == pytest.approx(updates * 8 * (costs.parameters + batch) / 1e9)


def test_the_table_names_the_longest_part(tmp_path, capsys):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps([MEASURED]))
    command = ["scale", str(measured), "--envs", "1024", "--devices", "1", "64", "--gigabytes_per_second", "0.1"]
    assert benchmark.main(command) == 0
    *_, one, many = capsys.readouterr().out.splitlines()
    assert one.startswith("| 1,024 | 1 |") and one.endswith("| updates |")
    assert many.startswith("| 1,024 | 64 |") and many.endswith("| exchange |")


@pytest.mark.parametrize("content", [None, "no JSON", "[]", "{}", "3"])
def test_a_file_that_is_none_of_the_benchmark_is_refused_in_one_line(content, tmp_path, capsys):
    measured = tmp_path / "measured.json"
    if content is not None:
        measured.write_text(content)
    assert benchmark.main(["scale", str(measured)]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {measured} is no file of benchmark.py --out: ") and said.count("\n") == 1


def test_numbers_below_one_are_refused(tmp_path, capsys):
    measured = tmp_path / "measured.json"
    measured.write_text(json.dumps(MEASURED))
    assert benchmark.main(["scale", str(measured), "--envs", "0"]) == 2
    assert "are above 0" in capsys.readouterr().err
