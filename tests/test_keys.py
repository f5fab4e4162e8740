"""What is drawn or measured beside a run shares no random key with it."""

import jax
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, tiny
from drawing import drawn_run

from scripts import evaluate
from src import loop, video
from src.player import Player

SEED = 3


def spelled(keys):
    return {np.asarray(key).tobytes() for key in jax.random.key_data(keys).reshape(-1, 2)}


def with_children(key, count=16):
    """A key and those it is split into, however many."""
    return spelled(key) | spelled(jax.random.split(key, count))


@pytest.fixture(scope="module")
def program():
    return make_probe_program(tiny(seed=SEED), ProbeEnv)


@pytest.fixture(scope="module")
def keys_of_the_run(program):
    """The seed's, what start and evaluations are drawn from, and their children."""
    _, start_key, eval_key = loop.make_init(program, [SEED])
    evaluations = [jax.random.fold_in(eval_key, training_steps) for training_steps in program.schedule.eval_at]
    keys = [jax.random.key(SEED), start_key, eval_key, *evaluations]
    return set.union(*map(with_children, keys))


class Asked(Exception):
    """With the key in question."""


def refuse(program, num_episodes, agent_state, key, *more):
    raise Asked(key)


def test_a_video_has_keys_of_its_own(program, keys_of_the_run, monkeypatch):
    monkeypatch.setattr(video, "_roll_out", refuse)
    with pytest.raises(Asked) as asked:
        video.record(program, program.algorithm.init(jax.random.key(0)))
    assert not with_children(asked.value.args[0]) & keys_of_the_run


def test_the_evaluation_script_has_keys_of_its_own(tmp_path, keys_of_the_run, monkeypatch, probe_registered):
    run_dir = drawn_run(tmp_path, seed=SEED)
    monkeypatch.setattr(evaluate, "roll_out", refuse)
    with pytest.raises(Asked) as asked:
        evaluate.main([str(run_dir), "--seed", str(SEED)])
    assert not with_children(asked.value.args[0]) & keys_of_the_run


def test_the_player_has_keys_of_its_own(program, keys_of_the_run):
    used = set()

    class Watched(Player):
        def _next_key(self):
            key = super()._next_key()
            used.update(with_children(key))
            return key

    Watched(program, program.algorithm.init(jax.random.key(0)), SEED)
    assert used
    assert not used & keys_of_the_run


def test_the_run_itself_would_be_noticed(program, keys_of_the_run):
    assert with_children(jax.random.key(SEED)) <= keys_of_the_run
