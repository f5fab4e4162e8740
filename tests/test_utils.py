"""Flags and their refusals, the schedule, run folders, loggers."""

import ast
import contextlib
import csv
import dataclasses
import functools
import inspect
import io
import json
import math
import re
import shlex
import sys
import tempfile
import types
from pathlib import Path
from typing import Annotated

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, flags, make_probe_program, registered, tiny
from hypothesis import assume, given
from hypothesis import strategies as st

import training
import utils
from envs import ENVS
from envs.physics import BACKENDS
from scripts.readme_tables import field_documentation
from src import command_line, devices, loggers, output, resume, run_folder, train
from src.algorithm import Method, OffPolicyConfig
from src.algorithms import ALGORITHMS, crl
from src.algorithms.crl import CRLConfig
from src.critics import CRITICS
from src.loop import Position
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS
from src.networks import NETWORKS
from src.program import make_program
from src.registries import REGISTRIES
from src.showcase import Showcase
from utils import Config, ConfigError, Range, derive_schedule, fact, plain_type

FIELDS = {field.name: field for field in dataclasses.fields(CRLConfig)}
parse_config = functools.partial(command_line.parse_config, registries=REGISTRIES)


# Every flag is documented and does something.


def test_every_flag_is_documented():
    """One sentence or more under each field, which is what --help shows."""
    documented = field_documentation(CRLConfig)
    assert documented.keys() == FIELDS.keys()
    for name, text in documented.items():
        assert len(text) > 10, name
        assert text.endswith("."), name


class WithEngines(ProbeEnv):
    """Takes any backend."""

    def __init__(self, backend=None, use_dense_reward=False):
        super().__init__(None, use_dense_reward)
        self.backend = backend


class OtherProbe(ProbeEnv):
    """A second env of the same sizes."""


@dataclasses.dataclass(frozen=True)
class OtherConfig(OffPolicyConfig):
    """Trains by another algorithm."""

    beta: Annotated[float, Range(0, 1)] = 0.5
    """A flag of its own."""
    alpha_lr: Annotated[float, utils.RATE] = 1e-2
    """A flag that crl has too, with another default."""
    deterministic_eval: bool = True
    """A flag of every run, with another default."""
    late: Annotated[int, Range(1), utils.Before(7)] = 8
    """A flag that older records lack."""

    def check(self):
        super().check()
        if self.beta == self.alpha_lr:
            raise ConfigError("--beta must differ from --alpha_lr")


OTHER = Method(OtherConfig, make=crl.make, workspace=crl.workspace)


@pytest.fixture
def other_algorithm(monkeypatch):
    monkeypatch.setitem(ALGORITHMS, "other", OTHER)


def learner(config, tmp_path):
    """The flags that there are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ALGORITHMS, "other", OTHER)
        return command_line.chosen_class(["--algorithm", config.algorithm], REGISTRIES)


def place(config, tmp_path):
    """Where the files of a config go, the time of day left out."""
    made = utils.make_run_dir(dataclasses.replace(config, output_dir=str(tmp_path / config.output_dir)))
    *parents, name = made.relative_to(tmp_path).parts
    return parents, re.split(r"_\d{8}-\d{6}", name)[0]


def environments(config, tmp_path):
    """Which envs are built, and what they are told."""
    with registered(probe=WithEngines, other=OtherProbe):
        program = make_program(config, derive_schedule(config))
    return [
        (type(vector.env), vector.env.backend, vector.env.use_dense_reward, vector.episode_length)
        for vector in (program.env, program.eval_env)
    ]


def distances(config, tmp_path):
    """How far goals are in a maze that is one corridor, in training and in the evaluation."""
    config = dataclasses.replace(config, env_name="ant_u_maze_gen")
    program = make_program(config, derive_schedule(config))
    return [vector.env.distances.tolist() for vector in (program.env, program.eval_env)]


def schedule(config, tmp_path):
    return derive_schedule(config)


def seeds(config, tmp_path):
    return [each.seed for each in resume.seed_configs(config)]


def batches(config, tmp_path):
    config = dataclasses.replace(config, num_seeds=3)
    with registered(probe=ProbeEnv):
        return [batch.num_seeds for batch in resume.seed_batches(config)]


def device_count(config, tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices.jax, "device_count", lambda: 4)
        return devices.count(config)


def joining(config, tmp_path):
    """What JAX is told of the other processes."""
    told = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(devices.jax.distributed, "initialize", lambda **options: told.append(options))
        patch.setattr(devices, "find_coordinator", lambda address: None)
        address = config.coordinator_address or "host:1234"
        count = max(config.num_processes, config.process_id + 1)
        devices.join(dataclasses.replace(config, coordinator_address=address, num_processes=count))
    return told


def program_text(part):
    """What JAX traces of a part of a program; it names no flag, so it changes only with what is computed."""

    def fingerprint(config, tmp_path):
        program = make_probe_program(config)
        state = jax.eval_shape(functools.partial(train.init, program), jax.random.key(0))
        return str(jax.make_jaxpr(functools.partial(part, program))(state))

    return fingerprint


@program_text
def one_update(program, state):
    return train.update(program, state, *train.draw(program, state, jax.random.key(1)), 0, jax.random.key(0))


@program_text
def one_collection(program, state):
    return train.collect(program, state)


@program_text
def one_sampling(program, state):
    return train.draw(program, state, jax.random.key(0))


@program_text
def one_evaluation(program, state):
    return train.evaluation(program, state.agent_state, jax.random.key(0), jnp.zeros((), jnp.int32))


def other_critic(config, tmp_path):
    """What an update makes of a critic of another form."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(CRITICS, "other", two_encoders_of_twice_the_size)
        return one_update(config, tmp_path)


