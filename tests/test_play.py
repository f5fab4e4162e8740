"""Playing: goals as they are given, time as it passes, and the web viewer answering a browser."""

import contextlib
import os
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import Fleeing, ProbeEnv, make_probe_program, tiny
from websockets.sync.client import connect

from scripts import play
from scripts.play import BACKSPACE, ENTER, SPACE, Stage, press
from src.player import Player


@pytest.fixture(scope="module")
def program_and_state():
    program = make_probe_program(tiny(deterministic_eval=True), ProbeEnv)
    return program, program.algorithm.init(jax.random.key(1))


@pytest.fixture
def player(program_and_state):
    return Player(*program_and_state)


@pytest.fixture
def stage(player):
    stage = Stage(player)
    stage.speed = 1e9  # every action is due
    return stage


def test_the_policy_acts_towards_the_goal_that_is_commanded(player, program_and_state):
    program, agent_state = program_and_state
    player.new_goal(np.array([0.5, -0.25]))
    start = player.q
    player.act()
    obs = np.concatenate([start, [0.5, -0.25]])
    action = np.asarray(program.algorithm.act(agent_state, (), obs, None, deterministic=True)[0])
    np.testing.assert_allclose(player.q, np.clip(start + 0.1 * action, -1, 1), atol=1e-6)
    np.testing.assert_allclose(player.goal, [0.5, -0.25])


def test_a_new_goal_leaves_the_body_where_it_is(player):
    player.act()
    before, goal = player.q, player.goal
    player.new_goal()
    np.testing.assert_array_equal(player.q, before)
    assert np.any(player.goal != goal)
    assert (player.near, player.steps) == (0, 0)


def test_where_the_goal_follows_something_a_new_one_begins_an_episode():
    program = make_probe_program(tiny(deterministic_eval=True), Fleeing)
    player = Player(program, program.algorithm.init(jax.random.key(1)))
    player.act()
    before, goal = player.q, player.goal
    player.act()
    np.testing.assert_allclose(player.goal, goal + [0.1, 0.0], atol=1e-6)
    player.new_goal(np.zeros(2))
    assert np.all(player.q != before) and np.all(player.goal != 0) and player.steps == 0


def test_time_near_the_goal_is_counted(player):
    player.new_goal(player.q)
    player.act()
    assert (player.near, player.steps) == (1, 1)
    player.new_goal(player.q + 0.9)
    player.act()
    assert (player.near, player.steps) == (0, 1)


def test_a_new_episode_follows_the_end_of_one(player):
    goals = [player.act() or tuple(player.goal) for _ in range(9)]  # an episode has 8 steps
    assert len(set(goals[:8])) == 1
    assert goals[8] != goals[7]
    assert player.steps == 1


def test_keys(stage):
    goal, q = stage.player.goal, stage.player.q
    press(stage, ENTER)
    assert np.any(stage.player.goal != goal) and np.all(stage.player.q == q)
    np.testing.assert_allclose(stage.data.mocap_pos[-1, :2], stage.player.goal)
    press(stage, BACKSPACE)
    assert np.any(stage.player.q != q)
    q = stage.player.q
    press(stage, SPACE)
    assert not stage.advance() and np.all(stage.player.q == q)
    press(stage, SPACE)
    assert stage.advance() and np.any(stage.player.q != q)
    np.testing.assert_allclose(stage.data.qpos, stage.player.q, atol=1e-6)


def test_a_goal_can_be_put_anywhere(stage):
    stage.new_goal((0.25, 0.5))
    np.testing.assert_allclose(stage.player.goal, [0.25, 0.5])
    stage.data.mocap_pos[-1, :2] = -0.5, 0.75  # as a viewer does when the ball is dragged
    stage.advance()
    np.testing.assert_allclose(stage.player.goal, [-0.5, 0.75])


def test_it_plays_in_real_time(stage, monkeypatch):
    clock = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    stage.speed = 0.5  # an action of 0.1 s takes 0.2 s
    acted = []
    for clock[0] in (100.0, 100.1, 100.19, 100.21, 100.39, 100.41, 105.0, 105.1, 105.21):
        acted.append(stage.advance())
    assert acted == [True, False, False, True, False, True, True, False, True]


def test_requests_that_cannot_be_carried_out(tmp_path, capsys, monkeypatch):
    for name in ("DISPLAY", "WAYLAND_DISPLAY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "linux")
    for args, text in (
        ([str(tmp_path)], "add --web"),
        ([str(tmp_path), "--web"], "is not a run folder"),
        ([str(tmp_path), "--web", "--port", "70000"], "--port 70000 is out of range"),
        ([str(tmp_path), "--web", "--host", "no such host"], "--host no such host"),
    ):
        assert play.main(args) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert text in line


def other_addresses():
    """This machine's IPv4 addresses besides the loopback."""
    found = socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe, contextlib.suppress(OSError):
        probe.connect(("192.0.2.1", 9))  # sends nothing; names the interface that would
        found.append((None,) * 4 + (probe.getsockname(),))
    return sorted({address[4][0] for address in found} - {"127.0.0.1", "127.0.1.1"})


@contextlib.contextmanager
def serving(run_dir, home, *options):
    """The port of a web viewer that plays `run_dir` in a process of its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script = str(Path(__file__).parent / "probe_play.py")
    program = [sys.executable, script, str(run_dir), "--web", "--port", str(port), *options]
    environment = os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "MUJOCO_GL": "disabled"}
    with (home / "log").open("w") as log:
        process = subprocess.Popen(program, env=environment, stdout=log, stderr=log)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
                break
            assert process.poll() is None, (home / "log").read_text()
            time.sleep(0.2)
        yield port
        assert process.poll() is None, (home / "log").read_text()
    finally:
        process.terminate()
        process.wait()


@pytest.mark.slow
def test_the_web_viewer_serves_a_page_that_moves(tiny_run, tmp_path):
    with serving(tiny_run, tmp_path) as port:
        address = f"127.0.0.1:{port}"
        page = urllib.request.urlopen(f"http://{address}/", timeout=30).read().decode()
        assert "<canvas" in page
        assert "https://" not in page.replace("https://www.apache.org", "")  # works without the internet
        assert len(urllib.request.urlopen(f"http://{address}/model", timeout=30).read()) > 1000
        with connect(f"ws://{address}/state", max_size=None) as stream:
            states = set()
            until = time.monotonic() + 60
            while len(states) < 5 and time.monotonic() < until:
                message = stream.recv(timeout=60)
                if isinstance(message, bytes):
                    states.add(message)
                    stream.send("state_ack")
        assert len(states) == 5
        for other in other_addresses():
            with pytest.raises(OSError):
                socket.create_connection((other, port), 2).close()


@pytest.mark.slow
def test_the_web_viewer_listens_to_others_only_when_asked(tiny_run, tmp_path):
    others = other_addresses()
    if not others:
        pytest.skip("this machine has one address only")
    with serving(tiny_run, tmp_path, "--host", "0.0.0.0") as port:
        for address in ("127.0.0.1", *others):
            socket.create_connection((address, port), 5).close()
