"""A replay with nothing to draw from stops the run by name; how much there is is reported."""

import functools
import json

import numpy as np
import pytest
from conftest import ProbeEnv, flags, make_probe_program, registered, tiny
from trainings import run_to_end, silent

import training
from src import loop


@pytest.mark.parametrize("changes", [{}, pytest.param({"num_seeds": 2, "action_chunk": 3}, marks=pytest.mark.slow)])
def test_a_replay_of_trajectories_that_are_too_short_stops_the_run(tmp_path, capsys, changes):
    """Every episode of one step, or of two where a plan of three needs two later rows: no pair of a state and what came
    of it. Training would learn from whatever lies in the first row."""
    lives = (2, 2) if "action_chunk" in changes else (1, 1)
    config = tiny(output_dir=str(tmp_path), **changes)
    with registered(probe=functools.partial(ProbeEnv, lives=lives)):
        assert training.main(flags(config)) == training.FAILED
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == config.num_seeds
    for seed, line in enumerate(errors):
        assert line.startswith(f"error: seed {seed} stopped: the replay holds nothing to draw")
        assert "at env step 40;" in line  # when the prefill has ended, before the first update
    for path in tmp_path.rglob("failure.json"):
        assert json.loads(path.read_text())["quantity"] == "training/replay_drawable"
        assert len((path.parent / "metrics.csv").read_text().splitlines()) == 2  # the untrained policy's evaluation
    assert len(list(tmp_path.rglob("failure.json"))) == config.num_seeds


def plain_count(traj_id, least):
    """Rows that `least` later ones of the same trajectory follow, in a full ring that begins at its first row."""
    traj_id = np.asarray(traj_id)
    own = [(traj_id[t + 1 :, env] == traj_id[t, env]).sum() for t in range(len(traj_id)) for env in range(4)]
    return sum(each >= least for each in own)


def test_the_rows_that_can_be_drawn_are_reported():
    """Those that two others follow, where a plan has three actions."""
    program = make_probe_program(tiny(action_chunk=3), functools.partial(ProbeEnv, lives=(1, 12)))
    reports, last = run_to_end(program)
    counts = [metrics.get("training/replay_drawable") for _, (metrics,) in reports]
    assert counts[0] is None
    assert last.train_state.buffer_state.position == 0
    assert counts[-1] == plain_count(last.train_state.buffer_state.rows.traj_id, least=2) < 80


def test_each_seed_counts_its_own_once_there_is_something_to_learn_from():
    program = make_probe_program(tiny(num_seeds=2), functools.partial(ProbeEnv, lives=(1, 12)))
    counted = []
    for moment in loop.run(program, (0, 1), silent, seconds_per_chunk=1e-9):
        if moment.drawable is not None:
            counted.append((moment.env_steps, moment.metrics is not None))
    assert counted == [(40, False), (100, True), (160, True)]
    traj_ids = moment.run_state.train_state.buffer_state.rows.traj_id
    assert moment.drawable.tolist() == [plain_count(traj_id, least=1) for traj_id in traj_ids]


def test_an_algorithm_that_can_draw_every_row_counts_them_all():
    program = make_probe_program(tiny())
    program = program._replace(algorithm=program.algorithm._replace(drawable=None))
    reports, _ = run_to_end(program)
    assert [metrics.get("training/replay_drawable") for _, (metrics,) in reports] == [None, 80, 80]
