"""Rows with rewards and goals in hindsight: a chain worked by hand, the rules against exact probabilities."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats
from conftest import Fleeing, ProbeEnv, make_probe_program, tiny_of

from src import hindsight, replay_buffer, train
from src.algorithm import Step
from src.algorithms.sac import SACConfig
from src.command_line import parse_config
from src.registries import REGISTRIES
from utils import ConfigError

# A chain of places 0 to 4 on a line, one env: a walk from 0 to 4, where the episode ends; then one from 0 to 1 that its
# time limit ends; then a step whose physics blows up. Stored rewards are marks that no reward would have.
PLACES = [0, 1, 2, 3, 0, 0]
NEXT = [1, 2, 3, 4, 1, 0]
REWARDS = [10, 11, 12, 13, 14, 15]
TRAJECTORIES = [0, 0, 0, 0, 1, 2]


def column(values, dtype=jnp.float32):
    return jnp.asarray(values, dtype)[:, None]


def places(values):
    return jnp.stack([column(values), jnp.zeros((len(values), 1))], axis=-1)


@pytest.fixture(scope="module")
def chain():
    """The ring of the chain, commanded goal 4 everywhere."""
    size = len(PLACES)
    steps = Step(
        state=places(PLACES),
        goal=places([4] * size),
        action=places(range(size)),
        next_state=places(NEXT),
        reward=column(REWARDS),
        terminated=column([0, 0, 0, 1, 0, 0], bool),
        truncated=column([0, 0, 0, 0, 1, 0], bool),
        blown_up=column([0, 0, 0, 0, 0, 1], bool),
        traj_id=column(TRAJECTORIES, jnp.int32),
    )
    rows = hindsight.keep(steps)
    empty = replay_buffer.init(size, jax.tree.map(lambda leaf: leaf[0], rows))
    return replay_buffer.insert(empty, rows)


def pick(row, goal_row):
    return hindsight.Picks(jnp.asarray(row), None if goal_row is None else jnp.asarray(goal_row), jnp.asarray(7))


def test_relabelled_rows_of_the_chain(chain):
    """Reward and success are those of the state after the action: a row that ends where the goal lies has reward 1."""
    rows, goal_rows = [0, 0, 1, 2, 2, 3, 3, 4], [0, 2, -1, 3, 2, 3, -1, 4]
    batch = hindsight.gather(ProbeEnv(), chain.rows, (), pick(rows, goal_rows))
    np.testing.assert_array_equal(batch.goal[:, 0], [1, 3, 4, 4, 3, 4, 4, 1])
    np.testing.assert_array_equal(batch.reward, [1, 0, 11, 0, 1, 1, 13, 1])
    np.testing.assert_array_equal(batch.terminated, [0, 0, 0, 0, 0, 1, 1, 0])
    np.testing.assert_array_equal(batch.state[:, 0], [0, 0, 1, 2, 2, 3, 3, 0])
    np.testing.assert_array_equal(batch.next_state[:, 0], [1, 1, 2, 3, 3, 4, 4, 1])
    np.testing.assert_array_equal(batch.action[:, 0], rows)
    assert batch.number == 7


def test_without_hindsight_a_batch_is_what_was_stored(chain):
    batch = hindsight.gather(ProbeEnv(), chain.rows, (), pick([3, 1, 4], None))
    stored = replay_buffer.take(chain.rows, jnp.array([3, 1, 4]))
    for name in ("state", "action", "goal", "reward", "next_state", "terminated"):
        np.testing.assert_array_equal(getattr(batch, name), getattr(stored, name))


def test_the_last_row_of_a_trajectory_is_drawn_and_what_blew_up_is_not(chain):
    config = tiny_of(SACConfig, batch_size=64)
    picks = hindsight.draw(config, None, chain, hindsight.index(chain), jax.random.key(0))
    assert set(np.asarray(picks.row).flat) == {0, 1, 2, 3, 4}
    assert hindsight.index(chain).rank[-1] == 5


# Draws, on a ring that has gone round.

CAPACITY, NUM_ENVS = 16, 3


@pytest.fixture(scope="module")
def ring():
    """A ring of 16 rows per env after 24 steps of random episodes, some of which blow up, and (time, env, trajectory)
    of what it holds, in order, as plain numbers."""
    random = np.random.default_rng(3)
    held, traj, buffer_state = [], np.zeros(NUM_ENVS, int), None
    for time in range(24):
        blown_up = random.random(NUM_ENVS) < 0.1
        flag, vector = jnp.zeros(NUM_ENVS, bool), jnp.full((NUM_ENVS, 2), float(time))
        step = Step(
            state=vector,
            goal=vector,
            action=vector,
            next_state=vector,
            reward=vector[:, 0],
            terminated=flag,
            truncated=flag,
            blown_up=jnp.asarray(blown_up),
            traj_id=jnp.asarray(traj, jnp.int32),
        )
        row = hindsight.keep(step)
        buffer_state = buffer_state or replay_buffer.init(CAPACITY, row)
        buffer_state = replay_buffer.insert(buffer_state, jax.tree.map(lambda leaf: leaf[None], row))
        held += [(time, env, traj[env]) for env in range(NUM_ENVS) if not blown_up[env]]
        traj = traj + (blown_up | (random.random(NUM_ENVS) < 0.15))
    assert len(held) < 24 * NUM_ENVS
    return buffer_state, [each for each in held if each[0] >= 24 - CAPACITY]


def expected(held, rule, ratio, discounting):
    """{(row, goal row): probability}, flat numbers in the ring, -1 for the commanded goal."""
    found = {}
    for time, env, traj in held:
        row = time % CAPACITY * NUM_ENVS + env
        later = [t % CAPACITY * NUM_ENVS + e for t, e, j in held if (e, j) == (env, traj) and t >= time]
        weights = {
            "future": np.ones(len(later)),
            "geometric": discounting ** np.arange(1, len(later) + 1),
            "final": np.eye(len(later))[-1],
        }[rule]
        found[row, -1] = (1 - ratio) / len(held)
        for goal_row, share in zip(later, weights / weights.sum(), strict=True):
            if share:
                found[row, goal_row] = ratio * share / len(held)
    return found


@pytest.mark.parametrize("rule", hindsight.HER_RULES)
@pytest.mark.parametrize("ratio", [0.3, 1.0])
def test_rows_and_goals_are_drawn_with_the_right_probabilities(ring, rule, ratio):
    """Uniform rows, a share of them with a goal by the rule, from this row on to the last one of the trajectory that
    is held: never one of another trajectory, nor across the ring's seam, nor one that blew up."""
    buffer_state, held = ring
    config = tiny_of(SACConfig, her_ratio=ratio, her_rule=rule, batch_size=40_000, discounting=0.7)
    draw = jax.jit(functools.partial(hindsight.draw, config))
    picks = draw(None, buffer_state, hindsight.index(buffer_state), jax.random.key(1))
    pairs, counts = np.unique(np.stack([picks.row, picks.goal_row], -1).reshape(-1, 2), axis=0, return_counts=True)
    probabilities = {pair: p for pair, p in expected(held, rule, ratio, 0.7).items() if p}
    assert {tuple(map(int, pair)) for pair in pairs} == set(probabilities)
    wanted = [probabilities[tuple(map(int, pair))] * counts.sum() for pair in pairs]
    assert scipy.stats.chisquare(counts, wanted).pvalue > 1e-3


