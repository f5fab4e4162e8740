"""Episodes: their ends, their numbers, and a fresh start and goal for each, seen through the loop's own `collect`."""

import functools
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, flags, make_probe_program, slow, tiny

from envs import make_env
from envs.wrappers import VectorEnv
from src import train

TAGGED = functools.partial(ProbeEnv, tagged=True)


@functools.cache
def stored(unrolls, probe=TAGGED, **changes):
    """{(env, traj_id): [(time, position, start, goal), ...]} of all rows of `unrolls` unrolls into a ring that fits."""
    config = tiny(max_replay_size=unrolls * changes.get("unroll_length", 5), **changes)
    program = make_probe_program(config, probe)
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(0))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(unrolls):
        state = collect(state)
    rows = jax.device_get(state.buffer_state.rows)
    episodes = {}
    for (time, env), traj_id in np.ndenumerate(rows.traj_id):
        row = rows.state[time, env]
        episodes.setdefault((env, int(traj_id)), []).append((time, row[:2], row[2:4], row[4:]))
    return episodes


def of_env(episodes, env):
    return [rows for (number, _), rows in sorted(episodes.items(), key=lambda item: item[0]) if number == env]


SHORT = {"episode_length": 4, "unroll_length": 10}
EARLY = functools.partial(ProbeEnv, tagged=True, lives=(3, 7))
KINDS = {
    "time limit": (6, TAGGED, {}),
    "episode shorter than the unroll": (4, TAGGED, SHORT),
    "ends early": (8, EARLY, {"num_envs": 8, "episode_length": 6}),
    "action repeat": (6, TAGGED, {"action_repeat": 3}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_episode_has_its_own_start_and_goal(kind):
    """One through the whole episode, and different from all before it, of this env and of the others."""
    unrolls, probe, changes = KINDS[kind]
    episodes = stored(unrolls, probe, **changes)
    drawn = []
    for rows in episodes.values():
        starts, goals = (np.array([row[at] for row in rows]) for at in (2, 3))
        np.testing.assert_array_equal(starts, np.tile(starts[0], (len(rows), 1)))
        np.testing.assert_array_equal(goals, np.tile(goals[0], (len(rows), 1)))
        np.testing.assert_array_equal(rows[0][1], starts[0])  # an episode's first row is where it starts
        drawn.append((*starts[0], *goals[0]))
    assert len(of_env(episodes, 0)) >= 3
    assert len(set(drawn)) == len(drawn)
    assert np.max(np.abs(np.corrcoef(np.array(drawn).T) - np.eye(4))) < 0.75


@pytest.mark.parametrize("kind", KINDS)
def test_traj_ids_count_the_episodes_of_an_env(kind):
    unrolls, probe, changes = KINDS[kind]
    episodes = stored(unrolls, probe, **changes)
    for env in range(changes.get("num_envs", 4)):
        numbers = sorted(traj_id for number, traj_id in episodes if number == env)
        assert numbers == list(range(len(numbers)))
        times = [row[0] for rows in of_env(episodes, env) for row in rows]
        assert times == sorted(times)


@pytest.mark.parametrize(
    ("changes", "actions"), [({}, 8), (SHORT, 4), ({"action_repeat": 2}, 4), ({"action_repeat": 3}, 3)]
)
def test_episodes_last_as_long_as_the_time_limit(changes, actions):
    """In env steps: an action that is repeated counts as often, and the last one may overshoot."""
    episodes = stored(6, **changes)
    for env in range(4):
        lengths = [len(rows) for rows in of_env(episodes, env)]
        assert set(lengths[:-1]) == {actions}
        assert lengths[-1] <= actions


def test_early_ends_come_when_the_env_says_so():
    unrolls, probe, changes = KINDS["ends early"]
    episodes = stored(unrolls, probe, **changes)
    lengths = [len(rows) for env in range(8) for rows in of_env(episodes, env)[:-1]]
    assert set(lengths) == {3, 4, 5, 6}  # lives of 3 to 7 actions, 6 at most before the time limit


def test_fresh_goals_off_repeats_the_first_start_and_goal():
    episodes = stored(6, TAGGED, fresh_goals=False, **SHORT)
    firsts = []
    for env in range(4):
        drawn = {(*rows[0][2], *rows[0][3]) for rows in of_env(episodes, env)}
        assert len(of_env(episodes, env)) > 10
        assert len(drawn) == 1
        firsts += drawn
    assert len(set(firsts)) == 4


def test_an_env_never_gets_one_start_twice_in_an_unroll():
    """Also when every env ends at every step and the pool of fresh starts is used again."""
    probe = functools.partial(ProbeEnv, tagged=True, lives=(1, 1))
    episodes = stored(1, probe, unroll_length=20, num_envs=8, batch_size=8)
    assert VectorEnv(probe(), 8).pool_size(8, 20) < 8 * 20
    for env in range(8):
        drawn = [(*rows[0][2], *rows[0][3]) for rows in of_env(episodes, env)]
        assert len(drawn) == 20
        assert len(set(drawn)) == 20


# One step at a time.


def vector_step(vector):
    return jax.jit(vector.step)


@pytest.fixture(scope="module")
def lives_of_one_to_four():
    """Four envs that end after 1, 2, 3 and 4 steps of an episode of 3, and the env states of four steps."""
    vector = VectorEnv(ProbeEnv(lives=(9, 9)), episode_length=3)
    env_state = vector.reset(jax.random.key(0), 4)
    env_state = env_state.replace(pipeline_state=env_state.pipeline_state | {"life": jnp.arange(1, 5)})
    step, states = vector_step(vector), [env_state]
    for _ in range(3):
        states.append(step(states[-1], jnp.ones((4, 2))))
    return states


def test_truncation_is_the_time_limit_alone(lives_of_one_to_four):
    """The third env falls in the very step of its time limit: it has ended, but was not cut short."""
    done = np.array([state.done for state in lives_of_one_to_four])
    truncation = np.array([state.truncation for state in lives_of_one_to_four])
    np.testing.assert_array_equal(done[:3], [[0, 0, 0, 0], [1, 0, 0, 0], [1, 1, 0, 0]])
    np.testing.assert_array_equal(done[3], [1, 1, 1, 1])
    np.testing.assert_array_equal(truncation[:3], np.zeros((3, 4)))
    np.testing.assert_array_equal(truncation[3, 2:], [0, 1])


def test_a_reset_starts_from_zero():
    vector = VectorEnv(ProbeEnv(), episode_length=3)
    env_state = vector.reset(jax.random.key(0), 4)
    for leaf in jax.tree.leaves((env_state.metrics, env_state.reward, env_state.done, env_state.truncation)):
        np.testing.assert_array_equal(leaf, np.zeros(4))
    np.testing.assert_array_equal(env_state.steps, np.zeros(4))
    np.testing.assert_array_equal(env_state.traj_id, np.zeros(4))
    assert set(env_state.metrics) == {"dist", "success", "x", "effort"}
    assert len({tuple(goal) for goal in np.asarray(env_state.goal).tolist()}) == 4


def test_begin_replaces_what_has_ended_and_nothing_else(lives_of_one_to_four):
    vector = VectorEnv(ProbeEnv(lives=(9, 9)), episode_length=3)
    after_two = lives_of_one_to_four[2]
    fresh = vector.reset(jax.random.key(1), 4)
    begun = vector.begin(after_two, fresh)
    for field in ("pipeline_state", "state", "goal", "reward", "metrics", "steps", "done", "truncation"):
        leaves = [jax.tree.leaves(getattr(state, field)) for state in (begun, fresh, after_two)]
        for new, first, old in zip(*leaves, strict=True):
            np.testing.assert_array_equal(new[:2], first[:2])
            np.testing.assert_array_equal(new[2:], old[2:])
    np.testing.assert_array_equal(begun.traj_id, [1, 1, 0, 0])


def run_repeated(action_repeat, actions, lives=None):
    vector = VectorEnv(ProbeEnv(lives=lives), episode_length=100, action_repeat=action_repeat)
    env_state = vector.reset(jax.random.key(3), 3)
    step, states = vector_step(vector), [env_state]
    for action in actions:
        states.append(step(states[-1], jnp.tile(jnp.asarray(action), (3, 1))))
    return states


def test_action_repeat_sums_rewards_and_metrics():
    action = (0.3, -0.2)
    single, triple = run_repeated(1, [action] * 6), run_repeated(3, [action] * 2)
    for number, state in enumerate(triple[1:]):
        parts = single[1 + 3 * number : 4 + 3 * number]
        np.testing.assert_allclose(state.state, parts[-1].state, rtol=1e-6)
        np.testing.assert_array_equal(state.steps, parts[-1].steps)
        np.testing.assert_allclose(state.reward, sum(part.reward for part in parts), rtol=1e-6)
        for name, value in state.metrics.items():
            np.testing.assert_allclose(value, sum(part.metrics[name] for part in parts), rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(triple[-1].steps, [6, 6, 6])
    np.testing.assert_allclose(triple[-1].metrics["effort"], 3 * 0.13 * np.ones(3), rtol=1e-5)


def test_what_comes_after_an_early_end_is_not_counted():
    """The probe ends after one of three repeated steps; its position is NaN from then on."""
    state = run_repeated(3, [(0.5, 0.5)], lives=(1, 1))[-1]
    np.testing.assert_array_equal(state.done, np.ones(3))
    np.testing.assert_array_equal(state.truncation, np.zeros(3))
    np.testing.assert_allclose(state.metrics["effort"], 0.5 * np.ones(3), rtol=1e-6)
    first = run_repeated(1, [(0.5, 0.5)])[-1]
    np.testing.assert_allclose(state.metrics["x"], first.metrics["x"], rtol=1e-6)
    np.testing.assert_allclose(state.reward, first.reward, rtol=1e-6)


def test_dense_and_sparse_reward():
    for dense, metric, sign in [(False, "success", 1), (True, "dist", -1)]:
        vector = VectorEnv(ProbeEnv(use_dense_reward=dense), episode_length=5)
        env_state = vector.step(vector.reset(jax.random.key(0), 4), jnp.zeros((4, 2)))
        np.testing.assert_allclose(env_state.reward, sign * env_state.metrics[metric], rtol=1e-6)


def test_actions_of_another_size_are_refused():
    vector = VectorEnv(ProbeEnv(), episode_length=5)
    with pytest.raises(ValueError, match=r"actions of shape \(2,\), got \(3,\)"):
        vector.step(vector.reset(jax.random.key(0), 4), jnp.zeros((4, 3)))


# JAX_ENABLE_X64.


@pytest.mark.parametrize(("name", "backend"), [("point", None), slow("reacher", "mjx"), ("ant", "spring")])
def test_all_that_leaves_an_env_is_float32_and_int32_with_x64_too(name, backend):
    with jax.enable_x64(True):
        vector = VectorEnv(make_env(name, backend), episode_length=5)
        pool = jax.eval_shape(functools.partial(vector.reset, num_envs=4), jax.random.key(0))
        action = jax.ShapeDtypeStruct((4, vector.env.action_size), jnp.float32)
        after = jax.eval_shape(vector.step, pool, action)
        begun, used = jax.eval_shape(vector.restart, after, pool, jax.ShapeDtypeStruct((), jnp.int32))
    types = [jax.tree.map(lambda leaf: leaf.dtype, each) for each in (pool, after, begun)]
    assert types[0] == types[1] == types[2]
    visible = jax.tree_util.tree_leaves_with_path(types[0].replace(pipeline_state=None))
    integers = {jax.tree_util.keystr(path) for path, dtype in visible if dtype == jnp.int32}
    assert integers == {".steps", ".traj_id"} and used.dtype == jnp.int32
    assert all(dtype == jnp.float32 for path, dtype in visible if jax.tree_util.keystr(path) not in integers)


@pytest.mark.slow
def test_training_with_x64(tmp_path):
    program = [sys.executable, str(Path(__file__).parent / "probe_training.py")]
    command = [*program, *flags(tiny(output_dir=str(tmp_path)))]
    process = subprocess.run(command, env=os.environ | {"JAX_ENABLE_X64": "1"}, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert list(tmp_path.rglob("params.npz"))
