"""What the loop and an algorithm say to each other: a step as it happened, what a policy remembers of an episode."""

import functools

import counting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, slow, tiny

from scripts import evaluate
from src import loop, train
from src.algorithm import policy_of, step_shapes
from src.checkpoint import device_tree, host_arrays
from src.evaluator import run_episodes
from src.player import Player
from src.video import record


def counting_program(config, **probe_options):
    program = make_probe_program(config, functools.partial(ProbeEnv, **probe_options))
    return program._replace(algorithm=counting.make(config, program.env.env))


def collected(program, unrolls, key=2):
    """The state after so many unrolls, and the rows of all of them (T, N, ...)."""
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(key))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(unrolls):
        state = collect(state)
    assert unrolls * program.config.unroll_length == program.schedule.replay_rows
    return jax.device_get(state.replace(key=jax.random.key_data(state.key))), jax.device_get(state.buffer_state.rows)


# What a step holds.

EIGHT = tiny(num_envs=8, batch_size=8, max_replay_size=40)


@pytest.mark.parametrize(("lives", "ends"), [(None, True), ((1, 12), True), ((1, 12), False)])
def test_a_step_is_what_happened(lives, ends):
    """Row by row the probe's dynamics. In its last step an episode has ended, but nothing has begun yet."""
    program = counting_program(EIGHT, lives=lives, ends=ends)
    state, rows = collected(program, 8)
    flags = np.stack([rows.terminated, rows.truncated, rows.blown_up])
    assert flags.sum(axis=0).max() == 1
    moved = np.clip(rows.state + 0.1 * rows.action, -1, 1)
    expected = np.where(rows.blown_up[..., None], rows.state, moved)
    np.testing.assert_allclose(rows.next_state, expected, atol=1e-6)
    near = np.linalg.norm(moved - rows.goal, axis=-1) < ProbeEnv.goal_dist
    np.testing.assert_array_equal(rows.reward, np.where(rows.blown_up, 0.0, near))
    assert 0 < rows.reward.mean() < 1

    ended = flags.any(axis=0)[:-1]
    same = rows.traj_id[1:] == rows.traj_id[:-1]
    np.testing.assert_array_equal(same, ~ended)
    np.testing.assert_array_equal(rows.traj_id, np.concatenate([np.zeros((1, 8)), np.cumsum(ended, axis=0)]))
    np.testing.assert_array_equal(rows.state[1:][same], rows.next_state[:-1][same])
    np.testing.assert_array_equal(rows.goal[1:][same], rows.goal[:-1][same])
    assert np.abs(rows.state[1:][~same] - rows.next_state[:-1][~same]).max(axis=-1).min() > 1e-4
    assert np.abs(rows.goal[1:][~same] - rows.goal[:-1][~same]).max(axis=-1).min() > 1e-4


@pytest.mark.parametrize(("lives", "ends"), [(None, True), ((1, 12), True), ((1, 12), False)])
def test_an_episode_ends_for_one_reason(lives, ends):
    """Its time limit of 8 steps, its env's own word, which counts more, or its physics, a step after it would have
    ended otherwise."""
    program = counting_program(EIGHT, lives=lives, ends=ends)
    _, rows = collected(program, 8)
    reasons = set()
    for env in range(8):
        for number in range(rows.traj_id[-1, env]):
            own = rows.traj_id[:, env] == number
            length, last = own.sum(), np.flatnonzero(own)[-1]
            reason = [name for name in ("terminated", "truncated", "blown_up") if getattr(rows, name)[last, env]]
            assert reason == ["truncated"] or length <= 8 and reason == ["terminated" if ends else "blown_up"]
            assert (length == 8) or reason != ["truncated"]
            reasons.add((*reason, bool(length == 8)))
    of_lives = {("terminated" if ends else "blown_up", False), ("terminated" if ends else "blown_up", True)}
    assert reasons == {("truncated", True)} | (of_lives if lives else set())


def test_a_step_with_repeated_actions_sums_the_rewards_and_has_one_next_state():
    program = counting_program(tiny(num_envs=8, batch_size=8, max_replay_size=40, action_repeat=3))
    _, rows = collected(program, 8)
    position, reward = rows.state, 0
    for _ in range(3):
        position = np.clip(position + 0.1 * rows.action, -1, 1)
        reward = reward + (np.linalg.norm(position - rows.goal, axis=-1) < ProbeEnv.goal_dist)
    whole = ~rows.truncated  # two of the 8 env steps are left for the third action
    np.testing.assert_allclose(rows.next_state[whole], position[whole], atol=1e-6)
    np.testing.assert_array_equal(rows.reward[whole], reward[whole])


def test_the_shapes_of_a_step_are_those_of_what_happens():
    program = counting_program(EIGHT)
    state = jax.eval_shape(functools.partial(train.init, program), jax.random.key(0))
    arguments = state.agent_state, state.env_state, state.memory, jax.random.key(0)
    _, _, happened = jax.eval_shape(functools.partial(train.take_step, program), *arguments)
    expected = step_shapes(program.env.env, 8)
    assert jax.tree.structure(happened) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(happened), jax.tree.leaves(expected), strict=True):
        assert (one.shape, one.dtype) == (other.shape, other.dtype)


