"""The command line end to end: a real environment in a process of its own, and faults on the probe env."""

import csv
import dataclasses
import functools
import json
import math
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import wandb
from conftest import UPDATE_METRICS, ProbeEnv, flags, registered, tiny
from rollouts import FIRST_OF_FILE

import training
from envs import ENVS, own_backend
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from src.policy import load_policy
from utils import derive_schedule, read_config

ROOT = Path(__file__).parents[1]
CLOCK = ("sps", "walltime")
REACHER = CRLConfig(
    env_name="reacher",
    num_envs=8,
    batch_size=16,
    episode_length=30,
    unroll_length=10,
    min_replay_size=20,
    max_replay_size=100,
    num_timesteps=2000,
    num_evals=3,
    num_eval_envs=4,
    h_dim=16,
    render=False,
)


def start(config, cwd):
    """`python training.py` as a user types it, from any folder."""
    words = [sys.executable, str(ROOT / "training.py"), *flags(config)]
    return subprocess.run(words, cwd=cwd, capture_output=True, text=True, check=False, timeout=600)


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def run_dirs(output_dir):
    return sorted(path.parent for path in Path(output_dir).rglob("config.json"))


# Trains by the command lines that it reads, one after the other.
TRAIN_ALL = """
import json, sys
import jax, training

for words in json.load(sys.stdin):
    print(training.main(words))
    jax.clear_caches()
"""


