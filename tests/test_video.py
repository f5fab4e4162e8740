"""Videos: whole episodes of the policy as it acts, the goal and the robot in every frame, files that play."""

import functools
import re
import subprocess
from pathlib import Path

import imageio_ffmpeg
import jax
import numpy as np
import pytest
from conftest import Fleeing, ProbeEnv, make_probe_program, registered, tiny
from drawing import needs_opengl, pixels
from PIL import Image

from scripts import render
from src.video import CAPTION, FPS, HEIGHT, WIDTH, choose, film, record, write_film


class Brief(ProbeEnv):
    """Every episode ends after four steps."""

    def __init__(self, **options):
        super().__init__(lives=(4, 4), **options)


def make(probe=ProbeEnv, **changes):
    program = make_probe_program(tiny(deterministic_eval=True, **changes), probe)
    return program, program.algorithm.init(jax.random.key(1))


def test_recorded_is_what_the_policy_does_through_its_tanh():
    program, agent_state = make()
    recording = record(program, agent_state, 3)
    assert recording.poses.shape == (8, 3, 2)
    position = recording.episodes.start
    for pose in recording.poses:
        obs = np.concatenate([position, recording.episodes.goal], axis=1)
        action = np.asarray(program.algorithm.act(agent_state, (), obs, jax.random.key(0), deterministic=True)[0])
        assert np.abs(action).max() <= 1
        position = np.clip(position + 0.1 * action, -1, 1)  # and no reset on the way
        np.testing.assert_allclose(pose, position, atol=1e-5)
    np.testing.assert_allclose(recording.episodes.last, recording.poses[-1], atol=1e-6)
    assert np.all(recording.goals == recording.episodes.goal)


def test_a_goal_that_moves_is_shown_where_it_is():
    recording = record(*make(Fleeing), 3)
    moved = recording.episodes.goal + 0.1 * np.arange(1, 9)[:, None, None] * [1, 0]
    np.testing.assert_allclose(recording.goals, moved, atol=1e-6)
    np.testing.assert_allclose(recording.episodes.last_goal, moved[-1], atol=1e-6)


@pytest.mark.parametrize(("action_repeat", "ends"), [(1, True), (2, True), (1, False), (2, False)])
def test_an_episode_that_ends_early_keeps_its_last_pose(action_repeat, ends):
    """Or its last finite one, if its physics blows up at the next env step."""
    program, agent_state = make(functools.partial(Brief, ends=ends), action_repeat=action_repeat)
    recording = record(program, agent_state, 3)
    actions = 4 // action_repeat
    assert recording.episodes.length.tolist() == [4 if ends else 5] * 3
    assert np.all(np.isfinite(recording.poses))
    assert np.all(recording.poses[actions:] == recording.poses[actions - 1])
    assert np.any(recording.poses[actions - 1] != recording.poses[actions - 2])


def test_chosen_are_the_best_the_worst_and_another():
    near = np.array([3.0, 0.0, 9.0, 4.0])
    chosen = choose(near, seed=0)
    assert (chosen["best"], chosen["worst"]) == (2, 1)
    assert chosen["random"] in (0, 3)
    assert chosen == choose(near, seed=0)
    assert {choose(near, seed)["random"] for seed in range(20)} == {0, 3}
    assert choose(np.zeros(1), seed=0) == {"best": 0, "random": 0, "worst": 0}


@needs_opengl
def test_every_frame_shows_robot_and_goal_under_a_caption():
    program, agent_state = make()
    frames = film(program, record(program, agent_state, 4), seconds=0.4)  # of an episode of 0.8 s
    assert frames.shape == (round(0.4 * FPS), CAPTION + HEIGHT, 3 * WIDTH, 3)
    for panel in np.split(frames, 3, axis=2):
        for colour in ("green", "orange"):
            assert np.all(pixels(panel[:, CAPTION:], colour).sum(axis=(1, 2)) > 30), colour
        assert np.any(panel[:, :CAPTION] < 100)
    assert np.any(frames[0] != frames[-1])


