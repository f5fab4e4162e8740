"""The environment check: passes on a sound environment, and finds each kind of fault."""

import jax
import jax.numpy as jnp
import pytest
from conftest import ProbeEnv, registered

from envs import ENVS, check
from envs.check import check_control_step, check_env, main
from envs.physics import Physics
from envs.reacher import Reacher


class Sound(ProbeEnv):
    """The probe; its episodes end early after 2 or 3 steps."""

    def __init__(self, **options):
        super().__init__(lives=(2, 3), **options)


class WrongGoalIndices(Sound):
    goal_indices = (1, 0)

    def goal_distance(self, state, goal):
        return jnp.linalg.norm(state - goal, axis=-1)


class WrongActionSize(Sound):
    action_size = 3


class VectorMetric(Sound):
    def step_metrics(self, before, after, action):
        return {"effort": jnp.square(action)}


class NotFinite(Sound):
    def step_metrics(self, before, after, action):
        return {"effort": jnp.log(action[0])}


class OneStartForAll(Sound):
    def sample_goal(self, key):
        return jnp.zeros(2)

    def sample_start(self, key, goal):
        return jax.tree.map(jnp.zeros_like, super().sample_start(key, goal)) | {"life": 3}


class MovingGoal(Sound):
    def step(self, env_state, action):
        return super().step(env_state.replace(goal=env_state.goal + 0.1), action)


class RewardIsNotSuccess(Sound):
    def _after(self, before, pipeline_state, action):
        after = super()._after(before, pipeline_state, action)
        return after.replace(reward=-after.metrics["dist"])


class CountsNoSteps(Sound):
    def reset(self, key, goal=None):
        return super().reset(key, goal).replace(steps=jnp.ones((), jnp.int32))


class NoTime(Sound):
    dt = 0.0


class PoseOfAnotherModel(Sound):
    def pose(self, env_state):
        return jnp.zeros((*env_state.done.shape, 3))


FAULTS = {
    WrongGoalIndices: "success",
    WrongActionSize: "contract",
    VectorMetric: "contract",
    NotFinite: "finite",
    OneStartForAll: "fresh goals",
    MovingGoal: "fresh goals",
    RewardIsNotSuccess: "success",
    CountsNoSteps: "episodes",
    NoTime: "control step",
    PoseOfAnotherModel: "picture",
}


def failures(env):
    checks, _ = check_env(env, num_envs=4, num_steps=40)
    return [outcome.name for outcome in checks if not outcome.passed]


def test_a_sound_environment_passes():
    assert failures(Sound()) == []


@pytest.mark.parametrize("env_class", FAULTS)
def test_each_fault_is_found(env_class):
    assert FAULTS[env_class] in failures(env_class())


def test_control_steps_of_another_length_are_found(monkeypatch):
    """Where backends differ, and where the loaded model has another time step than its backend says."""
    env = Reacher("spring")
    assert check_control_step(env).passed
    for physics in ({"spring": Physics(0.005, 4), "mjx": Physics(0.005, 5)}, {"spring": Physics(0.02, 1)}):
        monkeypatch.setattr(Reacher, "physics", physics)
        assert not check_control_step(env).passed


def test_command_prints_a_line_per_check(capsys):
    with registered(probe=Sound):
        assert main(["probe", "--num_envs", "4", "--num_steps", "40"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 9
    assert all(line.startswith("PASS probe ") for line in lines)


def test_command_fails_with_the_check(capsys):
    with registered(probe=WrongActionSize):
        assert main(["probe", "--num_envs", "4", "--num_steps", "40"]) == 1
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("FAIL probe contract: ") and "(2,)" in line and "(3,)" in line


@pytest.mark.parametrize(
    "args",
    [
        ["humanoids"],
        ["ant", "--backend", "warp"],
        [],
        ["ant", "--all"],
        ["ant", "--num_envs", "99999999999"],
        ["--all", "--backend", "warp"],
        ["point", "--backend", "spring"],
    ],
)
def test_bad_input_is_one_line(args, capsys):
    assert main(args) == 2
    output = capsys.readouterr()
    assert output.out == "" and output.err.count("\n") == 1 and output.err.startswith("error: ")


def test_all_checks_every_environment(capsys, monkeypatch):
    monkeypatch.setattr(check, "ENVS", {"first": Sound, "second": VectorMetric})
    with registered(first=Sound, second=VectorMetric):
        assert main(["--all", "--num_envs", "4", "--num_steps", "40"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["first"] * 9 + ["second"]


def test_all_goes_on_after_an_environment_without_the_backend(capsys, monkeypatch):
    names = ("ant_push", "point", "simple_u_maze")
    monkeypatch.setattr(check, "ENVS", {name: ENVS[name] for name in names})
    assert main(["--all", "--backend", "spring", "--num_envs", "4", "--num_steps", "4"]) == 0
    output = capsys.readouterr()
    first, second = output.err.splitlines()
    assert first.startswith("error: unknown backend 'spring' of AntPush")
    assert second == "error: Point has no physics engine: leave the backend 'spring' out"
    assert output.out.count("PASS simple_u_maze ") == 9


def test_table_has_a_row_for_every_environment(capsys):
    assert main(["--table"]) == 0
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in capsys.readouterr().out.splitlines()]
    assert [row[0] for row in rows[2:]] == list(ENVS)
    assert len({len(row) for row in rows}) == 1
    titles = rows[0]
    ant = dict(zip(titles, rows[2 + list(ENVS).index("ant")], strict=True))
    point = dict(zip(titles, rows[2 + list(ENVS).index("point")], strict=True))
    assert (point["backend"], point["ends early"]) == ("-", "no")
    assert (ant["obs"], ant["state"], ant["goal indices"], ant["ends early"]) == ("31", "29", "0, 1", "yes")