# One environment per file of envs/, but for the one that `two_runs` trains.
TRAINED = [name for name in FIRST_OF_FILE.values() if name != "reacher"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A training of each, all in one process: name -> its output folder.

    To the third evaluation, on MuJoCo's own engine, which has nothing to compile, where there is one; compiled without
    optimisation, which takes half the time. How the other engines step: `test_envs.py`."""
    folders, commands = {}, []
    for name in TRAINED:
        folders[name] = tmp_path_factory.mktemp(name)
        changes = {
            "env_name": name,
            "backend": "mujoco" if own_backend(name) else None,
            "eval_env": f"{name}_eval" if f"{name}_eval" in ENVS else None,
            "output_dir": str(folders[name]),
        }
        commands.append(flags(dataclasses.replace(REACHER, num_timesteps=500, **changes)))
    quick = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
    words, environment = [sys.executable, "-c", TRAIN_ALL], os.environ | {"XLA_FLAGS": quick}
    process = subprocess.run(
        words, input=json.dumps(commands), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=1800
    )
    assert process.returncode == 0, process.stderr
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", TRAINED)
def test_an_environment_of_each_file_trains(name, trained):
    (run_dir,) = run_dirs(trained[name])
    assert (run_dir / "params.npz").exists()
    rows = read_csv(run_dir / "metrics.csv")
    assert len(rows) == 3
    for row in rows:
        assert float(row["eval/avg_episode_length"]) > 0 and math.isfinite(float(row["eval/episode_dist"]))
    assert math.isfinite(float(rows[-1]["training/crl_critic_loss"]))


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory):
    """The same command twice, one after the other: (process, run folder) of each."""
    cwd = tmp_path_factory.mktemp("cwd")
    runs = []
    for _ in range(2):
        before = set(run_dirs(cwd))
        process = start(REACHER, cwd)
        assert process.returncode == 0, process.stderr
        (made,) = set(run_dirs(cwd)) - before
        runs.append((process, made))
    return runs


def test_a_run_leaves_its_record(two_runs):
    _, run_dir = two_runs[0]
    record = json.loads((run_dir / "config.json").read_text())
    assert record["flags"] == dataclasses.asdict(REACHER)
    assert record["schedule"] == json.loads(json.dumps(dataclasses.asdict(derive_schedule(REACHER))))
    assert record["versions"].keys() >= {"python", "jax", "brax", "mujoco", "flax"}
    assert read_config(run_dir, ALGORITHMS) == REACHER
    assert {"config.json", "metrics.csv", "params.npz"} <= {path.name for path in run_dir.iterdir()}
    assert run_dir.parent.parts[-3:] == ("runs", "crl", "test")
    assert run_dir.name.startswith("test_reacher_s0_")


def test_metrics_have_their_names(two_runs):
    """Those of algorithm.md, section 8; what was not measured before training is empty."""
    rows = read_csv(two_runs[0][1] / "metrics.csv")
    per_episode = ("success", "reward", "dist", "reward_dist", "reward_ctrl")
    expected = {f"eval/episode_{name}{s}" for name in per_episode for s in ("", "_std", "_min", "_max")}
    expected |= {"eval/episode_success_any", "eval/avg_episode_length", "eval/sps", "eval/walltime"}
    expected |= {f"training/{name}" for name in UPDATE_METRICS}
    expected |= {f"training/{name}" for name in ("sps", "walltime", "buffer_current_size", "replay_drawable")}
    assert rows[0].keys() - {"training/env_resets_nonfinite"} == {"env_steps"} | expected
    assert [row["env_steps"] for row in rows] == ["0", "1040", "2000"]
    assert all((value == "") == name.startswith("training/") for name, value in rows[0].items())
    assert all(math.isfinite(float(value)) for row in rows[1:] for value in row.values())
    for row in rows:
        assert float(row["eval/avg_episode_length"]) == 30
        assert 0 <= float(row["eval/episode_success_any"]) <= 1
        assert float(row["eval/episode_success_min"]) <= float(row["eval/episode_success"])
        assert float(row["eval/episode_success"]) <= float(row["eval/episode_success_max"])
        assert float(row["eval/episode_dist_std"]) > 0
    assert float(rows[-1]["training/buffer_current_size"]) == 8 * 100


def test_the_parameters_act(two_runs):
    policy = load_policy(two_runs[0][1])
    obs = np.random.default_rng(0).standard_normal((6, 13)).astype(np.float32)
    actions = np.asarray(policy(obs))
    assert actions.shape == (6, 2)
    assert np.all(np.abs(actions) <= 1)
    assert len({tuple(action) for action in actions.tolist()}) == 6


def test_the_same_command_gives_the_same_numbers_in_a_folder_of_its_own(two_runs):
    (_, first), (_, second) = two_runs
    assert first != second
    one, other = ([drop_clock(row) for row in read_csv(run_dir / "metrics.csv")] for run_dir in (first, second))
    assert one == other
    with np.load(first / "params.npz") as a, np.load(second / "params.npz") as b:
        assert a.files == b.files
        for name in a.files:
            np.testing.assert_array_equal(a[name], b[name])


def drop_clock(row):
    return {name: value for name, value in row.items() if not name.endswith(CLOCK)}


def test_the_output_tells_the_plan_the_place_and_the_result(two_runs):
    process, run_dir = two_runs[0]
    for text in ("2,000 in 8 envs", "2 unrolls", "success rate", "time near goal"):
        assert text in process.stdout
    assert str(run_dir.relative_to(run_dir.parents[3])) in process.stdout
    assert sum("/ 2,000 env steps" in line for line in process.stdout.splitlines()) == 3
    assert "\x1b" not in process.stdout  # nothing is redrawn where nobody watches
    assert process.stderr == ""


def test_dry_run_prints_the_plan_and_leaves_nothing(tmp_path):
    started = time.monotonic()
    process = start(dataclasses.replace(REACHER, dry_run=True), tmp_path)
    assert process.returncode == 0
    assert time.monotonic() - started < 15
    assert "reacher: state 10, goal 3, action 2" in process.stdout
    assert "23 of 80 env steps" in process.stdout
    assert process.stderr == ""
    assert not list(tmp_path.iterdir())


def test_a_refusal_is_one_line_and_status_2(tmp_path):
    process = start(dataclasses.replace(REACHER, energy_fn="l3"), tmp_path)
    assert process.returncode == 2
    assert process.stdout == ""
    assert process.stderr.splitlines() == [
        "error: --energy_fn: unknown energy 'l3': choose from cos, dot, l1, l2, l2_no_sqrt, mrn, mrn_pot; "
        "did you mean 'l2'?"
    ]
    assert not list(tmp_path.iterdir())


def test_help_explains_every_flag(capsys):
    with pytest.raises(SystemExit) as stop:
        training.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    for field in dataclasses.fields(CRLConfig):
        assert f"--{field.name}" in text
    for choices in ("reacher", "symmetric_infonce", "l2_no_sqrt"):
        assert choices in text


@pytest.fixture
def live_service(tmp_path, monkeypatch):
    """The address of a W&B service that this process has started, in its own working directory."""
    monkeypatch.setenv("WANDB_SERVICE", "")  # noted, so that what W&B writes there is undone
    monkeypatch.delenv("WANDB_SERVICE")
    wandb.setup().ensure_service()
    yield os.environ["WANDB_SERVICE"]
    wandb.teardown()


@pytest.mark.slow
def test_a_run_logs_to_wandb_without_an_account(tmp_path, monkeypatch, live_service):
    """A service that a parent process runs, here in another folder, is not for it."""
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("WANDB_SERVICE", live_service)
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.netrc
    monkeypatch.setenv("XDG_CACHE_HOME", os.environ.get("XDG_CACHE_HOME", str(Path.home() / ".cache")))
    process = start(dataclasses.replace(REACHER, log_wandb=True), tmp_path)
    assert process.returncode == 0, process.stderr
    assert "wandb sync" in process.stdout
    (run_dir,) = run_dirs(tmp_path)
    assert list((run_dir / "wandb").glob("offline-run-*/*.wandb"))


# Faults, on the probe env and in this process.


def train_probe(config, probe=ProbeEnv):
    with registered(probe=probe):
        return training.main(flags(config))


class NaNMetric(ProbeEnv):
    """Reports a metric that is no number, at every step."""

    def step_metrics(self, before, after, action):
        return super().step_metrics(before, after, action) | {"x": np.nan}


def test_an_env_that_reports_nan_stops_the_run_before_training(tmp_path, capsys):
    assert train_probe(tiny(output_dir=str(tmp_path)), NaNMetric) == 1
    out, err = capsys.readouterr()
    assert "eval/episode_x is nan" in err
    assert "env step 0" in err
    assert "success rate" not in out
    (run_dir,) = run_dirs(tmp_path)
    assert not (run_dir / "params.npz").exists()
    assert len(read_csv(run_dir / "metrics.csv")) == 1


def test_parameters_that_blow_up_stop_the_run_and_the_last_good_ones_stay(tmp_path, capsys):
    assert train_probe(tiny(output_dir=str(tmp_path), critic_lr=1e30)) == 1
    _, err = capsys.readouterr()
    (line,) = err.splitlines()
    assert "seed 0 stopped: training/" in line
    assert "nan" in line or "inf" in line
    (run_dir,) = run_dirs(tmp_path)
    with np.load(run_dir / "params.npz") as file:
        assert all(np.all(np.isfinite(file[name])) for name in file.files)


def test_seeds_have_folders_of_their_own(tmp_path):
    assert train_probe(tiny(output_dir=str(tmp_path), num_seeds=2, seed=3)) == 0
    first, second = run_dirs(tmp_path)
    assert [read_config(run_dir, ALGORITHMS).seed for run_dir in (first, second)] == [3, 4]
    assert [read_config(run_dir, ALGORITHMS).num_seeds for run_dir in (first, second)] == [1, 1]
    one, other = (read_csv(run_dir / "metrics.csv") for run_dir in (first, second))
    assert [row["env_steps"] for row in one] == [row["env_steps"] for row in other] == ["0", "100", "160"]
    assert all(a["eval/episode_dist"] != b["eval/episode_dist"] for a, b in zip(one, other, strict=True))


def test_an_eval_env_that_does_not_fit_is_refused(tmp_path, capsys):
    bigger = functools.partial(ProbeEnv, tagged=True)
    with registered(probe=ProbeEnv, bigger=bigger):
        assert training.main(flags(tiny(output_dir=str(tmp_path), eval_env="bigger"))) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "eval_env bigger does not fit" in err
    assert not list(tmp_path.iterdir())