def two_encoders_of_twice_the_size(config, *args):
    return CRITICS["two_encoders"](dataclasses.replace(config, repr_dim=2 * config.repr_dim), *args)


class LogsToAFile:
    """In the place of Weights & Biases."""

    run_id = "none"

    def __init__(self, config, run_dir, run_id):
        self.file = run_dir / "wandb.txt"

    def log(self, metrics, step):
        self.file.write_text(str(step))

    def close(self):
        pass


def drawn_at(config, tmp_path):
    """At which evaluations something is drawn, and would be with `render`."""
    program = make_probe_program(config)
    positions = [Position(training_steps=at) for at in program.schedule.eval_at]
    programs = (program, program._replace(config=dataclasses.replace(config, render=True)))
    return [[Showcase(each, print).due(position) for position in positions] for each in programs]


def command(config, tmp_path):
    """All that a training leaves behind and says, without times."""
    output_dir = Path(tempfile.mkdtemp(dir=tmp_path))
    said = io.StringIO()
    with registered(probe=ProbeEnv), pytest.MonkeyPatch.context() as patch, contextlib.redirect_stdout(said):
        patch.setattr(run_folder, "WandbLogger", LogsToAFile)
        assert training.main(flags(dataclasses.replace(config, output_dir=str(output_dir)))) == 0
    files = sorted(str(path.relative_to(folder)) for folder in output_dir.glob("*/*/*") for path in folder.rglob("*"))
    (*_, rows) = [[], *map(read_csv, output_dir.rglob("metrics.csv"))]
    stored = [path.read_text() for path in output_dir.rglob("_METADATA")]
    first_words = [line.split()[0] for line in said.getvalue().splitlines()]
    return {
        "files": [name for name in files if not name.startswith("checkpoints/")],
        "rows": [[value for name, value in row.items() if not name.endswith(("sps", "walltime"))] for row in rows],
        "replay stored": [text.count("buffer_state") for text in stored],
        "lines": [word for word in first_words if word != "checkpoint"],  # which come when they are written
        "checkpoints": first_words.count("checkpoint"),
        "cache": "compilation cache off" in said.getvalue(),
    }


