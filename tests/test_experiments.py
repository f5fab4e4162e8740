"""The loops over settings: what they train, that they skip what is finished, and their figure."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import flags, slow, tiny

from src.algorithms import ALGORITHMS
from src.command_line import parse_config
from src.output import read_rows
from src.registries import REGISTRIES
from utils import derive_schedule, read_config

ROOT = Path(__file__).resolve().parents[1]
SEEDS = ("1", "2", "3", "4", "5")

# In the place of python: keeps its arguments; the runs of one setting go wrong.
PYTHON = """#!/usr/bin/env bash
printf '%q ' "$@" >>"$KEPT"
echo >>"$KEPT"
[[ "$*" != *"--exp_name $WRONG "* ]] || exit "$STATUS"
"""


@pytest.fixture
def loop(tmp_path):
    """loop(name, *arguments) -> (process, the commands that the loop gave)."""
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    kept = tmp_path / "kept"

    def start(name, *words, wrong="none", status=1):
        environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
        environment |= {"KEPT": str(kept), "WRONG": wrong, "STATUS": str(status)}
        process = subprocess.run(
            [ROOT / "scripts" / f"{name}.sh", *words], env=environment, capture_output=True, text=True, timeout=60
        )
        return process, [shlex.split(line) for line in kept.read_text().splitlines()]

    return start


# Script -> how its settings differ from each other, as the flags that tell them apart.
LOOPS = {
    "losses": {("contrastive_loss_fn",): {("binary",), ("infonce",), ("flatnce",), ("fb",), ("dp",)}},
    "energies": {
        ("energy_fn",): {(name,) for name in ("l2", "l2_no_sqrt", "l1", "dot", "cos", "mrn", "mrn_pot")},
    },
    "logsumexp": {("logsumexp_penalty",): {(0.0,), (0.01,), (0.1,), (1.0,)}},
    "networks": {
        ("h_dim", "n_hidden", "use_ln"): {
            (width, depth, norm) for width in (256, 512, 1024) for depth in (2, 3, 4) for norm in (False, True)
        }
    },
    "utd": {("multiplier_num_sgd_steps", "unroll_length"): {(1, 124), (1, 62), (2, 62), (4, 62)}},
}


# Script -> its runs, as the flags that each has besides those of all; they need not be flags of one algorithm.
METHODS = {
    "baselines": {
        "crl": "",
        "sac": "--algorithm sac --her_ratio 0",
        "sac_her": "--algorithm sac --her_ratio 0.8",
        "td3": "--algorithm td3 --her_ratio 0",
        "td3_her": "--algorithm td3 --her_ratio 0.8",
        "ppo": "--algorithm ppo",
        "gcsl": "--algorithm gcsl",
    },
    "methods": {
        "crl": "",
        "crl_chunks": "--action_chunk 3",
        "crl_twin_critics": "--num_critics 2",
        "srl": "--algorithm srl",
        "chrono": "--algorithm chrono",
    },
}


@pytest.mark.parametrize("name", METHODS)
def test_a_loop_over_methods_trains_each_with_every_seed_and_draws(loop, name):
    process, (*trainings, plot) = loop(name, "--env_name", "point")
    assert process.returncode == 0, process.stderr
    common = shlex.split("--num_timesteps 10000000 --num_evals 50 --num_envs 512 --episode_length 1000 --log_wandb")
    expected = [
        ["training.py", "--resume", "--project_name", "crl", "--group_name", f"{name[:-1]}_experiments"]
        + ["--exp_name", method, "--seed", seed, *common, *own.split(), "--env_name", "point"]
        for method, own in METHODS[name].items()
        for seed in SEEDS
    ]
    assert trainings == expected
    assert plot[:2] == ["scripts/plot.py", f"runs/crl/{name[:-1]}_experiments"]
    assert plot.count("--metric") == 2  # success and time near the goal
    for _, *words in trainings:
        if "--algorithm" not in words or words[words.index("--algorithm") + 1] in ALGORITHMS:
            parse_config(words, REGISTRIES)  # refuses a flag that the algorithm does not have


@pytest.mark.parametrize("name", [name if name == "losses" else slow(name) for name in LOOPS])
def test_a_loop_trains_every_setting_with_every_seed_and_draws(loop, name):
    process, (*trainings, plot) = loop(name, "--env_name", "ant")
    assert process.returncode == 0, process.stderr
    configs = []
    for program, *arguments in trainings:
        assert program == "training.py"
        configs.append(parse_config(arguments, REGISTRIES))
    ((flags, settings),) = LOOPS[name].items()
    told_apart = [(config.seed, *(getattr(config, flag) for flag in flags)) for config in configs]
    assert sorted(told_apart) == sorted((int(seed), *setting) for seed in SEEDS for setting in settings)
    assert len({config.exp_name for config in configs}) == len(settings)
    assert {(config.env_name, config.num_timesteps, config.log_wandb, config.resume) for config in configs} == {
        ("ant", 10_000_000, True, "newest")
    }
    (group,) = {config.group_name for config in configs}
    assert plot[:2] == ["scripts/plot.py", f"runs/crl/{group}"]
    if name == "utd":
        schedules = [derive_schedule(config) for config in configs[::5]]
        ratios = [each.env_steps_per_training_step / each.updates_per_training_step for each in schedules]
        assert [round(ratio) for ratio in ratios] == [32, 16, 8, 4]


def test_the_loop_over_losses_is_the_published_one(loop):
    _, ((_, *arguments), *_) = loop("losses")
    published = """
        --project_name crl --group_name contrastive_loss_experiments --exp_name binary --seed 1
        --num_timesteps 10000000 --num_evals 50 --batch_size 256 --num_envs 512 --discounting 0.99 --action_repeat 1
        --episode_length 1000 --unroll_length 62 --min_replay_size 1000 --max_replay_size 10000
        --contrastive_loss_fn binary --energy_fn l2 --multiplier_num_sgd_steps 1 --log_wandb
    """
    assert parse_config(arguments, REGISTRIES) == parse_config(["--resume", *published.split()], REGISTRIES)


def test_a_run_that_goes_wrong_is_named_at_the_end_and_the_others_are_drawn(loop):
    process, commands = loop("losses", wrong="flatnce")
    assert process.returncode == 1
    assert process.stderr.splitlines() == [f"went wrong: flatnce, seed {seed}" for seed in SEEDS]
    assert len(commands) == 26


@pytest.mark.parametrize("status", [2, 75])
def test_a_refusal_or_an_interruption_ends_the_loop(loop, status):
    process, commands = loop("losses", wrong="infonce", status=status)
    assert process.returncode == status
    assert len(commands) == 6


def test_the_figure_is_drawn_where_the_runs_are(loop):
    _, commands = loop("utd", "--output_dir", "there", "--group_name=mine")
    assert commands[-1][1] == "there/crl/mine"
    assert commands[-1][-1] == "there/crl/mine/utd"


@pytest.mark.slow
def test_a_loop_trains_for_real_and_skips_what_is_finished(tmp_path):
    """On the probe env, which python here gives to training.py."""
    probe = f'[[ "$1" != training.py ]] || set -- {ROOT}/tests/probe_training.py "${{@:2}}"'
    (tmp_path / "python").write_text(f'#!/usr/bin/env bash\n{probe}\nexec {sys.executable} "$@"\n')
    (tmp_path / "python").chmod(0o755)
    environment = os.environ | {"PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}", "VIRTUAL_ENV": str(tmp_path)}
    environment["SEEDS"] = "1"
    words = flags(tiny(num_seeds=2, output_dir=str(tmp_path / "runs")))
    group = tmp_path / "runs" / "crl" / "logsumexp_experiments"
    for _ in range(2):
        command = [ROOT / "scripts" / "logsumexp.sh", *words, "--no_log_wandb"]
        process = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert process.returncode == 0, process.stderr
        runs = [path.parent for path in group.glob("*/config.json")]
        assert sorted(
            (read_config(run_dir, ALGORITHMS).logsumexp_penalty, read_config(run_dir, ALGORITHMS).seed)
            for run_dir in runs
        ) == [(penalty, seed) for penalty in (0.0, 0.01, 0.1, 1.0) for seed in (1, 2)]
        assert all(len(read_rows(run_dir / "metrics.csv", 10**9)) == 3 for run_dir in runs)
    assert process.stdout.count("nothing left to train") == 8
    assert len(list(group.glob("logsumexp*.png"))) == 2
