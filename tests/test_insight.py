"""Pictures of what was learned: the right numbers at the right places, axes with units, nothing where there is none."""

import dataclasses
import errno
from pathlib import Path

import jax
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, tiny

from src import insight
from src.algorithm import policy_of
from src.evaluator import run_episodes
from src.insight import PICTURES, critic_picture, draw_all, energy_of_goals, energy_picture, goals_picture, plane

ROWS = [
    {"env_steps": "0", "eval/episode_success": "0.5"},
    {
        "env_steps": "100",
        "training/logits_pos": "-1.0",
        "training/logits_neg": "-3.5",
        "training/sa_repr_mean": "2.0",
        "training/sa_repr_std": "0.5",
        "training/g_repr_mean": "3.0",
        "training/g_repr_std": "0.25",
    },
]


class OneCoordinate(ProbeEnv):
    """Its goal is x alone."""

    goal_indices = (0,)

    def sample_goal(self, key):
        return super().sample_goal(key)[:1]


def make(probe=ProbeEnv, **changes):
    program = make_probe_program(tiny(**changes), probe)
    agent_state = program.algorithm.init(jax.random.key(1))
    policy = policy_of(program.algorithm, agent_state, deterministic=False)
    episodes = jax.device_get(run_episodes(program.eval_env, policy, 12, jax.random.key(2))[0])
    return program, agent_state, episodes


@pytest.mark.parametrize(
    "changes", [{}, {"normalize_observations": True}, {"action_chunk": 3}, {"num_critics": 2, "action_chunk": 2}]
)
def test_energies_are_the_critics_at_their_places(changes):
    """Of plans, after all actions of a plan, as the policy would carry it out."""
    program, agent_state, episodes = make(**changes)
    x, y = np.linspace(-1, 1, 4), np.linspace(-2, 2, 3)
    state, goal = episodes.start[0], episodes.goal[0]
    energies = energy_of_goals(program, agent_state, state, goal, x, y)
    assert energies.shape == (3, 4)
    place = np.array([x[3], y[1]], np.float32)
    act = policy_of(program.algorithm, agent_state, deterministic=True).act
    memory, actions = program.algorithm.init_memory(()), []
    for _ in range(program.config.action_chunk):
        action, memory = act(memory, np.concatenate([state, place]), None)
        actions.append(action)
    expected = program.algorithm.energy(agent_state, state, np.concatenate(actions), place)
    assert energies[1, 3] == pytest.approx(float(expected), abs=1e-5)
    assert len(np.unique(energies)) == energies.size


def test_reached_and_missed_goals_are_counted_and_placed():
    program, agent_state, episodes = make()
    near = np.where(np.arange(12) < 5, 3.0, 0.0)
    episodes = episodes._replace(totals={**episodes.totals, "success": near})
    figure = goals_picture(program, agent_state, episodes, [])
    axes = figure.axes[0]
    assert "5 of 12" in axes.get_title()
    missed, reached = (np.asarray(collection.get_offsets()) for collection in axes.collections)
    np.testing.assert_allclose(reached, episodes.goal[:5])
    np.testing.assert_allclose(missed, episodes.goal[5:])
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("goal x (m)", "goal y (m)")
    assert figure.axes[1].get_ylabel() == "time near goal (env steps)"
    assert len(axes.patches) == 4  # the square's border


def test_energy_picture_shows_one_scale_for_start_and_end():
    program, agent_state, episodes = make()
    figure = energy_picture(program, agent_state, episodes, [])
    start, end, bar = figure.axes
    assert start.collections[0].get_clim() == end.collections[0].get_clim()
    assert "energy" in bar.get_ylabel()
    low, high = plane(program.env.env, episodes)
    assert (start.get_xlim(), start.get_ylim()) == tuple(zip(low, high, strict=True))


def test_critic_picture_shows_gap_and_norms():
    program, agent_state, episodes = make()
    figure = critic_picture(program, agent_state, episodes, ROWS)
    logits, norms = figure.axes
    assert [line.get_ydata().tolist() for line in logits.lines] == [[-1.0], [-3.5]]
    assert [line.get_ydata().tolist() for line in norms.lines] == [[2.0], [3.0]]
    assert "2.5" in logits.get_title()
    assert all(axes.get_xlabel() == "env steps" for axes in (logits, norms))


def test_what_has_no_data_is_left_out(tmp_path):
    program, agent_state, episodes = make(OneCoordinate)
    assert draw_all(tmp_path, program, agent_state, episodes) == ([], True)  # no plane, no metrics.csv
    program, agent_state, episodes = make()
    paths, complete = draw_all(tmp_path, program, agent_state, episodes)
    assert complete and [path.stem for path in paths] == [name for name in PICTURES if name != "critic"]
    assert all(path.stat().st_size > 1000 for path in paths)


def test_a_picture_that_fails_costs_no_other(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(insight.PICTURES, "energy", lambda *_: 1 / 0)
    paths, complete = draw_all(tmp_path, *make(), suffix="_best")
    assert not complete and [path.name for path in paths] == ["reached_goals_best.png"] and paths[0].exists()
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: picture energy failed, the others are drawn (ZeroDivisionError")


def test_a_full_disk_leaves_no_half_of_a_picture(tmp_path, monkeypatch, capsys):
    (tmp_path / "energy.png").write_bytes(b"old")

    def half(figure, path, **options):
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(insight.Figure, "savefig", half)
    assert draw_all(tmp_path, *make()) == ([], False)
    assert [(path.name, path.read_bytes()) for path in tmp_path.iterdir()] == [("energy.png", b"old")]


def test_the_goal_plane_is_named_after_the_env_it_is_of():
    program, agent_state, episodes = make()
    program = program._replace(config=dataclasses.replace(program.config, eval_env="another"))
    title = energy_picture(program, agent_state, episodes, [])._suptitle.get_text()
    assert title.startswith("another: ")
    assert goals_picture(program, agent_state, episodes, []).axes[0].get_title().startswith("another: ")
