"""Goals: how far ahead those of hindsight lie, by every rule; mixtures; which are commanded, by every proposal."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, tiny
from counts import GOAL_CHANCES, chi_square, exact_geometric
from ring import CAPACITY, NUM_ENVS, UNROLL, Recorder

from src import goals, replay_buffer, train
from src.algorithms import crl
from src.goals import GOAL_RULES, PROPOSALS

DRAWS = 100_000

rules = {name: jax.jit(rule, static_argnums=2) for name, rule in GOAL_RULES.items()}


@pytest.mark.parametrize("name", GOAL_RULES)
@pytest.mark.parametrize("num_future", [1, 2, 7, 60, 999])
@pytest.mark.parametrize("discounting", [1e-3, 0.5, 0.9, 0.99, 0.9999, 1 - 1e-9, 1 - 1e-16])
def test_goals_lie_as_far_ahead_as_their_rule_says(name, num_future, discounting):
    """Up to the discount that float32 would round to 1, where all steps are equally likely."""
    u = jax.random.uniform(jax.random.key(num_future), (DRAWS,))
    k = np.asarray(rules[name](u, jnp.full(u.shape, num_future), discounting))
    assert k.min() >= 1
    assert k.max() <= num_future
    counts = np.bincount(k, minlength=num_future + 1)[1:]
    assert chi_square(counts, GOAL_CHANCES[name](num_future, discounting)) > 1e-3


def test_the_chi_square_can_fail():
    """What likely mistakes would draw: geometric without truncation, clipped to the last row; the last row but one."""
    k = np.minimum(np.random.default_rng(0).geometric(0.1, DRAWS), 7)
    assert chi_square(np.bincount(k, minlength=8)[1:], exact_geometric(7, 0.9)) < 1e-9
    assert chi_square([500, 500], [0.5, 0.5]) == pytest.approx(1)
    assert chi_square([0, 500, 0], [0, 0, 1]) == 0


@pytest.mark.parametrize("name", GOAL_RULES)
@pytest.mark.parametrize("u", [0.0, float(np.nextafter(np.float32(1), np.float32(0)))])
@pytest.mark.parametrize("num_future", [1, 2, 1000])
def test_the_ends_of_the_uniform_draw_stay_inside(name, u, num_future):
    k = rules[name](jnp.float32(u), jnp.asarray(num_future), 0.99)
    assert k == (1 if u == 0 and name != "last" else num_future)


# Mixtures: rows that learn to reach what they, or other rows of their batch, have achieved.


def batch_of(key=0, **changes):
    """Pairs and batch of one update on a ring whose states spell (env, step, traj_id); the goal is (step, env)."""
    config = tiny(num_envs=40, batch_size=40, **changes)
    buffer_state = ring_after(5)
    index = replay_buffer.index_futures(buffer_state)
    pairs = jax.tree.map(lambda leaf: leaf[0], crl.draw(config, None, buffer_state, index, jax.random.key(key)))
    return pairs, jax.tree.map(np.asarray, crl.gather(1, (1, 0), buffer_state.rows, index, pairs))


def test_without_shares_the_pairs_are_those_that_they_always_were():
    """In every digit: rows by the first half of the key, distances by the second, nothing else."""
    index = replay_buffer.index_futures(ring_after(5))
    row_key, future_key = jax.random.split(jax.random.key(0))
    config = tiny(num_envs=40, batch_size=40)
    row = replay_buffer.sample_rows(row_key, index, (config.updates_per_training_step(), 40))
    u = jax.random.uniform(future_key, row.shape)
    k = goals.geometric(u, index.num_future.reshape(-1)[row], config.discounting)
    pairs, batch = batch_of()
    assert pairs.crossed is None
    np.testing.assert_array_equal(pairs.row, row[0])
    np.testing.assert_array_equal(pairs.future_row, replay_buffer.later_row(row, k, (CAPACITY, NUM_ENVS))[0])
    np.testing.assert_array_equal(batch.future_goal[:, 1], batch.state[:, 0])


@pytest.mark.parametrize(
    ("own", "other", "rows"), [(0.0, 0.25, (0, 10)), (0.05, 0.1, (2, 4)), (1.0, 0.0, (40, 0)), (0.001, 0.0, (1, 0))]
)
def test_shares_of_the_rows_learn_from_goals_of_their_own_and_of_others(own, other, rows):
    _, without = batch_of()
    _, batch = batch_of(own_goals=own, other_goals=other)
    own_rows, other_rows = rows
    np.testing.assert_array_equal(batch.state, without.state)
    np.testing.assert_array_equal(batch.action, without.action)
    for at in range(40):
        env, step, _ = batch.state[at]
        expected = tuple(without.future_goal[at])
        if at >= 40 - own_rows:
            expected = (step, env)
        elif at >= 40 - own_rows - other_rows:
            expected = tuple(batch.state[(at + 1) % 40, [1, 0]])
        assert tuple(batch.future_goal[at]) == expected


def test_crossed_rows_take_the_goal_of_their_nearest_neighbour():
    random = np.random.default_rng(0)
    state, goal = random.standard_normal((30, 5)) + 20, random.standard_normal((30, 2))
    crossed = random.random(30) < 0.5
    result = np.asarray(goals.cross(jnp.asarray(crossed), jnp.asarray(state), jnp.asarray(goal)))
    for at in range(30):
        distances = [np.inf if other == at else np.sum((state[at] - state[other]) ** 2) for other in range(30)]
        expected = goal[np.argmin(distances)] if crossed[at] else goal[at]
        np.testing.assert_array_equal(result[at], expected.astype(np.float32))
    assert 5 < np.sum(np.any(result != goal.astype(np.float32), axis=1)) < 25


def test_rows_are_crossed_with_their_probability():
    """Each on its own: a small one crosses none of most batches."""
    draws = np.concatenate([batch_of(key, crosse=0.01)[0].crossed for key in range(50)])
    assert chi_square([np.sum(draws), np.sum(~draws)], [0.01, 0.99]) > 1e-3
    pairs, batch = batch_of(crosse=1.0)
    own = replay_buffer.take(ring_after(5).rows.state, pairs.future_row)[:, jnp.array([1, 0])]
    np.testing.assert_array_equal(batch.future_goal, goals.cross(pairs.crossed, jnp.asarray(batch.state), own))
    assert np.any(batch.future_goal != own)


# Commanded goals.


def ring_after(unrolls):
    """A ring after so many unrolls, whose states spell (env, step, traj_id)."""
    recorder = Recorder(mean_length=5)
    for _ in range(unrolls):
        recorder.add()
    return recorder.buffer_state


OWN = jnp.full((DRAWS, 2), -1.0)


@pytest.mark.parametrize("unrolls", [1, 2, 3, 5])
def test_achieved_goals_are_those_of_stored_rows_each_equally_likely(unrolls):
    """Half full, just full, wrapped; the goal is (step, env)."""
    goals = np.asarray(PROPOSALS["achieved"](jax.random.key(unrolls), ring_after(unrolls), OWN, (1, 0)), int)
    newest, stored = UNROLL * unrolls, min(UNROLL * unrolls, CAPACITY)
    steps, envs = goals.T - np.array([[newest - stored], [0]])
    assert set(envs) == set(range(NUM_ENVS))
    counts = np.bincount(steps * NUM_ENVS + envs, minlength=stored * NUM_ENVS)
    assert chi_square(counts, np.full(stored * NUM_ENVS, 1 / (stored * NUM_ENVS))) > 1e-3


def test_before_the_replay_holds_rows_the_goals_are_the_environments_own():
    own = jax.random.normal(jax.random.key(1), (50, 2))
    goals = jax.jit(PROPOSALS["achieved"], static_argnums=3)(jax.random.key(0), ring_after(0), own, (1, 0))
    np.testing.assert_array_equal(goals, own)


@pytest.mark.parametrize("name", [name for name, propose in PROPOSALS.items() if propose is not None])
def test_proposals_depend_on_their_key_and_have_the_shape_of_the_environments_goals(name):
    one, other = (PROPOSALS[name](jax.random.key(key), ring_after(3), OWN[:40], (1, 0)) for key in (0, 1))
    assert one.shape == other.shape == (40, 2)
    assert np.any(one != other)


def test_fresh_starts_are_commanded_goals_that_were_achieved_before():
    """And the start is drawn for that goal. In the first unroll the environment's own are all there is."""
    config = tiny(goal_proposal="achieved", num_envs=8, batch_size=8, max_replay_size=40)
    program = make_probe_program(config, functools.partial(ProbeEnv, lives=(2, 6), tagged=True))
    program = program._replace(algorithm=program.algorithm._replace(keep=lambda step: step))
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(2))
    collect = jax.jit(functools.partial(train.collect, program))
    begun = 0
    for unroll in range(8):
        old, new = slice(5 * unroll), slice(5 * unroll, 5 * unroll + 5)
        before = np.asarray(state.env_state.traj_id)
        state = collect(state)
        rows = jax.device_get(state.buffer_state.rows)
        achieved = {place.tobytes() for place in rows.state[old, :, :2].reshape(-1, 2)}
        fresh = rows.traj_id[new] > before
        goals = rows.goal[new][fresh]
        assert {goal.tobytes() in achieved for goal in goals} == {unroll > 0}
        np.testing.assert_array_equal(rows.state[new][fresh][:, 4:], goals)
        begun += len({goal.tobytes() for goal in goals})
    assert begun > 40
