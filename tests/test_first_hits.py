"""First hits against slow loops: over random episodes with and without deaths, at the ring's seam, at every border."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, slow, tiny_of

from envs import ENVS
from src import first_hits, goals, hazards, replay_buffer, train
from src.algorithms import chrono, srl
from src.first_hits import Outlook, Row

CAPACITY, NUM_ENVS, UNROLL = 24, 3, 4


class GridEnv(ProbeEnv):
    """The state is x, y and where the row is from: env, step. The goal is x, y."""

    state_dim = 4
    goal_dist = 0.6


class Episodes:
    """A ring of random walks on a grid, and plain lists of what it should hold."""

    def __init__(self, seed, mean_length, unrolls):
        self.random = np.random.default_rng(seed)
        self.kept = [[] for _ in range(NUM_ENVS)]  # per env: (place, trajectory, died in this step)
        place, trajectory = np.zeros((NUM_ENVS, 2)), np.zeros(NUM_ENVS, int)
        empty = Row(np.zeros((NUM_ENVS, 4)), np.zeros((NUM_ENVS, 2)), np.zeros(NUM_ENVS, bool), trajectory)
        self.buffer_state = replay_buffer.init(CAPACITY, jax.tree.map(jnp.asarray, empty))
        for unroll in range(unrolls):
            rows = []
            for step in range(UNROLL * unroll, UNROLL * unroll + UNROLL):
                ended = self.random.random(NUM_ENVS) < 1 / mean_length
                died = ended & (self.random.random(NUM_ENVS) < 0.5)
                at = np.stack([np.arange(NUM_ENVS), np.full(NUM_ENVS, step)], axis=-1)
                state = np.concatenate([place, at], axis=-1)
                rows.append(Row(state, -at, died, trajectory.copy()))
                for env in range(NUM_ENVS):
                    self.kept[env].append((place[env].copy(), trajectory[env], died[env]))
                place = np.clip(place + self.random.integers(-1, 2, place.shape), -2, 2)
                place[ended] = 0
                trajectory = trajectory + ended
            stacked = jax.tree.map(lambda *leaves: jnp.asarray(np.stack(leaves)), *rows)
            self.buffer_state = replay_buffer.insert(self.buffer_state, stacked)
        self.first_step = max(0, UNROLL * unrolls - CAPACITY)

    def rest(self, env, step):
        """Places from this row to the end of its stored trajectory, and whether that ended by death."""
        _, trajectory, _ = self.kept[env][step]
        rest = [each for each in self.kept[env][step:] if each[1] == trajectory]
        return [place for place, _, _ in rest], bool(rest[-1][2])

    def number(self, env, step):
        return step % CAPACITY * NUM_ENVS + env


def slow_first_hit(places, died, wanted, window):
    """(first_hit, known) by trying every step."""
    dwell, last = len(wanted), len(places) - len(wanted)
    for k in range(0, min(last, window) + 1):
        if all(np.linalg.norm(places[k + q] - wanted[q]) <= GridEnv.goal_dist for q in range(dwell)):
            return k, None
    return -1, window if died else max(min(last, window), -1)


@pytest.mark.parametrize("dwell", [1, 3])
@pytest.mark.parametrize("window", [2, 7, 23])
@pytest.mark.parametrize("unrolls", [2, 6, 11])
@pytest.mark.parametrize("mean_length", [3, 9, 1000])
def test_first_hits_are_those_of_a_slow_loop(dwell, window, unrolls, mean_length):
    """Of every row with the goals of its own future, its own place and any other row; occupancy too."""
    episodes, env = Episodes(unrolls, mean_length, unrolls), GridEnv()
    outlook = Outlook(window, dwell, 2, hazards.occupancy_bins(window, 3))
    rows, index = episodes.buffer_state.rows, first_hits.index(outlook, (0, 1), episodes.buffer_state)
    random, steps = np.random.default_rng(0), range(episodes.first_step, UNROLL * unrolls)
    picks = []
    for env_of_row, step in ((e, s) for e in range(NUM_ENVS) for s in steps):
        future = random.integers(len(episodes.rest(env_of_row, step)[0]))
        picks += [(env_of_row, step, env_of_row, step + future), (env_of_row, step, env_of_row, step)]
        picks += [(env_of_row, step, random.integers(NUM_ENVS), random.choice(steps)) for _ in range(3)]
    numbers = np.array([(episodes.number(*pick[:2]), episodes.number(*pick[2:])) for pick in picks]).T
    pairs = goals.Pairs(*map(jnp.asarray, numbers))
    gather = jax.jit(lambda *args: first_hits.gather(outlook, env, *args))
    batch = jax.tree.map(np.asarray, gather(rows, index, pairs))
    counts = {"hits": 0, "now": 0, "censored": 0, "never": 0}
    for at, (row_env, step, goal_env, goal_step) in enumerate(picks):
        np.testing.assert_array_equal(batch.state[at, 2:], [row_env, step])
        (places, died), (later, _) = episodes.rest(row_env, step), episodes.rest(goal_env, goal_step)
        wanted = [later[min(q, len(later) - 1)] for q in range(dwell)]
        np.testing.assert_array_equal(batch.goal[at], wanted)
        first_hit, known = slow_first_hit(places, died, wanted, window)
        assert batch.first_hit[at] == first_hit and batch.died[at] == died
        if first_hit < 0:
            assert batch.known[at] == known
        counts["now"] += first_hit == 0
        counts["hits"] += first_hit > 0
        counts["censored"] += first_hit < 0 and not died
        counts["never"] += first_hit < 0 and died
        distance = [np.linalg.norm(place - wanted[0]) for place in places]
        for bin, (start, length) in enumerate(zip(*outlook.occupancy_bins, strict=True)):
            near = [
                sum(distance[k] <= GridEnv.goal_dist / 2**q for q in range(3)) / 3 if k < len(places) else 0
                for k in range(start, start + length)
                if k < len(places) or died
            ]
            assert batch.occupancy.known[at, bin] == bool(near)
            if near:
                assert batch.occupancy.share[at, bin] == pytest.approx(np.mean(near), abs=1e-6)
    assert counts["now"] > 5 and counts["censored"] > 5 and (counts["hits"] > 5 or dwell > 1)
    assert counts["never"] > 5 or mean_length == 1000


def one_trajectory(length, died, goal_at=None):
    """(first_hit, known) of every row of one trajectory that walks along x, then another begins; the goal is at a row
    of it, or nowhere."""
    state = np.zeros((8, 1, 4), np.float32)
    state[:length, 0, 0] = np.arange(length)
    state[length:, 0, 0] = 50
    traj_id = (np.arange(8) >= length).astype(np.int32)[:, None]
    terminated = (np.arange(8) == length - 1)[:, None] & died
    rows = Row(*map(jnp.asarray, (state, np.zeros((8, 1, 2)), terminated, traj_id)))
    buffer_state = replay_buffer.BufferState(rows, jnp.zeros((), jnp.int32), jnp.asarray(8))
    outlook = Outlook(7, 1, 1, None)
    index = first_hits.index(outlook, (0, 1), buffer_state)
    row = jnp.arange(length)
    pairs = goals.Pairs(row, jnp.full(length, 7 if goal_at is None else goal_at))
    batch = first_hits.gather(outlook, GridEnv(), rows, index, pairs)
    return batch.first_hit.tolist(), batch.known.tolist()


def test_what_is_censored_and_where():
    """A goal that this trajectory never reaches: known up to its last stored row, or, if it died, for ever."""
    assert one_trajectory(4, died=False) == ([-1] * 4, [3, 2, 1, 0])
    assert one_trajectory(4, died=True) == ([-1] * 4, [7] * 4)
    first_hit, known = one_trajectory(4, died=False, goal_at=2)
    assert first_hit == [2, 1, 0, -1] and known[3] == 0
    first_hit, known = one_trajectory(4, died=True, goal_at=3)
    assert first_hit == [3, 2, 1, 0]  # reached in the step of its death
    first_hit, known = one_trajectory(4, died=True, goal_at=1)
    assert first_hit == [1, 0, -1, -1] and known[2:] == [7, 7]


def test_a_sequence_is_known_as_long_as_all_of_it_is_stored():
    """Rows 0 to 3, sequences of 3: row 1's ends with the trajectory, later ones say nothing, but after a death."""
    for died, expected in ((False, [1, 0, -1, -1]), (True, [7] * 4)):
        state = np.zeros((8, 1, 4), np.float32)
        traj_id, terminated = (np.arange(8) >= 4).astype(np.int32)[:, None], (np.arange(8) == 3)[:, None] & died
        state[4:, 0, 0] = 50
        rows = Row(*map(jnp.asarray, (state, np.zeros((8, 1, 2)), terminated, traj_id)))
        buffer_state = replay_buffer.BufferState(rows, jnp.zeros((), jnp.int32), jnp.asarray(8))
        outlook = Outlook(7, 3, 1, None)
        index = first_hits.index(outlook, (0, 1), buffer_state)
        pairs = goals.Pairs(jnp.arange(4), jnp.full(4, 5))
        batch = first_hits.gather(outlook, GridEnv(), rows, index, pairs)
        assert batch.first_hit.tolist() == [-1] * 4
        assert batch.known.tolist() == expected


