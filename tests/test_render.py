"""Pictures: every environment can be drawn, the goal stands where it was put, and without OpenGL one line says so."""

import sys

import mujoco
import numpy as np
import pytest
from drawing import DrawnProbe, needs_opengl, pixels

from envs import ENVS, make_env
from envs.base import without_missing_opengl
from envs.render import Renderer, Scene, open_renderer, scene_xml, wall_boxes


def green(picture: np.ndarray) -> np.ndarray:
    """(K, 2) rows and columns of the pixels of the goal."""
    return np.argwhere(pixels(picture, "green"))


@pytest.mark.parametrize("name", ENVS)
def test_scene_has_the_joints_of_the_environment(name):
    env = make_env(name)
    model = mujoco.MjModel.from_xml_string(scene_xml(env, 48, 64))
    assert (model.nq, model.nv) == (env.sys.q_size(), env.sys.qd_size())
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
    scene = Scene(DrawnProbe())
    poses, goals = np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[-1.0, 0.0], [1.0, 0.0]])
    camera = scene.camera(poses, goals)
    low, high = -1 - 0.2, 3 + 0.1  # the goal's radius left of it, the point's right of it
    assert camera.lookat[0] == pytest.approx((low + high) / 2)
    assert scene.camera(poses, goals[1]).distance < camera.distance


def test_walls_are_those_of_the_model():
    np.testing.assert_allclose(wall_boxes(DrawnProbe()), [[0.5, 0.5, 0.1, 0.2]])
    env = make_env("ant_u_maze")
    assert len(wall_boxes(env)) == env.walls.sum()


def test_without_opengl_one_line_says_what_to_install(monkeypatch):
    def no_context(*_):
        raise AttributeError("'NoneType' object has no attribute 'eglQueryString'")

    monkeypatch.setattr(mujoco, "Renderer", no_context)
    with pytest.raises(RuntimeError, match="install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa") as error:
        open_renderer(mujoco.MjModel.from_xml_string("<mujoco/>"), 8, 8)
    assert "\n" not in str(error.value)


def test_a_missing_library_named_by_mujoco_gl_is_done_without(capsys, monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    assert without_missing_opengl("glfw") == "glfw"
    assert capsys.readouterr().err == ""

    def missing(_):
        raise OSError("no such file")

    monkeypatch.setattr("ctypes.CDLL", missing)
    assert without_missing_opengl("EGL") == "disabled"
    (line,) = capsys.readouterr().err.splitlines()
    assert "MUJOCO_GL=EGL" in line and "libEGL" in line
