"""What holds for every algorithm of the registry: resuming bit for bit, seeds, policies, flags, the scripts."""

import csv
import functools
import json
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import flags, make_probe_program, slow, tiny_of

import training
from scripts import evaluate
from src import loop, train
from src.algorithms import ALGORITHMS
from src.policy import load_policy
from utils import read_config

EVERY = pytest.mark.parametrize("name", ALGORITHMS)


def config_of(name, **changes):
    return tiny_of(ALGORITHMS[name].config, batch_size=4, **changes)  # which divides an unroll


def moments(program, seeds=(0,), resumed=None, seconds_per_chunk=1e-9):
    return loop.run(program, seeds, lambda text: None, resumed, seconds_per_chunk)


def leaves(run_state):
    state = run_state.train_state.replace(key=jax.random.key_data(run_state.train_state.key))
    return [np.array(leaf) for leaf in jax.tree.leaves(state)]


# By default on each kind of replay and critic: td3 is like sac, srl like chrono.
@pytest.mark.parametrize("name", [slow(name) if name in ("td3", "srl") else name for name in ALGORITHMS])
def test_a_run_resumes_bit_for_bit(name):
    program = make_probe_program(config_of(name))
    for moment in moments(program):
        last = leaves(moment.run_state)
    half = program.schedule.total_env_steps // 2
    for moment in moments(program):
        if moment.env_steps >= half:
            break
    for later in moments(program, resumed=moment.run_state):
        resumed = leaves(later.run_state)
    for one, other in zip(last, resumed, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("name", ["crl", *(slow(name) for name in ALGORITHMS if name != "crl")])
def test_seeds_trained_together_are_the_runs_they_would_be_alone(name):
    program = make_probe_program(config_of(name, num_timesteps=100))
    (*_, alone), (*_, together) = moments(program), moments(program, seeds=(1, 0))
    for metric, value in alone.metrics[0].items():
        if not metric.endswith(("sps", "walltime")):
            # Goals that are twice in a batch are as near as the positive: rounding decides which counts as highest.
            slack = 0.1 if metric == "training/categorical_accuracy" else 5e-3
            assert together.metrics[1][metric] == pytest.approx(value, rel=2e-2, abs=slack), metric
    assert together.metrics[0]["eval/episode_dist"] != pytest.approx(alone.metrics[0]["eval/episode_dist"], rel=1e-3)


@EVERY
def test_no_key_is_used_twice(name):
    program = make_probe_program(config_of(name))
    with jax.debug_key_reuse(True):
        state, totals = jax.jit(functools.partial(train.init_run, program))(jax.random.key(0))
        count = jnp.zeros((), jnp.int32)
        jax.jit(functools.partial(train.train_chunk, program)).lower(state, totals, count, count)
        jax.jit(functools.partial(train.evaluation, program)).lower(state.agent_state, jax.random.key(1), count)


@pytest.mark.parametrize("name", [name if name in ("crl", "ppo") else slow(name) for name in ALGORITHMS])
def test_a_run_leaves_what_the_scripts_read(name, probe_registered, tmp_path, capsys):
    config = config_of(name, output_dir=str(tmp_path), run_dir_file=str(tmp_path / "folder"), num_seeds=2)
    assert training.main(flags(config)) == 0
    run_dirs = [Path(line) for line in (tmp_path / "folder").read_text().splitlines()]
    assert len(run_dirs) == 2
    for run_dir in run_dirs:
        assert json.loads((run_dir / "config.json").read_text())["flags"]["algorithm"] == name
        assert type(read_config(run_dir, ALGORITHMS)) is ALGORITHMS[name].config
        with (run_dir / "metrics.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert any(
            column.endswith("loss") and rows[-1][column] for column in rows[-1] if column.startswith("training/")
        )
    policy = load_policy(run_dirs[0])
    obs = np.random.default_rng(0).uniform(-1, 1, (3, 4)).astype(np.float32)
    action = policy(obs, policy.init_memory((3,)))[0] if policy.has_memory else policy(obs)
    assert action.shape == (3, 2)
    assert np.all(np.abs(action) <= 1)
    assert evaluate.main([str(run_dirs[0]), "--episodes", "8"]) == 0
    assert "deterministic" in capsys.readouterr().out


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "crl"])
def test_flags_of_another_algorithm_are_refused_by_naming_it(name, capsys):
    own = {field for field in ALGORITHMS[name].config.__dataclass_fields__}
    foreign = next(field for field in ALGORITHMS["crl"].config.__dataclass_fields__ if field not in own)
    assert training.main(["--algorithm", name, f"--{foreign}=1", "--dry_run"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert f"--{foreign} is a flag of --algorithm" in line
    assert "crl" in line
