"""The ring against a Python list, what is drawn from it against a loop. Rows carry their id in every field."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny
from counts import GOAL_CHANCES, chi_square
from ring import CAPACITY, NUM_ENVS, STATE_DIM, Recorder, empty_ring, make_rows

from src import replay_buffer
from src.algorithms import crl
from src.goals import GOAL_RULES

index_futures = jax.jit(replay_buffer.index_futures, static_argnames="least")


@functools.partial(jax.jit, static_argnums=(2, 3, 4))
def draw(key, buffer_state, shape, discounting, goal_rule="geometric"):
    """The rows and the later rows of pairs as CRL draws them, and the batch of all; goals are whole states."""
    updates, batch_size = shape
    sizes = {"num_envs": updates * batch_size, "episode_length": 2, "batch_size": batch_size}
    config = tiny(**sizes, discounting=discounting, goal_rule=goal_rule)
    index = replay_buffer.index_futures(buffer_state)
    pairs = crl.draw(config, None, buffer_state, index, key)
    assert pairs.row.shape == pairs.future_row.shape == shape
    batch = crl.gather(1, tuple(range(STATE_DIM)), buffer_state.rows, index, jax.tree.map(jnp.ravel, pairs))
    return pairs.row, pairs.future_row, batch


# The ring.


@pytest.mark.parametrize("unroll", [1, 3, 4, 12])
def test_the_ring_keeps_the_newest_rows_in_every_field(unroll):
    recorder = Recorder(mean_length=5)
    for _ in range(30 // unroll):
        recorder.add(unroll)
        ring = recorder.buffer_state
        assert ring.size == len(recorder.kept)
        assert ring.position == recorder.steps % CAPACITY
        for step, traj in recorder.kept:
            slot = step % CAPACITY
            np.testing.assert_array_equal(ring.rows.traj_id[slot], traj)
            np.testing.assert_array_equal(ring.rows.state[slot].T, [range(NUM_ENVS), [step] * NUM_ENVS, traj])
            np.testing.assert_array_equal(ring.rows.action[slot].T, [-np.arange(NUM_ENVS), [-step] * NUM_ENVS])


def test_an_empty_ring_has_nothing_to_draw():
    empty = empty_ring()
    assert empty.size == empty.position == 0
    index = index_futures(empty)
    assert index.rank[-1] == 0
    assert not np.any(index.num_future)


def test_unrolls_that_do_not_divide_the_ring_are_refused():
    ring = empty_ring()
    rows = make_rows(np.zeros((5, NUM_ENVS)), np.zeros((5, NUM_ENVS)))
    with pytest.raises(ValueError, match="12 rows cannot take 5 rows"):
        replay_buffer.insert(ring, rows)


@pytest.mark.parametrize(("field", "shape"), [("state", (4, 3, 2)), ("action", (4, 3, 3)), ("traj_id", (4, 2))])
def test_rows_of_other_shapes_are_refused(field, shape):
    ring = empty_ring()
    rows = make_rows(np.zeros((4, NUM_ENVS)), np.zeros((4, NUM_ENVS)))
    with pytest.raises(ValueError, match="do not fit"):
        replay_buffer.insert(ring, rows.replace(**{field: jnp.zeros(shape)}))


# Which rows can be drawn, and how often.


@pytest.mark.parametrize("mean_length", [1.5, 4, 30])
@pytest.mark.parametrize("seed", range(3))
def test_futures_are_counted_to_the_end_of_the_stored_trajectory(mean_length, seed):
    """Empty, half full, just full, wrapped: episodes that ended, that continue, and whose start is overwritten."""
    recorder = Recorder(mean_length, seed=seed)
    for _ in range(8):
        recorder.add()
        num_future = np.asarray(index_futures(recorder.buffer_state).num_future)
        expected = np.zeros((CAPACITY, NUM_ENVS), int)
        for (env, step), count in recorder.futures().items():
            expected[step % CAPACITY, env] = count
        np.testing.assert_array_equal(num_future, expected)


@pytest.mark.parametrize("least", [0, 1, 2])
@pytest.mark.parametrize("mean_length", [1.5, 4, 30])
def test_rows_with_enough_later_ones_can_be_drawn_and_no_others(least, mean_length):
    """With 0 also the last row of a trajectory, the only one that can say that its episode terminated. Never a row that
    is not filled yet."""
    recorder = Recorder(mean_length, seed=7)
    for _ in range(6):
        recorder.add()
        index = index_futures(recorder.buffer_state, least=least)
        expected = {
            step % CAPACITY * NUM_ENVS + env for (env, step), count in recorder.futures().items() if count >= least
        }
        assert index.rank[-1] == len(expected)
        if expected:
            row = replay_buffer.sample_rows(jax.random.key(recorder.steps), index, (2000,))
            assert set(np.asarray(row).tolist()) == expected


@pytest.mark.parametrize("unrolls", [1, 2, 3, 5])
@pytest.mark.parametrize("mean_length", [2, 6, 100])
def test_pairs_are_later_rows_of_the_same_trajectory(unrolls, mean_length):
    """Never across the end of an episode, never across the seam of the ring, and never from the wrong env."""
    recorder = Recorder(mean_length, seed=unrolls)
    for _ in range(unrolls):
        recorder.add()
    (row,), (future_row,), batch = draw(jax.random.key(unrolls), recorder.buffer_state, (1, 4000), 0.9)
    env, step, traj = np.asarray(batch.state, int).T
    future_env, future_step, future_traj = np.asarray(batch.future_goal, int).T

    np.testing.assert_array_equal(env, future_env)
    np.testing.assert_array_equal(traj, future_traj)
    assert np.all(future_step > step)
    np.testing.assert_array_equal(batch.action, np.stack([-env, -step], axis=-1))
    np.testing.assert_array_equal(row, step % CAPACITY * NUM_ENVS + env)
    np.testing.assert_array_equal(future_row, future_step % CAPACITY * NUM_ENVS + future_env)
    # Every row that has a future is drawn, no other is, and the farthest goals are reached.
    futures = {at: count for at, count in recorder.futures().items() if count}
    farthest = {}
    for at, distance in zip(zip(env.tolist(), step.tolist(), strict=True), (future_step - step).tolist(), strict=True):
        farthest[at] = max(distance, farthest.get(at, 0))
    assert farthest.keys() == futures.keys()
    assert all(farthest[at] <= futures[at] for at in futures)
    assert sum(farthest[at] == futures[at] for at in futures) >= 0.8 * len(futures)


def test_rows_are_drawn_uniformly():
    recorder = Recorder(mean_length=6, seed=4)
    for _ in range(5):
        recorder.add()
    (row,), _, _ = draw(jax.random.key(0), recorder.buffer_state, (1, 60_000), 0.9)
    valid = [step % CAPACITY * NUM_ENVS + env for (env, step), count in recorder.futures().items() if count]
    assert 10 < len(valid) < CAPACITY * NUM_ENVS
    counts = np.bincount(row, minlength=CAPACITY * NUM_ENVS)
    assert set(np.flatnonzero(counts)) == set(valid)
    assert chi_square(counts[valid], np.full(len(valid), 1 / len(valid))) > 1e-3


def test_batches_of_one_draw_differ():
    recorder = Recorder(mean_length=20)
    recorder.add(12)
    row, _, _ = draw(jax.random.key(0), recorder.buffer_state, (50, 8), 0.9)
    assert len({tuple(batch) for batch in np.asarray(row).tolist()}) == 50


# How far ahead goals lie.


@pytest.mark.parametrize("goal_rule", GOAL_RULES)
def test_goals_of_the_whole_sampler_follow_the_rule(goal_rule):
    """Of one row with m rows after it, one that lies before the seam and reaches over it."""
    recorder = Recorder(mean_length=1e9, num_envs=1)
    for _ in range(5):
        recorder.add()
    (row,), (future_row,), _ = draw(jax.random.key(1), recorder.buffer_state, (1, 100_000), 0.7, goal_rule)
    oldest = recorder.kept[0][0] % CAPACITY
    assert oldest > 0
    for age in (0, 3, 8):
        of_row = np.asarray(row) == (oldest + age) % CAPACITY
        k = (np.asarray(future_row)[of_row] - np.asarray(row)[of_row]) % CAPACITY
        num_future = CAPACITY - 1 - age
        chances = GOAL_CHANCES[goal_rule](num_future, 0.7)
        assert chi_square(np.bincount(k, minlength=num_future + 1)[1:], chances) > 1e-3
