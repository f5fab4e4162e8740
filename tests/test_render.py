"""Pictures: every environment can be drawn, the goal stands where it was put, and without OpenGL one line says so."""

import os
import platform
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, slow, tiny
from drawing import can_draw, drawn_run, needs_opengl, pixels
from rollouts import FAMILIES

from envs import ENVS, make_env
from envs.check import check_env
from envs.opengl import usable_opengl
from envs.render import Renderer, Scene, open_renderer, scene_xml, wall_boxes
from scripts.play import Stage
from src.insight import draw_all
from src.player import Player
from src.video import film, record

ROOT = Path(__file__).resolve().parents[1]


def green(picture: np.ndarray) -> np.ndarray:
    """(K, 2) rows and columns of the pixels of the goal."""
    return np.argwhere(pixels(picture, "green"))


@pytest.mark.parametrize("name", [name if name in FAMILIES.values() else slow(name) for name in ENVS])
def test_scene_has_the_joints_of_the_environment(name):
    env = make_env(name)
    model = mujoco.MjModel.from_xml_string(scene_xml(env, 48, 64))
    assert model.nq == jax.eval_shape(lambda key: env.pose(env.reset(key)), jax.random.key(0)).shape[-1]
    marker = model.geom_bodyid == model.body("commanded_goal").id
    assert not np.any(model.geom_contype[marker] | model.geom_conaffinity[marker])


@needs_opengl
def test_goal_is_seen_where_it_is():
    env = make_env("ant")
    renderer = Renderer(env, 120, 160)
    q = np.array(env.sys.init_q)
    goals = np.array([[-8.0, 0.0], [8.0, 0.0]])
    cameras = [renderer.camera(q[None], goal) for goal in goals]
    pictures = [renderer.render(q, goal, camera) for goal, camera in zip(goals, cameras, strict=True)]
    assert [picture.shape for picture in pictures] == [(120, 160, 3)] * 2
    assert pictures[0].dtype == np.uint8
    left, right = (green(picture)[:, 1].mean() for picture in pictures)
    assert left < 60 and right > 100


@needs_opengl
def test_camera_of_a_video_sees_every_pose():
    env = make_env("cheetah")
    renderer = Renderer(env, 120, 160)
    poses = np.zeros((3, 9))
    poses[:, 0] = -4, 0, 4
    goal = np.array([5.0])
    camera = renderer.camera(poses, goal)
    pictures = [renderer.render(q, goal, camera) for q in poses]
    places = [green(picture).mean(axis=0) for picture in pictures]
    np.testing.assert_allclose(places[0], places[2], atol=2)  # the camera stands still
    assert np.any(pictures[0] != pictures[2])


def test_camera_sees_each_pose_with_its_own_goal():
    scene = Scene(ProbeEnv())
    poses, goals = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[-1.0, 0.0], [1.0, 0.0]])
    camera = scene.camera(poses, goals)
    low, high = -1 - 0.2, 3 + 0.1  # the goal's radius left of it, the point's right of it
    assert camera.lookat[0] == pytest.approx((low + high) / 2)
    assert scene.camera(poses, goals[1]).distance < camera.distance


def test_walls_are_those_of_the_model():
    border = [[-1.05, 0, 0.05, 1.1], [1.05, 0, 0.05, 1.1], [0, -1.05, 1, 0.05], [0, 1.05, 1, 0.05]]
    np.testing.assert_allclose(wall_boxes(make_env("point")), border)
    env = make_env("ant_u_maze")
    assert len(wall_boxes(env)) == env.walls.sum()


def test_without_opengl_one_line_says_what_to_install(monkeypatch):
    def no_context(*_):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mujoco, "Renderer", no_context)
    with pytest.raises(RuntimeError, match="install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa") as error:
        open_renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
    assert "\n" not in str(error.value)


# MUJOCO_GL.


@pytest.mark.parametrize("value", ["", "glfw", "disabled", "off", "0", "ON", " Disabled "])
def test_values_of_mujoco_gl_that_mujoco_knows_stay(value, capsys):
    assert usable_opengl(value) == value
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("system", "value"),
    [("Linux", "cgl"), ("Linux", "gpu"), ("Linux", "wgl"), ("Linux", "elg"), ("Darwin", "egl"), ("Windows", "osmesa")],
)
def test_values_of_mujoco_gl_that_mujoco_does_not_know_cost_the_pictures(system, value, capsys, monkeypatch):
    monkeypatch.setattr(platform, "system", lambda: system)
    assert usable_opengl(value) == "disabled"
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"warning: nothing can be drawn, MUJOCO_GL={value} ") and system in line


