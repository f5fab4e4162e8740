"""The environment check: passes on a sound environment, and finds each kind of fault."""

import types

import jax.numpy as jnp
import pytest
from conftest import ProbeEnv, registered

from envs import ENVS, check
from envs.check import check_env, main


class Sound(ProbeEnv):
    """The probe, with as much of a model as the check asks for; episodes end early after 2 or 3 steps."""

    state_dim = 2

    def __init__(self, **options):
        super().__init__(lives=(2, 3), **options)
        self.sys = types.SimpleNamespace(
            act_size=lambda: self.action_size, opt=types.SimpleNamespace(timestep=self._physics.timestep)
        )


class WrongGoalIndices(Sound):
    goal_indices = (1, 0)

    def goal_distance(self, state, goal):
        return jnp.linalg.norm(state - goal, axis=-1)


class IndicesOutside(Sound):
    goal_indices = (0, 2)


class WrongActionSize(Sound):
    def __init__(self, **options):
        super().__init__(**options)
        self.sys.act_size = lambda: 3


class VectorMetric(Sound):
    def step_metrics(self, before, pipeline_state, action):
        return {"effort": jnp.square(action)}


class NotFinite(Sound):
    def step_metrics(self, before, pipeline_state, action):
        return {"effort": jnp.log(action[0])}


class OneStartForAll(Sound):
    def sample_start(self, key):
        q, qd, goal = super().sample_start(key)
        return jnp.zeros_like(q), qd, jnp.zeros_like(goal)


class MovingGoal(Sound):
    def step(self, env_state, action):
        return super().step(env_state.replace(goal=env_state.goal + 0.1), action)


class RewardIsNotSuccess(Sound):
    def _after(self, before, pipeline_state, action):
        after = super()._after(before, pipeline_state, action)
        return after.replace(reward=-after.metrics["dist"])


class CountsNoSteps(Sound):
    def reset(self, key):
        return super().reset(key).replace(steps=jnp.ones((), jnp.int32))


class UnequalControlSteps(Sound):
    physics = {**ProbeEnv.physics, "mjx": ProbeEnv.physics["spring"].__class__(0.05, 3)}


FAULTS = {
    WrongGoalIndices: "success",
    IndicesOutside: "contract",
    WrongActionSize: "contract",
    VectorMetric: "contract",
    NotFinite: "finite",
    OneStartForAll: "fresh goals",
    MovingGoal: "fresh goals",
    RewardIsNotSuccess: "success",
    CountsNoSteps: "episodes",
    UnequalControlSteps: "control step",
}


def failures(env):
    checks, _ = check_env(env, num_envs=4, num_steps=40)
    return [outcome.name for outcome in checks if not outcome.passed]


def test_a_sound_environment_passes():
    assert failures(Sound()) == []


@pytest.mark.parametrize("env_class", FAULTS)
def test_each_fault_is_found(env_class):
    assert FAULTS[env_class] in failures(env_class())


def test_command_prints_a_line_a_check(capsys):
    with registered(probe=Sound):
        assert main(["probe", "--num_envs", "4", "--num_steps", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 8
    assert all(line.startswith("PASS probe ") for line in lines)


def test_command_fails_with_the_check(capsys):
    with registered(probe=WrongActionSize):
        assert main(["probe", "--num_envs", "4", "--num_steps", "40"]) == 1
    assert capsys.readouterr().out == "FAIL probe contract: action_size is 2, the model's 3\n"


@pytest.mark.parametrize(
    "args",
    [
        ["humanoids"],
        ["ant", "--backend", "warp"],
        [],
        ["ant", "--all"],
        ["ant", "--num_envs", "99999999999"],
        ["--all", "--backend", "warp"],
    ],
)
def test_bad_input_is_one_line(args, capsys):
    assert main(args) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("error: ")


def test_all_checks_every_environment(capsys, monkeypatch):
    monkeypatch.setattr(check, "ENVS", {"first": Sound, "second": IndicesOutside})
    with registered(first=Sound, second=IndicesOutside):
        assert main(["--all", "--num_envs", "4", "--num_steps", "40"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["first"] * 8 + ["second"]


def test_all_goes_on_after_an_environment_without_the_backend(capsys, monkeypatch):
    class OnlyMjx(Sound):
        default_backend = "mjx"
        physics = {"mjx": Sound.physics["mjx"]}

    monkeypatch.setattr(check, "ENVS", {"first": OnlyMjx, "second": Sound})
    with registered(first=OnlyMjx, second=Sound):
        assert main(["--all", "--backend", "spring", "--num_envs", "4", "--num_steps", "40"]) == 0
    output = capsys.readouterr()
    assert output.err.startswith("error: unknown backend 'spring' of OnlyMjx") and output.err.count("\n") == 1
    assert output.out.count("PASS second ") == 8


def test_table_has_a_row_for_every_environment(capsys):
    assert main(["--table"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == list(ENVS)
    assert len({len(row) for row in rows}) == 1
    titles = rows[0]
    ant = dict(zip(titles, rows[2 + list(ENVS).index("ant")], strict=True))
    assert (ant["obs"], ant["state"], ant["goal indices"], ant["ends early"]) == ("31", "29", "0, 1", "yes")