def listed(config, tmp_path):
    """The file of run folders: how many, and whether they are there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tempfile.mkdtemp(dir=tmp_path))
        command(config, tmp_path)
        return [[Path(line).is_dir() for line in path.read_text().splitlines()] for path in Path().glob("*.txt")]


def wandb_mode(config, tmp_path):
    """How W&B is started where there is an account."""
    started = types.SimpleNamespace(id="id", dir=str(tmp_path), define_metric=lambda *a, **k: None)
    modes, fake = [], types.ModuleType("wandb")
    fake.Settings = types.SimpleNamespace
    fake.setup = lambda settings: types.SimpleNamespace(
        settings=types.SimpleNamespace(**{"mode": "online"} | vars(settings))
    )
    fake.login = lambda prompt: not prompt
    fake.init = lambda mode, **options: modes.append(mode) or started
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "wandb", fake)
        loggers.WandbLogger(config, tmp_path)
    return modes


# flag -> (another value, what that changes).
EFFECTS = {
    "exp_name": ("another", place),
    "group_name": ("another", place),
    "project_name": ("another", place),
    "output_dir": ("another", place),
    "env_name": ("other", environments),
    "eval_env": ("other", environments),
    "gen_distances": ("1,3", distances),
    "eval_gen_distances": ("6", distances),
    "backend": ("mjx", environments),
    "use_dense_reward": (True, one_evaluation),
    "fresh_goals": (False, one_collection),
    "algorithm": ("other", learner),
    "goal_proposal": ("achieved", one_collection),
    "num_seeds": (3, seeds),
    "seed_batch": (1, batches),
    "num_devices": (1, device_count),
    "coordinator_address": (utils.AUTO, joining),
    "num_processes": (2, joining),
    "process_id": (1, joining),
    "num_timesteps": (400, schedule),
    "num_evals": (5, schedule),
    "num_eval_envs": (5, one_evaluation),
    "deterministic_eval": (True, one_evaluation),
    "num_envs": (6, one_collection),
    "episode_length": (9, one_collection),
    "action_repeat": (2, one_collection),
    "unroll_length": (4, one_collection),
    "batch_size": (7, one_sampling),
    "multiplier_num_sgd_steps": (3, one_sampling),
    "min_replay_size": (16, schedule),
    "max_replay_size": (30, schedule),
    "discounting": (0.9, one_sampling),
    "policy_lr": (1e-2, one_update),
    "critic_lr": (1e-2, one_update),
    "alpha_lr": (1e-2, one_update),
    "contrastive_loss_fn": ("binary", one_update),
    "energy_fn": ("dot", one_update),
    "logsumexp_penalty": (0.2, one_update),
    "l2_penalty": (0.2, one_update),
    "exploration_coef": (0.2, one_update),
    "random_goals": (0.5, one_update),
    "no_resubs": (True, one_update),
    "use_c_target": (True, one_update),
    "disable_entropy_actor": (True, one_update),
    "network": ("residual", one_update),
    "h_dim": (9, one_update),
    "n_hidden": (3, one_update),
    "actor_h_dim": (9, one_update),
    "actor_n_hidden": (3, one_update),
    "critic_h_dim": (9, one_update),
    "critic_n_hidden": (3, one_update),
    "num_critics": (2, one_update),
    "goal_rule": ("uniform", one_sampling),
    "own_goals": (0.5, one_sampling),
    "other_goals": (0.5, one_sampling),
    "crosse": (0.5, one_sampling),
    "critic": ("other", other_critic),
    "action_chunk": (2, one_update),
    "best_of": (2, one_collection),
    "eval_best_of": (2, one_evaluation),
    "repr_dim": (6, one_update),
    "use_ln": (True, one_update),
    "normalize_observations": (True, one_update),
    "seed": (1, command),
    "render": (True, drawn_at),
    "video_every": (1, drawn_at),
    "log_wandb": (True, command),
    "wandb_mode": ("offline", wandb_mode),
    "log_tensorboard": (True, command),
    "compilation_cache": (False, command),
    "resume": (utils.NEWEST, command),
    "run_dir_file": ("folders.txt", listed),
    "checkpoint_every": (1e-9, command),
    "checkpoint_replay": (False, command),
    "keep_policies": (1, command),
    "dry_run": (True, command),
}


# What a flag cannot be given without.
NEEDS = {
    "num_processes": {"coordinator_address": "host:1234"},
    "process_id": {"coordinator_address": "host:1234", "num_processes": 2},
}


@functools.cache
def unchanged(fingerprint, tmp_path):
    """What the tiny config gives, the same at every call."""
    once = fingerprint(tiny(), tmp_path)
    assert fingerprint(tiny(), tmp_path) == once, "the comparison itself is not repeatable"
    return once


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("flag", FIELDS)
def test_every_flag_has_an_effect(flag, folder):
    assert flag in EFFECTS, f"say in EFFECTS what --{flag} changes"
    value, fingerprint = EFFECTS[flag]
    assert fingerprint(tiny(**{flag: value}), folder) != unchanged(fingerprint, folder)


# The command line.


@pytest.mark.parametrize("flag", sorted(EFFECTS.keys() - {"algorithm"}))
def test_every_flag_can_be_given(flag, probe_registered, monkeypatch):
    monkeypatch.setitem(ENVS, "other", OtherProbe)
    monkeypatch.setitem(CRITICS, "other", None)
    config = tiny(**NEEDS.get(flag, {}), **{flag: EFFECTS[flag][0]})
    assert parse_config(flags(config)) == config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--use_ln", True),
        ("--use_ln=True", True),
        ("--use_ln True", True),
        ("--use_ln true", True),
        ("--use_ln=1", True),
        ("--use-ln", True),
        ("--no_use_ln", False),
        ("--use_ln=False", False),
        ("--use_ln False", False),
        ("--use_ln=0", False),
        ("--use_ln --no_use_ln", False),
        ("", False),
    ],
)
def test_switches(words, expected):
    assert parse_config(words.split()).use_ln is expected
    assert parse_config([*words.split(), "--fresh_goals=false"]).fresh_goals is False


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("--num_timesteps 1e6", 1_000_000),
        ("--num_timesteps=1.0e+7", 10_000_000),
        ("--num-timesteps 2.5E6", 2_500_000),
        ("--num_timesteps 3000000.0", 3_000_000),
        ("--num_timesteps 1_000_000", 1_000_000),
        ("--num_timesteps 5000000", 5_000_000),
    ],
)
def test_whole_numbers_however_they_are_written(words, expected):
    number = parse_config(["--exp_name", "1e6", *words.split(), "--policy_lr", "1e-3"]).num_timesteps
    assert number == expected and type(number) is int


def test_defaults_are_the_published_benchmark():
    config = parse_config([])
    published = {
        "exp_name": "test",
        "group_name": "test",
        "project_name": "crl",
        "env_name": "reacher",
        "eval_env": None,
        "backend": None,
        "seed": 0,
        "num_timesteps": 10_000_000,
        "num_evals": 50,
        "num_envs": 512,
        "batch_size": 256,
        "episode_length": 1000,
        "unroll_length": 62,
        "min_replay_size": 1000,
        "max_replay_size": 10_000,
        "discounting": 0.99,
        "policy_lr": 6e-4,
        "critic_lr": 3e-4,
        "alpha_lr": 3e-4,
        "contrastive_loss_fn": "symmetric_infonce",
        "energy_fn": "l2",
        "logsumexp_penalty": 0.1,
        "l2_penalty": 0,
        "exploration_coef": 0,
        "random_goals": 0,
        "no_resubs": False,
        "use_ln": False,
        "use_c_target": False,
        "disable_entropy_actor": False,
        "h_dim": 256,
        "n_hidden": 2,
        "repr_dim": 64,
        "normalize_observations": False,
        "use_dense_reward": False,
        "multiplier_num_sgd_steps": 1,
        "action_repeat": 1,
        "log_wandb": False,
        "fresh_goals": True,
        "num_eval_envs": 128,
        "deterministic_eval": False,
    }
    assert {name: getattr(config, name) for name in published} == published


@pytest.mark.parametrize("name", ENVS)
def test_the_defaults_are_legal_for_every_env(name):
    assert parse_config(["--env_name", name]).env_name == name


# Algorithms and their flags.


def test_an_algorithm_brings_its_flags_and_defaults(other_algorithm):
    config = parse_config(["--algorithm", "other", "--beta=0.25", "--batch_size", "128"])
    assert type(config) is OtherConfig
    assert config == OtherConfig(algorithm="other", beta=0.25, batch_size=128)
    assert config.deterministic_eval and config.alpha_lr == 1e-2
    assert type(parse_config([])) is CRLConfig
    assert not parse_config(["--algorithm", "other", "--no_deterministic_eval"]).deterministic_eval


@pytest.mark.parametrize(
    "config",
    [
        CRLConfig(use_ln=True, exploration_coef=-0.5, exp_name="a b", fresh_goals=False),
        OtherConfig(algorithm="other", deterministic_eval=False),
    ],
)
def test_a_config_is_the_command_that_trains_it(other_algorithm, config):
    words = shlex.split(command_line.command_line(config))
    assert words[:2] == ["python", "training.py"]
    assert parse_config(words[2:]) == config


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--algorithm", "other", "--energy_fn", "dot"], "--energy_fn is a flag of --algorithm crl, not of other"),
        (["--algorithm=other", "--no_use_c_target"], "--use_c_target is a flag of --algorithm crl, not of other"),
        (["--beta", "0.1"], "--beta is a flag of --algorithm other, not of crl"),
        (
            ["--algorithm", "othr"],
            "--algorithm: unknown algorithm 'othr': choose from ",
        ),
        (["--algorithm", "other", "--beta", "2"], "--beta 2.0 is out of range: it must be at most 1"),
        (["--algorithm", "other", "--beta", "0.01"], "--beta must differ from --alpha_lr"),
        (["--algorithm", "other", "--betta", "0.1"], "did you mean --beta?"),
        (["--algorithm", "other", "--num_envs", "0"], "--num_envs 0 is out of range"),
    ],
)
def test_what_an_algorithm_does_not_know_is_refused(other_algorithm, refused, arguments, expected):
    assert expected in refused(*arguments)


@pytest.mark.parametrize("algorithm", ["crl", "other"])
def test_help_shows_the_flags_of_the_algorithm(other_algorithm, capsys, algorithm):
    with pytest.raises(SystemExit) as stop:
        training.main(["--algorithm", algorithm, "--help"])
    assert stop.value.code == 0
    text = " ".join(capsys.readouterr().out.replace("│", " ").split())
    config_class = ALGORITHMS[algorithm].config
    for name, documentation in field_documentation(config_class).items():
        assert f"--{name}" in text
        assert documentation.split()[0] in text
    assert ("--beta" in text) == (algorithm == "other") and ("--energy_fn" in text) == (algorithm == "crl")
    assert config_class.__doc__ in text
    for choices in (ENVS, NETWORKS, *([ENERGY_FNS, CONTRASTIVE_LOSSES] if algorithm == "crl" else [])):
        assert "{" + ",".join(choices) + "}" in text.replace(" ", "")


@dataclasses.dataclass(frozen=True)
class Besides:
    """What a script has besides."""

    rounds: int = 5
    """Rounds."""


def test_a_script_adds_flags_of_its_own(other_algorithm):
    for algorithm, config_class in (("crl", CRLConfig), ("other", OtherConfig)):
        args = ["--algorithm", algorithm, "--rounds", "7", "--num_envs", "256"]
        config = parse_config(args, prog="script.py", more=Besides)
        assert isinstance(config, config_class) and isinstance(config, Besides)
        assert (config.rounds, config.num_envs) == (7, 256)
        assert dataclasses.replace(config, num_envs=512).rounds == 7
        assert derive_schedule(config) == derive_schedule(config_class(num_envs=256))
    with pytest.raises(ConfigError, match="did you mean --rounds"):
        parse_config(["--round", "7"], more=Besides)


def test_what_flags_are_to_a_run_is_said_once():
    assert utils.bookkeeping() >= {"seed", "env_name", "exp_name", "num_eval_envs", "render", "resume", "num_devices"}
    assert not utils.bookkeeping() & {"num_timesteps", "batch_size", "algorithm", "backend", "goal_proposal"}
    free = {name for name, field in FIELDS.items() if utils.may_differ(field)}
    assert free >= {"num_timesteps", "num_evals", "output_dir", "resume", "run_dir_file", "process_id"}
    assert not free & {"seed", "env_name", "exp_name", "num_eval_envs", "energy_fn", "algorithm", "fresh_goals"}


# Refusals. `main` is run whole: nothing may be built, compiled or written, and one line says what is wrong.

BASE = tiny(env_name="reacher")


@pytest.fixture
def refused(monkeypatch, tmp_path, capsys):
    """Runs a command that has to be refused; returns the line."""

    def run(*arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(training, "make_program", lambda *a: pytest.fail("a refused command was built"))
        assert training.main(list(arguments)) == 2
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert not list(tmp_path.iterdir())
        return err

    return run


@pytest.mark.parametrize(
    ("flag", "registry", "typo", "nearest"),
    [
        ("env_name", ENVS, "recher", "reacher"),
        ("eval_env", ENVS, "antt", "ant"),
        ("backend", BACKENDS, "sprin", "spring"),
        ("energy_fn", ENERGY_FNS, "l2_no_sqr", "l2_no_sqrt"),
        ("contrastive_loss_fn", CONTRASTIVE_LOSSES, "symetric_infonce", "symmetric_infonce"),
        ("network", NETWORKS, "mpl", "mlp"),
    ],
)
def test_unknown_names(refused, flag, registry, typo, nearest):
    line = refused(f"--{flag}", typo)
    assert f"--{flag}" in line
    assert repr(typo) in line
    assert f"did you mean {nearest!r}?" in line
    listed = line.split("choose from ")[1].split(";")[0].split(", ")
    assert sorted(listed) == sorted(registry)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--use_lnn"], "Unrecognized options: --use_lnn; did you mean --use_ln?"),
        (["--epsiode_length", "10"], "did you mean --episode_length?"),
        (["ant"], "ant"),
        (["--num_envs", "many"], "--num_envs 'many' is no whole number, 512 would be"),
        (["--num_envs", "1.5"], "--num_envs '1.5' is no whole number, 2 would be"),
        (["--num_timesteps=1e-3"], "--num_timesteps '1e-3' is no whole number, 10000000 would be"),
        (["--batch_size=nan"], "--batch_size 'nan' is no whole number, 256 would be"),
        (["--batch_size=-inf"], "--batch_size '-inf' is no whole number, 256 would be"),
        (["--num_timesteps", "1e999999999"], "'1e999999999' is no whole number"),
        (["--num_envs", "1e30"], "out of range: it must be at most 2147483647"),
        (["--num_envs=-1e3"], "--num_envs -1000 is out of range: it must be finite and at least 1"),
        (["--policy_lr", "fast"], "'fast'"),
        (["--num_envs"], "num_envs"),
        (["--use_ln=maybe"], "'maybe'"),
    ],
)
def test_unreadable_commands(refused, arguments, expected):
    assert expected in refused(*arguments)


# (flag, refused values, legal values): the border is between them.
RANGES = [
    ("seed", [-1, 2**31], [0, 2**31 - 1]),
    ("num_seeds", [0, 1001], [1, 1000]),
    ("seed_batch", [-1, 2**31], [0, 1, 7]),
    ("num_devices", [-1, 2**31], [0, 1]),
    ("num_processes", [0, 2], [1]),  # 2: no --coordinator_address
    ("process_id", [-1, 1], [0]),
    ("coordinator_address", ["host", "host:", ":", "host:99999"], ["auto", "host:1234", "127.0.0.1:80"]),
    ("num_timesteps", [0, -5, 39, 2**54], [40, 41]),  # 39: the prefill takes 2 unrolls of 4 * 5
    ("num_evals", [0, 100_001], [1, 2, 100_000]),
    ("num_eval_envs", [0, 2**31], [1]),
    ("num_envs", [0, 2**31], [2]),
    ("episode_length", [1, 2**31], [3]),
    ("action_repeat", [0, 5], [1, 4]),  # of an episode of 8
    ("unroll_length", [0, 21, 2**31], [2, 20]),  # of a replay of 20
    ("batch_size", [1, 21], [2, 20]),  # of 4 * 5 rows a training step
    ("multiplier_num_sgd_steps", [0.0, -1.0, 2.0**31, math.inf, math.nan], [1.0, 2.0, 0.25]),
    ("min_replay_size", [1, 21], [2, 20]),
    ("max_replay_size", [2, 9, 2**31 - 1], [10, 11]),
    ("discounting", [0.0, 1.0, -0.5, 1.5, math.nan], [1e-9, 1 - 1e-12]),
    ("policy_lr", [0.0, -1e-3, math.inf, math.nan], [1e-9]),
    ("critic_lr", [0.0, -1e-3, math.inf, math.nan], [1e-9]),
    ("alpha_lr", [0.0, -1e-3, math.inf, math.nan], [1e-9]),
    ("logsumexp_penalty", [-0.1, math.inf, math.nan], [0.0]),
    ("l2_penalty", [-0.1, math.inf, math.nan], [0.0]),
    ("exploration_coef", [math.inf, math.nan], [-1.0, 0.0, 1.0]),
    ("random_goals", [-0.1, 1.1, math.nan], [0.0, 1.0]),
    ("own_goals", [-0.1, 1.1, math.nan], [0.0, 1.0]),
    ("other_goals", [-0.1, 1.1, math.nan], [0.0, 1.0]),
    ("crosse", [-0.1, 1.1, math.nan], [0.0, 1.0]),
    ("best_of", [0, 10**6], [1, 2]),
    ("eval_best_of", [0, 10**6], [1, 2]),
    ("h_dim", [0, 2**31], [1]),
    ("n_hidden", [0, 1001], [1]),
    ("actor_h_dim", [-1, 2**31], [0, 1]),
    ("actor_n_hidden", [-1, 1001], [0, 1]),
    ("critic_h_dim", [-1, 2**31], [0, 1]),
    ("critic_n_hidden", [-1, 1001], [0, 1]),
    ("num_critics", [0, 1001], [1]),
    ("action_chunk", [0, 2**31], [1]),
    ("repr_dim", [0, 2**31], [1]),
    ("checkpoint_every", [-1.0, math.inf, math.nan], [0.0, 0.5]),
    ("keep_policies", [-1, 2**31], [0, 3]),
    ("video_every", [-1, 2**31], [0, 3]),
    ("exp_name", ["", "a/b", ".hidden", "x" * 101, "two\nlines"], ["x" * 100, "a b.c"]),
    ("group_name", ["", "../up"], ["group"]),
    ("project_name", ["", "a\\b"], ["project"]),
]


def test_every_number_has_a_range():
    numbers = {name for name, field in FIELDS.items() if plain_type(field) in (int, float)}
    assert numbers <= {flag for flag, _, _ in RANGES}
    assert numbers == {name for name, field in FIELDS.items() if fact(field, Range)}


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, values, _ in RANGES for value in values])
def test_values_out_of_range_are_refused(refused, flag, value):
    line = refused(*flags(BASE), f"--{flag}={value}")
    assert f"--{flag}" in line
    assert (repr(value) if isinstance(value, str) else str(value)) in line


@pytest.mark.parametrize(("flag", "value"), [(flag, value) for flag, _, values in RANGES for value in values])
def test_values_at_the_border_are_accepted(flag, value):
    config = dataclasses.replace(BASE, **{flag: value})
    if flag == "seed":
        config = dataclasses.replace(config, num_seeds=1)
    assert getattr(parse_config([*flags(BASE), f"--{flag}={value}"]), flag) == value


@pytest.mark.parametrize(
    ("changes", "fragments"),
    [
        ({"energy_fn": "cos", "exploration_coef": 0.1}, ["--exploration_coef", "l2 or dot", "cos"]),
        ({"energy_fn": "mrn", "repr_dim": 5}, ["mrn", "--repr_dim 5", "e.g. 6"]),
        ({"energy_fn": "mrn_pot", "repr_dim": 7}, ["mrn_pot", "--repr_dim 7", "e.g. 8"]),
        ({"action_repeat": 5}, ["--action_repeat 5", "episode of 8", "at most 4"]),
        ({"min_replay_size": 21}, ["--min_replay_size 21", "--max_replay_size 20", "at most 20"]),
        ({"unroll_length": 25, "min_replay_size": 2}, ["--unroll_length 25", "--max_replay_size 20", "at most 20"]),
        ({"batch_size": 21}, ["--batch_size 21", "= 20 rows", "= 28 to draw", "at most 20"]),
        ({"batch_size": 5, "episode_length": 2}, ["--batch_size 5", "= 20 rows", "= 4 to draw", "at most 4"]),
        ({"num_timesteps": 39}, ["--num_timesteps 39", "prefill of 40", "at least 40"]),
        (
            {"max_replay_size": 2**29},
            ["--num_envs 4", f"--max_replay_size {2**29}", f"at most --max_replay_size {2**29 - 6}"],
        ),
        ({"num_processes": 2}, ["--num_processes 2", "--coordinator_address HOST:PORT"]),
        ({"num_processes": 2, "coordinator_address": "auto"}, ["--coordinator_address HOST:PORT, not auto"]),
        (
            {"num_processes": 2, "process_id": 2, "coordinator_address": "host:1"},
            ["--process_id 2", "--num_processes 2 at most 1"],
        ),
        ({"seed": 2**31 - 2, "num_seeds": 3}, [f"--seed {2**31 - 2}", "--num_seeds 3"]),
        ({"num_timesteps": 2**50}, ["training steps", "--num_timesteps"]),
        (
            {"num_envs": 1, "batch_size": 2, "multiplier_num_sgd_steps": 0.1},
            ["--batch_size 2", "multiplier_num_sgd_steps", "= 0 to draw", "raise --num_envs to 3"],
        ),
        ({"goal_proposal": "achieved", "fresh_goals": False}, ["--goal_proposal achieved", "--no_fresh_goals"]),
        (
            {"eval_best_of": 4, "deterministic_eval": True},
            ["--eval_best_of 4", "--deterministic_eval does not draw", "--no_deterministic_eval"],
        ),
        (
            {"own_goals": 0.4, "other_goals": 0.7},
            ["--own_goals 0.4", "--other_goals 0.7", "at most 1, e.g. --other_goals 0.6"],
        ),
    ],
)
def test_combinations_that_cannot_run_are_refused_with_the_numbers(refused, changes, fragments):
    line = refused(*flags(dataclasses.replace(BASE, **changes)))
    for fragment in fragments:
        assert fragment in line


def test_the_largest_replay_that_is_named_is_accepted():
    dataclasses.replace(BASE, max_replay_size=2**29 - 6).check()
    with pytest.raises(ConfigError, match="too many to number"):
        dataclasses.replace(BASE, max_replay_size=2**29 - 5).check()


def test_a_backend_the_env_does_not_have_is_refused(capsys, tmp_path):
    with registered(probe=ProbeEnv):
        arguments = flags(tiny(backend="positional", output_dir=str(tmp_path / "runs")))
        assert training.main(arguments) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    assert "ProbeEnv has no physics engine: leave the backend 'positional' out" in line
    assert not list(tmp_path.iterdir())


# The schedule.


def test_the_published_schedule():
    derived = derive_schedule(CRLConfig())
    assert derived.prefill_steps == 17
    assert derived.updates_per_training_step == 1998
    assert derived.env_steps_per_training_step == 31_744
    assert derived.replay_rows == 10_044
    assert derived.prefill_env_steps == 17 * 31_744
    assert derived.total_env_steps == 316 * 31_744 == 10_031_104
    assert derived.training_steps == 316 - 17
    assert len(derived.epoch_lengths) == 49
    assert len(derived.eval_at) == 50


def test_a_share_of_the_updates():
    """512 envs * 62 actions are 31,744 env steps; 0.4 * 512 * 999 / 256 = 799.2 updates: one per 39.7 env steps."""
    assert derive_schedule(CRLConfig(multiplier_num_sgd_steps=0.4)).updates_per_training_step == 799
    assert derive_schedule(CRLConfig(multiplier_num_sgd_steps=2)).updates_per_training_step == 3996


def test_an_algorithm_says_its_own_schedule():
    """One that learns from each unroll alone: a ring of one unroll, no prefill, 3 passes over it."""

    @dataclasses.dataclass(frozen=True)
    class OnPolicyConfig(Config):
        """Learns from each unroll."""

        def updates_per_training_step(self):
            return 3 * self.unroll_length * self.num_envs // self.batch_size

    config = OnPolicyConfig(num_envs=4, unroll_length=6, batch_size=8, num_timesteps=100, num_evals=1)
    config.check()
    derived = derive_schedule(config)
    assert (derived.replay_rows, derived.prefill_steps, derived.updates_per_training_step) == (6, 0, 9)
    assert derived.training_steps == 5  # of 24 env steps each


def test_the_schedule_by_hand():
    """4 envs * unroll 5 * repeat 3 = 60 env steps; 10 rows take 2 unrolls; 500 / 60 -> 9, of which 7 with updates."""
    derived = derive_schedule(tiny(action_repeat=3, num_timesteps=500, multiplier_num_sgd_steps=2, num_evals=4))
    assert derived.env_steps_per_training_step == 60
    assert derived.prefill_steps == 2
    assert derived.training_steps == 7
    assert derived.total_env_steps == 540
    assert derived.updates_per_training_step == 9  # 2 * 4 * 7 / 6 = 9.33
    assert derived.total_updates == 63
    assert derived.epoch_lengths == (2, 2, 3)
    assert derived.eval_at == (0, 4, 6, 9)
    assert derived.replay_rows == 20


@st.composite
def legal_configs(draw):
    """Awkward sizes that `check` takes; which it refuses is tested above."""

    def number(low, high):
        return draw(st.integers(low, high))

    num_envs, unroll_length, episode_length = number(1, 700), number(1, 200), number(2, 1500)
    max_replay_size = number(max(3, unroll_length), 12_000)
    multiplier = number(1, 4)
    pairs = num_envs * min(unroll_length, multiplier * (episode_length - 1))
    assume(pairs >= 2)
    config = tiny(
        env_name="reacher",
        num_evals=number(1, 300),
        num_envs=num_envs,
        episode_length=episode_length,
        unroll_length=unroll_length,
        batch_size=number(2, min(pairs, 1100)),
        action_repeat=number(1, min(5, episode_length // 2)),
        min_replay_size=number(2, min(2000, max_replay_size)),
        max_replay_size=max_replay_size,
        multiplier_num_sgd_steps=multiplier,
    )
    prefill = derive_schedule(config).prefill_env_steps
    config = dataclasses.replace(config, num_timesteps=prefill + number(0, draw(st.sampled_from([100, 10**6, 10**9]))))
    config.check()
    return config


@given(legal_configs())
def test_any_legal_schedule_reaches_its_number_of_env_steps(config):
    derived = derive_schedule(config)
    per_step = derived.env_steps_per_training_step
    assert derived.total_env_steps >= config.num_timesteps
    if derived.total_env_steps > derived.prefill_env_steps + per_step:
        assert derived.total_env_steps - config.num_timesteps < per_step
    assert per_step == config.num_envs * config.unroll_length * config.action_repeat
    assert derived.prefill_steps * config.unroll_length >= config.min_replay_size
    assert (derived.prefill_steps - 1) * config.unroll_length < config.min_replay_size
    assert derived.updates_per_training_step >= 1


@given(legal_configs())
def test_any_legal_schedule_spreads_its_evaluations_evenly(config):
    derived = derive_schedule(config)
    lengths = derived.epoch_lengths
    assert sum(lengths) == derived.training_steps >= 1
    assert 1 <= min(lengths) <= max(lengths) <= min(lengths) + 1
    assert len(lengths) == min(max(config.num_evals - 1, 1), derived.training_steps)
    assert derived.eval_at[-1] * derived.env_steps_per_training_step == derived.total_env_steps
    assert list(derived.eval_at) == sorted(set(derived.eval_at))
    assert (derived.eval_at[0] == 0) == (config.num_evals > 1)


@given(legal_configs())
def test_any_legal_replay_takes_whole_unrolls(config):
    """And holds what was asked for, with a row that has a future in every env once learning starts."""
    derived = derive_schedule(config)
    assert derived.replay_rows % config.unroll_length == 0
    assert config.max_replay_size <= derived.replay_rows < config.max_replay_size + config.unroll_length
    assert min(derived.replay_rows, (derived.prefill_steps + 1) * config.unroll_length) >= 3
    assert derived.replay_rows * config.num_envs < 2**31


# Run folders.


@pytest.fixture
def stopped_clock(monkeypatch):
    monkeypatch.setattr(utils.time, "strftime", lambda form: "20260101-120000")


def test_runs_of_one_second_have_their_own_folders(tmp_path, stopped_clock):
    config = tiny(output_dir=str(tmp_path), exp_name="run", seed=3)
    made = [utils.make_run_dir(config) for _ in range(3)]
    name = "run_probe_s3_20260101-120000"
    assert [path.relative_to(tmp_path / "crl" / "test") for path in made] == [
        Path(name),
        Path(f"{name}_2"),
        Path(f"{name}_3"),
    ]
    assert all(path.is_dir() for path in made)


def test_a_folder_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "crl").write_text("a file")
    with pytest.raises(ConfigError, match="--output_dir") as error:
        utils.make_run_dir(tiny(output_dir=str(tmp_path)))
    assert "\n" not in str(error.value)


def test_a_config_survives_its_record(tmp_path):
    config = tiny(use_ln=True, eval_env="probe", discounting=0.9)
    utils.write_record(tmp_path, config, derive_schedule(config), ["cpu"], ["run"])
    assert utils.read_config(tmp_path, ALGORITHMS) == config
    record = json.loads((tmp_path / "config.json").read_text())
    assert record["flags"] == dataclasses.asdict(config)
    assert record["schedule"]["prefill_steps"] == 2
    assert record["versions"]["jax"] == jax.__version__
    assert record["devices"] == ["cpu"]

    record["flags"]["a_flag_of_another_version"] = 1
    (tmp_path / "config.json").write_text(json.dumps(record))
    assert utils.read_config(tmp_path, ALGORITHMS) == config


def recorded(folder, flags):
    (folder / "config.json").write_text(json.dumps({"flags": flags}))
    return utils.read_config(folder, ALGORITHMS)


def test_a_record_is_read_into_the_class_of_its_algorithm(tmp_path, other_algorithm):
    config = OtherConfig(algorithm="other", beta=0.1)
    assert recorded(tmp_path, dataclasses.asdict(config)) == config


def test_a_stored_run_keeps_its_meaning(tmp_path, other_algorithm):
    """A record from before a flag has what code did then, whatever the default is now."""
    config = CRLConfig(use_ln=True)
    younger = ("algorithm", "actor_h_dim", "actor_n_hidden", "critic_h_dim", "critic_n_hidden")
    younger += ("num_critics", "goal_rule", "goal_proposal", "run_dir_file", "render")
    flags = {name: value for name, value in dataclasses.asdict(config).items() if name not in younger}
    assert recorded(tmp_path, flags) == config
    flags = dataclasses.asdict(OtherConfig(algorithm="other"))
    del flags["late"]
    assert recorded(tmp_path, flags).late == 7


@pytest.mark.parametrize("flag", ["batch_size", "discounting", "energy_fn", "num_timesteps", "seed"])
def test_a_record_that_lacks_a_flag_is_refused_by_name(tmp_path, flag):
    flags = dataclasses.asdict(CRLConfig())
    del flags[flag]
    with pytest.raises(ConfigError, match=rf"config.json does not say --{flag}\b"):
        recorded(tmp_path, flags)


def test_a_record_of_an_unknown_algorithm_is_refused_by_name(tmp_path):
    with pytest.raises(ConfigError, match="unknown algorithm 'newer': choose from .*, crl, "):
        recorded(tmp_path, dataclasses.asdict(CRLConfig(algorithm="newer")))


@pytest.mark.parametrize("path", sorted(Path(__file__).parents[1].glob("results/**/config.json")), ids=str)
def test_every_published_record_can_be_read(path):
    flags = json.loads(path.read_text())["flags"]
    config = utils.read_config(path.parent, ALGORITHMS)
    assert {name: getattr(config, name) for name in flags} == flags


@pytest.mark.parametrize("content", [None, "", "{", "[]", "{}", '{"flags": 3}'])
def test_what_is_no_run_folder_is_said_so(tmp_path, content):
    if content is not None:
        (tmp_path / "config.json").write_text(content)
    with pytest.raises(ConfigError, match="is not a run folder"):
        utils.read_config(tmp_path, ALGORITHMS)


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "lost" / "file.txt"
    utils.write_text(path, "first")
    with pytest.raises(OSError, match="full"), utils.replacing(path) as temporary:
        temporary.write_text("sec")
        raise OSError("disk full")
    assert path.read_text() == "first"
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("name", ["policies/000.npz", "videos/000.mp4", "critic.png"])
def test_what_a_kill_leaves_half_written_is_not_taken_for_the_file(tmp_path, name):
    with utils.replacing(tmp_path / name) as temporary:
        temporary.write_text("half")
        assert not list(tmp_path.rglob(f"*{Path(name).suffix}"))


# Loggers.


def read_csv(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_csv_columns_grow_and_what_was_not_measured_is_empty(tmp_path):
    logger = output.CSVLogger(tmp_path / "metrics.csv")
    logger.log({"eval/a": 1.0}, 0)
    logger.log({"eval/a": 2.0, "training/b": 1 / 3}, 100)
    logger.log({"training/b": 4.0, "training/c": 5e-7}, 200)
    logger.close()
    empty = {"training/b": "", "training/c": ""}
    rows = read_csv(tmp_path / "metrics.csv")
    assert [list(row) for row in rows] == [["env_steps", "eval/a", "training/b", "training/c"]] * 3
    assert rows[0] == {"env_steps": "0", "eval/a": "1.0"} | empty
    assert float(rows[1]["training/b"]) == 1 / 3  # no digit is lost
    assert rows[2]["eval/a"] == ""
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.csv"]


def test_csv_rows_that_could_not_be_written_come_later(tmp_path, capsys):
    folder = tmp_path / "run"
    logger = output.CSVLogger(folder / "metrics.csv")
    logger.log({"a": 1.0}, 0)
    folder.rename(tmp_path / "moved")
    folder.write_text("in the way")
    logger.log({"a": 2.0}, 1)
    assert not logger.complete
    assert "training continues" in capsys.readouterr().err
    folder.unlink()
    logger.log({"a": 3.0}, 2)
    assert logger.complete
    assert [row["a"] for row in read_csv(folder / "metrics.csv")] == ["1.0", "2.0", "3.0"]


def test_reading_rows_leaves_out_what_a_crash_cut_short(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("env_steps,a,b\n0,1.0,\n50,2.0,0.5\n100,3.0,0.7\n150,4")
    assert output.read_rows(path, 100) == [
        {"env_steps": "0", "a": "1.0"},
        {"env_steps": "50", "a": "2.0", "b": "0.5"},
        {"env_steps": "100", "a": "3.0", "b": "0.7"},
    ]
    assert output.read_rows(path, 50)[-1]["env_steps"] == "50"
    assert output.read_rows(tmp_path / "none.csv", 50) == []


def test_piped_progress_is_one_line_an_evaluation(capsys):
    progress = output.Progress(10_000)
    progress.announce("compiling ...")
    progress.announce("compiling ... 3 s\n")
    progress.evaluated(0, {"eval/episode_success": 1.25, "eval/episode_success_any": 0.5})
    progress.update(2000, 100.0)
    progress.evaluated(5000, {"eval/episode_success": 20.0, "eval/episode_success_any": 1.0, "training/sps": 100.0})
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        "compiling ... 3 s",
        "0 / 10,000 env steps near goal 1.2 steps success 0.50",
        "5,000 / 10,000 env steps 100 env steps/s 0:00:50 left near goal 20.0 steps success 1.00",
    ]


def test_live_progress_redraws_one_line(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    progress = output.Progress(10_000)
    progress.announce("compiling ...")
    progress.update(2000, 100.0)
    out = capsys.readouterr().out
    assert "\n" not in out
    assert "2,000 / 10,000" in out
    assert "0:01:20 left" in out


def test_wandb_is_imported_by_its_logger_alone():
    """A run that does not ask for it does not pay for it."""
    for module in (utils, training, train, crl, loggers, output, run_folder):
        tree = ast.parse(inspect.getsource(module))
        imported = {
            alias.name for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom) for alias in node.names
        }
        assert "wandb" not in imported and "tensorboardX" not in imported


def test_everything_a_run_depends_on_has_a_version():
    assert all(np.char.isnumeric(utils.metadata.version(name)[0]) for name in utils.RECORDED_PACKAGES)