@pytest.mark.parametrize(("value", "library"), [("EGL", "libEGL"), ("osmesa", "libOSMesa")])
def test_a_missing_library_named_by_mujoco_gl_is_done_without(value, library, capsys, monkeypatch):
    def missing(_):
        raise OSError("no such file")

    monkeypatch.setattr(platform, "system", lambda: "Linux")
    monkeypatch.setattr("ctypes.CDLL", missing)
    assert usable_opengl(value) == "disabled"
    (line,) = capsys.readouterr().err.splitlines()
    assert f"MUJOCO_GL={value}" in line and library in line


@pytest.mark.parametrize("value", ["gpu", *map(slow, ("cgl", "eg l"))])
def test_environments_are_imported_whatever_mujoco_gl_says(value):
    code = "import envs.render, mujoco; print(envs.make_env('point').dt)"
    environment = os.environ | {"MUJOCO_GL": value}
    process = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert process.stdout == "0.1\n", process.stderr
    assert process.stderr.count("warning: nothing can be drawn") == 1


# Goals that are no place, or more than one.


class WithVelocity(ProbeEnv):
    """Its goal is x, y and a velocity, of which pictures show the place."""

    state_dim = 4
    goal_indices = (0, 1, 2, 3)
    goal_place_dim = 2

    def sample_goal(self, key):
        return jnp.concatenate([super().sample_goal(key), jnp.array([7.0, -7.0])])

    def observe(self, pipeline_state, action):
        return jnp.concatenate([pipeline_state["position"], action])


class TwoPlaces(WithVelocity):
    """Its goal is two points of space and a number; the first is shown."""

    goal_indices = (0, 1, 2, 3, 0, 1, 2)
    goal_place_dim = 3

    def sample_goal(self, key):
        return jnp.array([0.5, -0.5, 0.3, 9.0, 9.0, 9.0, 1.0])


class Angle(ProbeEnv):
    """Its goal is no place."""

    goal_indices = (0,)
    goal_place_dim = 0

    def sample_goal(self, key):
        return super().sample_goal(key)[:1]


@pytest.mark.parametrize(
    ("probe", "goal", "place"),
    [
        (WithVelocity, [0.5, -0.5, 7.0, 7.0], [0.5, -0.5, 0.2]),
        (TwoPlaces, [0.5, -0.5, 0.3, 9.0, 9.0, 9.0, 1.0], [0.5, -0.5, 0.3]),
        (Angle, [3.0], [0.0, 0.0, 0.2]),
    ],
)
def test_goals_are_shown_as_far_as_they_are_places(probe, goal, place):
    scene = Scene(probe())
    scene.camera(np.zeros((1, 2)), np.array(goal))
    np.testing.assert_allclose(scene.data.mocap_pos[-1], place)
    visible = scene.model.geom_rgba[scene.model.geom_bodyid == scene.model.body("commanded_goal").id, 3]
    assert (visible[0] > 0) == (probe is not Angle)


@pytest.mark.parametrize("probe", [WithVelocity, slow(TwoPlaces), Angle])
def test_policies_with_goals_that_are_no_places_are_drawn_and_played(probe, tmp_path, capsys):
    program = make_probe_program(tiny(), probe)
    agent_state = program.algorithm.init(jax.random.key(0))
    recording = record(program, agent_state, 4)
    pictures, worked = draw_all(tmp_path, program, agent_state, recording.episodes)
    assert worked and {path.stem for path in pictures} == (set() if probe is Angle else {"energy", "reached_goals"})
    if can_draw():
        assert film(program, recording, ("best",), seconds=0.1).shape[-1] == 3
    stage = Stage(Player(program, agent_state))
    before = stage.player.goal
    stage.new_goal((0.25, 0.5))
    moved = [0.25, 0.5][: min(2, probe.goal_place_dim)]
    np.testing.assert_allclose(stage.player.goal, [*moved, *before[len(moved) :]])
    stage.advance()
    checks, _ = check_env(program.env.env, num_envs=2, num_steps=4)
    (picture,) = (check for check in checks if check.name == "picture")
    assert picture.passed and picture.detail.startswith("drawn in" if can_draw() else "not drawn: no OpenGL")


def test_a_goal_with_a_velocity_costs_a_run_nothing(tmp_path, capsys):
    run_dir = drawn_run(tmp_path, WithVelocity, render=True)
    assert {path.stem for path in run_dir.glob("*.png")} == {"critic", "energy", "reached_goals"}
    err = capsys.readouterr().err
    assert err == "" if can_draw() else "no OpenGL to draw with" in err