def test_a_run_that_repeats_its_first_starts_returns_to_them():
    program = counting_program(tiny(num_envs=8, batch_size=8, max_replay_size=40, fresh_goals=False), lives=(2, 12))
    state, rows = collected(program, 8)
    first = state.first_env_state
    begun = np.flatnonzero(np.diff(rows.traj_id, axis=0, prepend=-1))
    np.testing.assert_array_equal(rows.state.reshape(-1, 2)[begun], first.state[begun % 8])
    np.testing.assert_array_equal(rows.goal, np.broadcast_to(first.goal, rows.goal.shape))


# What a policy remembers.


@pytest.mark.parametrize("fresh_goals", [True, False])
@pytest.mark.parametrize(
    ("action_repeat", "lives", "ends"), [(1, None, True), (1, (1, 12), True), (1, (1, 12), False), (2, (1, 12), True)]
)
def test_memory_is_fresh_where_an_episode_begins_and_kept_elsewhere(fresh_goals, action_repeat, lives, ends):
    """The algorithm counts its own actions, the env its steps."""
    config = tiny(num_envs=8, batch_size=8, action_repeat=action_repeat, fresh_goals=fresh_goals)
    program = counting_program(config, lives=lives, ends=ends)
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(2))
    collect = jax.jit(functools.partial(train.collect, program))
    np.testing.assert_array_equal(state.memory, np.zeros(8))
    seen = set()
    for _ in range(8):
        state = collect(state)
        np.testing.assert_array_equal(state.memory * action_repeat, state.env_state.steps)
        seen |= set(np.asarray(state.memory).tolist())
    assert {0, 1} <= seen


def circle(start, actions):
    """(T, N, 2) where the counting policy goes from its first actions on."""
    positions = [start]
    for number in range(actions):
        positions.append(np.clip(positions[-1] + 0.1 * np.array([np.cos(number), np.sin(number)]), -1, 1))
    return np.stack(positions[1:])


def counting_player(**changes):
    program = counting_program(tiny(deterministic_eval=True, **changes))
    return program, program.algorithm.init(jax.random.key(0))


def test_the_evaluation_remembers_each_episode_from_its_start():
    program, agent_state = counting_player()
    policy = policy_of(program.algorithm, agent_state, deterministic=True)
    episodes, states = run_episodes(program.eval_env, policy, 5, jax.random.key(0), lambda env_state: env_state.state)
    assert len(states) == 8
    np.testing.assert_allclose(states, circle(episodes.start, 8), atol=1e-5)


def test_a_video_shows_what_is_remembered():
    recording = record(*counting_player(), num_episodes=3)
    np.testing.assert_allclose(recording.poses, circle(recording.episodes.start, 8), atol=1e-5)


@pytest.mark.parametrize("deterministic", [True, False])
def test_the_evaluation_script_remembers_whichever_policy_it_measures(deterministic):
    program, agent_state = counting_player()
    episodes = evaluate.roll_out(program, 5, agent_state, jax.random.key(0), jnp.asarray(deterministic))
    walked_in_a_circle = np.allclose(episodes.last, circle(episodes.start, 8)[-1], atol=1e-5)
    assert walked_in_a_circle == deterministic


def test_a_player_forgets_with_a_new_goal_and_a_new_episode():
    """What was planned for the goal before is of no use for this one."""
    player = Player(*counting_player())

    def assert_acts(numbers):
        for number in numbers:
            expected = np.clip(player.q + 0.1 * np.array([np.cos(number), np.sin(number)]), -1, 1)
            player.act()
            np.testing.assert_allclose(player.q, expected, atol=1e-5)

    assert_acts(range(3))
    player.new_goal()
    assert_acts(range(5))
    player.act()  # the episode's 8 steps are over: this is the first of another
    assert_acts(range(1, 3))
    player.new_episode()
    assert_acts(range(2))


def last_of(program, seeds, resumed=None, stop=lambda moment: False):
    for moment in loop.run(program, seeds, lambda text: None, resumed, seconds_per_chunk=1e-9):
        if stop(moment):
            break
    return moment


@pytest.mark.parametrize("seeds", [(3,), slow((3, 4))])
def test_a_run_resumes_with_what_its_policies_remembered(seeds):
    """From arrays as checkpoints store them, in the middle of episodes of 8 steps; each seed on its own."""
    program = counting_program(tiny(num_seeds=len(seeds)), lives=(3, 12))
    whole = last_of(program, seeds).run_state
    moment = last_of(program, seeds, stop=lambda moment: moment.env_steps == 80)
    memory = np.asarray(moment.run_state.train_state.memory)
    np.testing.assert_array_equal(memory, moment.run_state.train_state.env_state.steps)
    assert memory.shape == ((4,) if len(seeds) == 1 else (2, 4))
    assert np.any(memory > 0)
    state = {"train_state": moment.run_state.train_state, "totals": moment.run_state.totals}
    stored = host_arrays(state)
    assert "train_state/memory" in stored
    resumed = loop.RunState(**device_tree(stored, state), position=moment.run_state.position)
    after = last_of(program, seeds, resumed).run_state
    for one, other in zip(
        jax.tree.leaves(host_arrays({"train_state": after.train_state})),
        jax.tree.leaves(host_arrays({"train_state": whole.train_state})),
        strict=True,
    ):
        np.testing.assert_array_equal(one, other)
    assert after.position.training_steps == whole.position.training_steps


def test_a_policy_without_memory_adds_nothing_to_a_checkpoint():
    """So that checkpoints from before there was any can still be resumed."""
    state = jax.eval_shape(functools.partial(train.init, make_probe_program(tiny())), jax.random.key(0))
    assert not jax.tree.leaves(state.memory)
