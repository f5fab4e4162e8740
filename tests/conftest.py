"""What the tests share: the compilation cache, a tiny `Config`, and `ProbeEnv`, a point in a square without physics."""

import contextlib
import dataclasses
import os
import types
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import pytest

import training
from envs import ENVS
from envs.base import EnvState, GoalEnv, Physics, unknown
from src.program import Program, make_program
from utils import Config, derive_schedule

# Compiled programs are kept between tests, between runs of the tests, and for the commands that tests start.
os.environ["JAX_COMPILATION_CACHE_DIR"] = training.enable_compilation_cache()
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)


@pytest.fixture(autouse=True)
def _keep_jax_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """In-process calls of `training.main` must undo neither the cache's settings above nor the number of devices."""
    jax.devices()  # once in use, JAX keeps its devices
    monkeypatch.setattr(training, "enable_compilation_cache", lambda: os.environ["JAX_COMPILATION_CACHE_DIR"])


class ProbeEnv(GoalEnv):
    """A point in the unit square: an action moves it by 0.1 * action, a goal is another point of the square.

    State: x, y. With `lives` (low, high) an episode ends early after that many steps, drawn at its start; the point's
    position is NaN from then on. Without `ends` it does not end there: its physics blows up. With `tagged` the state
    also holds what the episode was drawn with: start x, y and goal x, y. `traces` counts how often JAX traced `step`.
    """

    action_size = 2
    goal_indices = (0, 1)
    goal_dist = 0.2
    default_backend = "spring"
    physics = {"spring": Physics(0.1, 1), "mjx": Physics(0.05, 2)}
    traces = 0

    def __init__(
        self,
        backend: str | None = None,
        use_dense_reward: bool = False,
        lives: tuple[int, int] | None = None,
        ends: bool = True,
        tagged: bool = False,
    ):
        self.backend = backend or self.default_backend
        if self.backend not in self.physics:
            raise ValueError(unknown("backend", self.backend, self.physics, f" of {type(self).__name__}"))
        self.use_dense_reward = use_dense_reward
        self.lives = lives
        self.ends = ends
        self.tagged = tagged
        self.state_dim = 6 if tagged else 2
        self._physics = self.physics[self.backend]
        self.dt = self._physics.timestep * self._physics.n_frames
        self.sys = None
        self._pipeline = types.SimpleNamespace(init=self._begin, step=self._move)

    def build_xml(self):
        raise NotImplementedError("the probe has no model")

    def sample_start(self, key):
        start_key, goal_key, life_key = jax.random.split(key, 3)
        start = jax.random.uniform(start_key, (2,), minval=-1.0)
        goal = jax.random.uniform(goal_key, (2,), minval=-1.0)
        low, high = self.lives or (2**30, 2**30)
        return jnp.concatenate([start, goal]), jax.random.randint(life_key, (), low, high + 1), goal

    def _begin(self, sys, q, qd):
        return {"position": q[:2], "tag": q, "life": qd}

    def _move(self, sys, pipeline_state, control):
        position = jnp.clip(pipeline_state["position"] + self._physics.timestep * control, -1.0, 1.0)
        life = pipeline_state["life"] - 1
        return {
            "position": jnp.where(life < 0, jnp.nan, position),
            "tag": pipeline_state["tag"],
            "life": life,
        }

    def observe(self, pipeline_state, action):
        position, tag = pipeline_state["position"], pipeline_state["tag"]
        return jnp.concatenate([position, tag]) if self.tagged else position

    def step_metrics(self, before, pipeline_state, action):
        return {"x": pipeline_state["position"][0], "effort": jnp.sum(jnp.square(action))}

    def dense_reward(self, before, dist, metrics, action):
        return -dist

    def terminated(self, pipeline_state):
        return (pipeline_state["life"] <= 0) & self.ends

    def step(self, env_state: EnvState, action: jax.Array) -> EnvState:
        ProbeEnv.traces += 1
        return super().step(env_state, action)


# What algorithm.md, section 8, lists for every update.
_UPDATE_METRICS = """
crl_critic_loss actor_loss alpha_loss alpha entropy binary_accuracy categorical_accuracy logits_pos logits_neg logsumexp
sa_repr_mean sa_repr_std g_repr_mean g_repr_std l_align l_unif l2_penalty
"""
UPDATE_METRICS = frozenset(_UPDATE_METRICS.split())

TINY = Config(
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


def flags(config: Config) -> list[str]:
    """The command line of a config, switches as sweep agents write them."""
    return [
        f"--{field.name}={getattr(config, field.name)}"
        for field in dataclasses.fields(Config)
        if getattr(config, field.name) != field.default
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


@pytest.fixture
def probe_registered() -> Iterator[None]:
    """`--env_name probe` works."""
    with registered(probe=ProbeEnv):
        yield