def test_the_rows_are_the_same_with_and_without_hindsight(ring):
    buffer_state, _ = ring
    index = hindsight.index(buffer_state)
    plain, hindsighted = (
        hindsight.draw(tiny_of(SACConfig, her_ratio=ratio), None, buffer_state, index, jax.random.key(2))
        for ratio in (0.0, 0.8)
    )
    np.testing.assert_array_equal(plain.row, hindsighted.row)
    np.testing.assert_array_equal(plain.row, replay_buffer.sample_rows(first_key(2), index, plain.row.shape))
    assert plain.goal_row is None
    np.testing.assert_array_equal(plain.number, range(len(plain.row)))
    never = hindsighted.replace(goal_row=jnp.full_like(hindsighted.goal_row, -1))
    for at in range(len(plain.row)):
        batches = [
            hindsight.gather(ProbeEnv(), buffer_state.rows, index, jax.tree.map(lambda leaf: leaf[at], picks))  # noqa: B023
            for picks in (plain, never)
        ]
        assert all(map(np.array_equal, *map(jax.tree.leaves, batches)))


def first_key(seed):
    return jax.random.split(jax.random.key(seed), 3)[0]


# What the loop stores.


@pytest.mark.parametrize(("probe", "ends"), [(ProbeEnv, True), (ProbeEnv, False), (Fleeing, True)])
def test_the_loop_stores_what_the_environment_rewarded(probe, ends):
    """The env's own sparse reward of every row is the one that hindsight would give for its goal; the next state of a
    row is the next row's state; only an end that the environment made is one, not the time limit."""
    config = tiny_of(SACConfig, num_envs=16, unroll_length=10, max_replay_size=40, batch_size=16)
    program = make_probe_program(config, functools.partial(probe, lives=(3, 12), ends=ends))
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(2))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(4):
        state = collect(state)
    rows, env = jax.device_get(state.buffer_state.rows), program.env.env
    learned = rows.traj_id >= 0
    np.testing.assert_array_equal((env.goal_distance(rows.next_state, rows.goal) < 0.2)[learned], rows.reward[learned])
    assert 0 < rows.reward.mean() < 0.5
    follows = (rows.traj_id[1:] == rows.traj_id[:-1]) & learned[1:]
    np.testing.assert_array_equal(rows.next_state[:-1][follows], rows.state[1:][follows])
    assert not np.any(rows.terminated[:-1][follows])
    lengths = np.diff(np.flatnonzero(~follows[:, 0]))
    assert lengths.max() == config.episode_length  # some episodes end by their time limit
    assert np.any(rows.terminated) == ends
    assert np.all(learned) == ends
    last = ~follows & learned[:-1]
    assert np.any(last & ~rows.terminated[:-1])


# Refusals.


def parse(*args):
    return parse_config(["--algorithm", "sac", *args], REGISTRIES)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--her_ratio", "1.5"], "--her_ratio 1.5 is out of range: it must be at most 1"),
        (["--her_ratio=-0.1"], "--her_ratio -0.1 is out of range: it must be finite and at least 0"),
        (["--her_rule", "next"], "--her_rule: unknown hindsight rule 'next': choose from final, future, geometric"),
        (["--her_ratio", "0.5", "--use_dense_reward"], "--her_ratio 0.5 needs the sparse reward"),
        (["--her_ratio", "0.5", "--action_repeat", "2"], "--her_ratio 0.5 needs --action_repeat 1, not 2"),
        (["--tau", "1.5"], "--tau 1.5 is out of range"),
    ],
)
def test_what_cannot_be_done_is_refused(args, message):
    with pytest.raises(ConfigError, match=message.replace("'", ".")) as refusal:
        parse(*args)
    assert "\n" not in str(refusal.value)


def test_what_hindsight_cannot_do_the_plain_method_can():
    assert parse("--use_dense_reward", "--action_repeat", "2").her_ratio == 0
