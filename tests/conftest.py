"""What the tests share: the compilation cache, a tiny `Config`, and `ProbeEnv`, `point` with chosen ends."""

import contextlib
import dataclasses
import functools
import os
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

# Tests that run side by side get a core each, before JAX starts its threads: they would wait for each other's.
if "PYTEST_XDIST_WORKER" in os.environ and hasattr(os, "sched_setaffinity"):
    _cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {_cores[int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")) % len(_cores)]})

import durability
import hypothesis
import jax
import jax.numpy as jnp
import pytest

import training
from envs import ENVS
from envs.base import EnvState
from envs.point import Point
from src import loop
from src.algorithms.crl import CRLConfig
from src.process import enable_compilation_cache
from src.program import Program, make_program
from utils import Config, derive_schedule

# Compiled programs are kept between tests, between runs of the tests, and for the commands that tests start.
_cache = enable_compilation_cache()
if _cache != "off":  # a test's process may have no home
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True, scope="session")
def _use_devices() -> None:
    """Once in use, JAX keeps its devices: in-process calls of `training.main` must not change their number."""
    jax.devices()


def pytest_configure(config: pytest.Config) -> None:
    # Where the tests themselves run under nohup, the processes that they start would ignore a hangup as well.
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    # Random inputs: five times as many where the slow tests run too.
    checks = list(hypothesis.HealthCheck)
    for name, count in (("default", 200), ("slow", 1000)):
        hypothesis.settings.register_profile(name, max_examples=count, deadline=None, suppress_health_check=checks)
    hypothesis.settings.load_profile("default" if "not slow" in config.option.markexpr else "slow")


class ProbeEnv(Point):
    """`point` with chosen ends, whose pipeline state tells where it stands.

    With `lives` (low, high) an episode ends early after that many steps, drawn at its start; the point's position is
    NaN from then on. Without `ends` it does not end there: its physics blows up. With `tagged` the state also holds
    what the episode was drawn with: start x, y and goal x, y. `traces` counts how often JAX traced `step`.
    """

    traces = 0

    def __init__(
        self,
        backend: str | None = None,
        use_dense_reward: bool = False,
        lives: tuple[int, int] | None = None,
        ends: bool = True,
        tagged: bool = False,
    ):
        self.lives = lives
        self.ends = ends
        self.tagged = tagged
        if tagged:
            self.state_dim = 6
        super().__init__(backend, use_dense_reward)

    def sample_start(self, key, goal):
        _, _, life_key = jax.random.split(key, 3)
        position = super().sample_start(jax.random.clone(key), goal)
        low, high = self.lives or (2**30, 2**30)
        life = jax.random.randint(life_key, (), low, high + 1)
        return {"position": position, "tag": jnp.concatenate([position, goal]), "life": life}

    def step_pipeline(self, pipeline_state, action):
        position = super().step_pipeline(pipeline_state["position"], action)
        life = pipeline_state["life"] - 1
        return pipeline_state | {"position": jnp.where(life < 0, jnp.nan, position), "life": life}

    def observe(self, pipeline_state, action):
        position, tag = pipeline_state["position"], pipeline_state["tag"]
        return jnp.concatenate([position, tag]) if self.tagged else position

    def terminated(self, pipeline_state):
        return (pipeline_state["life"] <= 0) & self.ends

    def pose(self, env_state):
        return env_state.pipeline_state["position"]

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        ProbeEnv.traces += 1
        return super().step(env_state, action)


class Fleeing(ProbeEnv):
    """The goal moves 0.1 along x at every step."""

    def follow(self, pipeline_state, goal):
        return goal + jnp.array([0.1, 0.0])


# What algorithm.md, section 8, lists for every update.
_UPDATE_METRICS = """
crl_critic_loss actor_loss alpha_loss alpha entropy binary_accuracy categorical_accuracy logits_pos logits_neg logsumexp
sa_repr_mean sa_repr_std g_repr_mean g_repr_std l_align l_unif l2_penalty
"""
UPDATE_METRICS = frozenset(_UPDATE_METRICS.split())

TINY = CRLConfig(
    env_name="probe",
    num_timesteps=160,
    num_evals=3,
    num_eval_envs=4,
    num_envs=4,
    episode_length=8,
    unroll_length=5,
    batch_size=6,
    min_replay_size=10,
    max_replay_size=20,
    h_dim=8,
    repr_dim=4,
    render=False,
)


def tiny(**changes) -> Config:
    """A config that trains in a moment on the probe env."""
    return dataclasses.replace(TINY, **changes)


def tiny_of(config_class: type[Config], like: Config = TINY, **changes) -> Config:
    """The same for another algorithm's flags."""
    names = {field.name for field in dataclasses.fields(config_class)} - {"algorithm"}
    shared = {f.name: getattr(like, f.name) for f in dataclasses.fields(like) if getattr(like, f.name) != f.default}
    shared["normalize_observations"] = like.normalize_observations
    return config_class(**{name: value for name, value in shared.items() if name in names} | changes)


def slow(*values) -> object:
    """A case of a parametrised test that is left out by default."""
    return pytest.param(*values, marks=pytest.mark.slow)


def flags(config: Config) -> list[str]:
    """The command line of a config, switches as sweep agents write them."""
    return [
        f"--{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(config)
        if field.name == "algorithm" or getattr(config, field.name) != field.default
    ]


@contextlib.contextmanager
def registered(**constructors) -> Iterator[None]:
    """Adds envs to the registry for a while."""
    with pytest.MonkeyPatch.context() as patch:
        for name, constructor in constructors.items():
            patch.setitem(ENVS, name, constructor)
        yield


def make_probe_program(config: Config, probe=ProbeEnv) -> Program:
    """The program of `config` where `probe` names the env `probe`."""
    with registered(probe=probe):
        return make_program(config, derive_schedule(config))


@pytest.fixture(autouse=True, scope="module")
def _programs_end_with_their_file() -> Iterator[None]:
    """A worker that kept the compiled programs of all files would need 7 GB."""
    yield
    jax.clear_caches()


@pytest.fixture(autouse=True)
def _no_process_outlives_its_test() -> Iterator[None]:
    yield
    durability.end_started()


@pytest.fixture
def probe_registered() -> Iterator[None]:
    """`--env_name probe` works."""
    with registered(probe=ProbeEnv):
        yield


# Flags of files and videos, which leave the compiled program as it is.
FILE_FLAGS = ["output_dir", "resume", "run_dir_file", "keep_policies", "checkpoint_replay", "render", "video_every"]


def _once(function: Callable, program: Program, of: object, *more: object, results: dict) -> object:
    """`function(program, of, *more)`, called once for all programs that are alike."""
    config = dataclasses.replace(program.config, **dict.fromkeys(FILE_FLAGS, ""))
    key = function, config, ENVS[config.env_name], program.mesh, str(of)
    if key not in results:
        results[key] = function(program, of, *more)
    return results[key]


@pytest.fixture(scope="module")
def compiled_once() -> Iterator[None]:
    """Trainings in this process whose flags differ in files and videos alone share what is traced and compiled."""
    with pytest.MonkeyPatch.context() as patch:
        results: dict = {}
        for name in ("make_init", "compile_program"):
            patch.setattr(loop, name, functools.partial(_once, getattr(loop, name), results=results))
        yield


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a finished run of `tiny()`, which no test may change."""
    output_dir = tmp_path_factory.mktemp("tiny")
    with registered(probe=ProbeEnv):
        assert training.main(flags(tiny(output_dir=str(output_dir)))) == 0
    (config,) = output_dir.glob("*/*/*/config.json")
    return config.parent


@pytest.fixture
def finished_run(tiny_run: Path, tmp_path: Path) -> Path:
    """A copy of it, under `tmp_path`/runs."""
    shutil.copytree(tiny_run.parents[2], tmp_path / "runs")
    return tmp_path / "runs" / tiny_run.relative_to(tiny_run.parents[2])