def read_mp4(path: Path, width: int) -> tuple[str, np.ndarray]:
    """What ffmpeg says of the file, and its frames (F, H, W, 3)."""
    command = [imageio_ffmpeg.get_ffmpeg_exe(), "-i", str(path), "-f", "rawvideo", "-pix_fmt", "rgb24", "-"]
    process = subprocess.run(command, capture_output=True, check=True)
    height = int(re.search(rf"{width}x(\d+)", process.stderr.decode())[1])
    return process.stderr.decode(), np.frombuffer(process.stdout, np.uint8).reshape(-1, height, width, 3)


def test_files_play(tmp_path):
    frames = np.zeros((10, 32, 64, 3), np.uint8)
    frames[:, :, :, 0] = 20 * np.arange(10)[:, None, None]
    paths = write_film(tmp_path / "videos" / "000000000100", frames)
    assert [path.name for path in paths] == ["000000000100.mp4", "000000000100.gif"]
    about, mp4 = read_mp4(paths[0], 64)
    assert mp4.shape == frames.shape
    assert "h264" in about and f"{FPS} fps" in about
    np.testing.assert_allclose(mp4[:, 16, 32, 0].astype(int), 20 * np.arange(10), atol=12)
    with Image.open(paths[1]) as gif:
        assert (gif.n_frames, gif.size) == (5, (64, 32))
        assert gif.info["duration"] == pytest.approx(2000 / FPS)


def test_a_full_disk_leaves_no_half_of_a_video(tmp_path, monkeypatch):
    (tmp_path / "a.mp4").write_bytes(b"old")

    def half(path, frames, **options):
        Path(path).write_bytes(b"half")
        raise RuntimeError("Error writing trailer: No space left on device")

    monkeypatch.setattr("mediapy.write_video", half)
    with pytest.raises(RuntimeError, match="No space left"):
        write_film(tmp_path / "a", np.zeros((4, 16, 16, 3), np.uint8))
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("a.mp4", b"old")]


# scripts/render.py


@needs_opengl
def test_video_of_a_run_folder(finished_run, tmp_path, capsys):
    with registered(probe=ProbeEnv):
        assert (
            render.main([str(finished_run), "--params", "best", "--show", "best", "--out", str(tmp_path / "imgs/p")])
            == 0
        )
    assert {path.name for path in (tmp_path / "imgs").iterdir()} == {"p.mp4", "p.gif"}
    assert len(read_mp4(tmp_path / "imgs" / "p.mp4", WIDTH)[1]) == round(0.8 * FPS)
    assert "p.gif" in capsys.readouterr().out


def test_requests_that_cannot_be_carried_out(finished_run, tmp_path, capsys):
    capsys.readouterr()

    def refusal(*args):
        with registered(probe=ProbeEnv, bigger=lambda **options: ProbeEnv(tagged=True, **options)):
            assert render.main(list(args)) == 2
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "is not a run folder" in refusal(str(tmp_path))
    assert "unknown env 'antt'" in refusal(str(finished_run), "--eval_env", "antt")
    assert "does not fit" in refusal(str(finished_run), "--eval_env", "bigger")
    assert "out of range" in refusal(str(finished_run), "--seconds", "-1")
    assert "--parms" in refusal(str(finished_run), "--parms", "best")
    (finished_run / "best_params.npz").unlink(missing_ok=True)
    assert "holds no policy 'best': there are last" in refusal(str(finished_run), "--params", "best")
    (finished_run / "params.npz").unlink()
    assert "holds no policy 'last': the first evaluation leaves one" in refusal(str(finished_run))


def test_without_opengl_the_script_says_what_to_install(finished_run, capsys, monkeypatch):
    monkeypatch.setattr("mujoco.Renderer", lambda *_: 1 / 0)
    capsys.readouterr()
    with registered(probe=ProbeEnv):
        assert render.main([str(finished_run)]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "install libegl1" in line