def test_goals_of_sequences_leave_room_for_all_of_them():
    """k + D - 1 later rows are there, if there are that many."""
    episodes = Episodes(3, 1000, 6)
    config = srl.SRLConfig(num_envs=40, batch_size=40, episode_length=20, own_goals=0, other_goals=0)
    index = replay_buffer.index_futures(episodes.buffer_state)
    pairs = goals.draw_pairs(config, "uniform", index, jax.random.key(0), spare=2)
    row, future = (np.asarray(each).reshape(-1) // NUM_ENVS for each in (pairs.row, pairs.future_row))
    ahead = (future - row) % CAPACITY
    left = np.asarray(index.num_future).reshape(-1)[np.asarray(pairs.row).reshape(-1)]
    assert np.all(ahead == np.minimum(ahead, np.maximum(left - 2, 1))) and np.all(ahead >= 1)
    assert np.any(ahead == left - 2)


@pytest.mark.parametrize(
    ("changes", "window"),
    [({}, 1000), ({"action_repeat": 3}, 334), ({"max_replay_size": 620, "min_replay_size": 100}, 619)],
)
def test_the_window_is_an_episode_of_actions_or_what_the_replay_holds(changes, window):
    assert srl.SRLConfig(**changes).window() == window


def test_deaths_are_kept_and_told_from_time_limits():
    """Episodes of at most 8 steps, of which some end before."""
    config = tiny_of(chrono.ChronoConfig, batch_size=4)
    program = make_probe_program(config, functools.partial(ProbeEnv, lives=(3, 12)))
    state = train.init(program, jax.random.key(0))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(4):
        state = collect(state)
    rows = jax.device_get(state.buffer_state.rows)
    ends = rows.traj_id[1:] != rows.traj_id[:-1]
    died = rows.terminated[:-1]
    assert np.any(ends & died) and np.any(ends & ~died) and not np.any(died & ~ends)


def test_humanoids_alone_dwell():
    for name, constructor in ENVS.items():
        env_class = getattr(constructor, "func", constructor)
        assert env_class.dwell == (32 if name.startswith("humanoid") else 1), name


class Dweller(ProbeEnv):
    """Asks for dwelling."""

    dwell = 3


@pytest.mark.parametrize(
    ("method", "probe"), [slow(srl, ProbeEnv), slow(srl, Dweller), slow(chrono, ProbeEnv), (chrono, Dweller)]
)
def test_an_update_moves_every_part(method, probe):
    """With single goals and with sequences, all numbers finite."""
    config = tiny_of(srl.SRLConfig if method is srl else chrono.ChronoConfig, batch_size=4)
    program = make_probe_program(config, probe)
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(0))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(4):
        state = collect(state)

    @jax.jit
    def update(state):
        return train.update(program, state, *train.draw(program, state, jax.random.key(1)), 0, jax.random.key(2))

    after, metrics = update(state)
    assert all(np.isfinite(metric) for metric in metrics.values())
    assert np.isfinite(metrics["hazard_loss"]) and ("time_loss" in metrics) == (method is chrono)
    for old, new in zip(jax.tree.leaves(state.agent_state.params), jax.tree.leaves(after.params), strict=True):
        assert np.all(np.isfinite(new)) and np.any(old != new)
