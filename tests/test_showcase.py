"""What a run draws of itself, when, and that training never depends on it."""

import csv
import os
import signal

import numpy as np
import pytest
from conftest import ProbeEnv, flags, make_probe_program, registered, tiny
from drawing import drawn_run, needs_opengl
from PIL import Image

import training
from envs.base import GoalEnv
from src.loop import Position
from src.showcase import Showcase

pytestmark = pytest.mark.usefixtures("compiled_once")
PICTURES = {"energy.png", "reached_goals.png", "critic.png"}


def names(run_dir):
    videos = run_dir / "videos"
    return {path.name for path in run_dir.glob("*.png")}, sorted(path.name for path in videos.glob("*"))


@needs_opengl
def test_a_run_leaves_pictures_and_videos(tmp_path, capsys):
    run_dir = drawn_run(tmp_path, render=True, video_every=2)
    pictures, videos = names(run_dir)
    assert pictures == PICTURES
    assert videos == [f"000000000{steps}.{ending}" for steps in (100, 160) for ending in ("gif", "mp4")]
    for name in pictures:
        assert len(np.unique(np.asarray(Image.open(run_dir / name)))) > 10
    out, err = capsys.readouterr()
    assert out.count("drawn       in ") == 2
    assert err == ""


def test_without_opengl_a_run_says_so_once_and_is_the_same(tiny_run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("mujoco.Renderer", lambda *_: 1 / 0)
    capsys.readouterr()
    with_pictures = drawn_run(tmp_path / "on", render=True, video_every=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert "video failed, training continues" in line
    assert "install libegl1, or libosmesa6 and set MUJOCO_GL=osmesa" in line
    assert names(with_pictures) == (PICTURES, [])
    assert names(tiny_run) == (set(), [])
    with np.load(with_pictures / "params.npz") as one, np.load(tiny_run / "params.npz") as other:
        assert all(np.array_equal(one[name], other[name]) for name in other.files)
    tables = [(each / "metrics.csv").read_text().splitlines() for each in (with_pictures, tiny_run)]
    distances = [[row["eval/episode_dist"] for row in csv.DictReader(table)] for table in tables]
    assert distances[0] == distances[1]


def test_an_env_that_cannot_be_drawn_costs_one_line(tmp_path, capsys):
    class NoModel(ProbeEnv):
        model_xml = None

        def pose(self, env_state):
            return GoalEnv.pose(self, env_state)

    with registered(probe=NoModel):
        assert training.main(flags(tiny(output_dir=str(tmp_path), render=True))) == 0
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: video failed, training continues (")
    assert "NoModel cannot be drawn: it has no model_xml" in line
    assert {path.name for path in tmp_path.rglob("*.png")} == PICTURES
    assert list(tmp_path.rglob("params.npz"))


def test_parameters_are_on_the_disk_before_anything_is_drawn(tmp_path, monkeypatch):
    seen = []

    def show(self, run_dir, *_):
        seen.append(((run_dir / "params.npz").exists(), len((run_dir / "metrics.csv").read_text().splitlines())))

    monkeypatch.setattr(Showcase, "show", show)
    drawn_run(tmp_path, render=True, video_every=1)
    assert seen == [(True, 2), (True, 3), (True, 4)]


def test_each_seed_is_drawn_into_its_own_folder(tmp_path, monkeypatch):
    shown = {}
    monkeypatch.setattr(Showcase, "show", lambda self, run_dir, agent_state, *_: shown.update({run_dir: agent_state}))
    with registered(probe=ProbeEnv):
        assert training.main(flags(tiny(output_dir=str(tmp_path), render=True, num_seeds=2, seed=3))) == 0
    assert len(shown) == 2
    for run_dir, agent_state in shown.items():
        with np.load(run_dir / "params.npz") as stored:
            assert np.array_equal(stored["params/log_alpha"], agent_state.params["log_alpha"])


def test_a_signal_does_not_wait_for_the_seeds_that_are_left_to_draw(tmp_path, monkeypatch):
    shown = []

    def show(self, run_dir, *_):
        shown.append(run_dir)
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Showcase, "show", show)
    config = tiny(output_dir=str(tmp_path), render=True, num_seeds=2, video_every=1)
    with registered(probe=ProbeEnv):
        assert training.main(flags(config)) == training.INTERRUPTED
    assert len(shown) == 1


def test_what_is_due_does_not_depend_on_what_failed():
    """Or the processes of a run would fetch the parameters at different moments."""
    showcase = Showcase(make_probe_program(tiny(render=True, video_every=1)), print)
    showcase.can_film = False
    assert showcase.due(Position())


@pytest.mark.parametrize(
    ("render", "every", "due"),
    [
        (True, 0, [False, False, False, True]),
        (True, 2, [False, True, False, True]),
        (True, 3, [False, False, True, True]),
        (True, 1, [True] * 4),
        (False, 1, [False] * 4),
    ],
)
def test_when_there_is_something_to_draw(render, every, due):
    program = make_probe_program(tiny(render=render, video_every=every, num_evals=4))
    showcase = Showcase(program, print)
    assert [showcase.due(Position(training_steps=at)) for at in program.schedule.eval_at] == due
