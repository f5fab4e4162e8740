"""Plans of several actions (`action_chunk`): what is trained on, how it is carried out, and that it learns."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, tiny
from ring import CAPACITY, NUM_ENVS, Recorder
from trainings import LEARNER, success_rates

from src import agent, planning, train
from src.algorithms import crl

# What is trained on.


@pytest.mark.parametrize("length", [1, 2, 3, 5])
@pytest.mark.parametrize("mean_length", [2, 6, 100])
def test_a_batch_holds_the_actions_that_followed_in_the_same_trajectory(length, mean_length):
    """Of every row that so many follow, one at least, and of no other: none crosses the end of an episode, the seam of
    the ring or its unfilled part."""
    draws = 4000
    config = tiny(action_chunk=length, num_envs=draws, episode_length=2, batch_size=draws)
    algorithm = crl.make(config, ProbeEnv())
    recorder = Recorder(mean_length, seed=length)
    for unrolls in range(1, 6):
        recorder.add()
        index = algorithm.index(recorder.buffer_state)
        drawable = {at for at, count in recorder.futures().items() if count >= max(length - 1, 1)}
        assert algorithm.drawable(index) == len(drawable)
        if not drawable:
            continue
        pairs = algorithm.draw(None, recorder.buffer_state, index, jax.random.key(unrolls))
        pick = jax.tree.map(lambda leaf: leaf[0], pairs)
        batch = algorithm.gather(recorder.buffer_state.rows, index, pick)
        env, step, traj = np.asarray(batch.state, int).T
        assert set(zip(env.tolist(), step.tolist(), strict=True)) == drawable
        assert batch.action.shape == (draws, 2 * length)
        trajectories = dict(recorder.kept)
        for ahead, action in enumerate(np.split(np.asarray(batch.action, int), length, axis=1)):
            np.testing.assert_array_equal(action, np.stack([-env, -(step + ahead)], axis=-1))
            assert all(trajectories[at + ahead][of] == id for at, of, id in zip(step, env, traj, strict=True))
        goal_env, goal_step = np.asarray(batch.future_goal, int).T
        np.testing.assert_array_equal(goal_env, env)
        assert np.all(goal_step > step)
    assert len(recorder.kept) == CAPACITY and NUM_ENVS > 1


def test_a_plan_of_one_action_is_that_action():
    """Nothing is remembered, and what is learned from are the rows' own bits."""
    algorithm = crl.make(tiny(), ProbeEnv())
    assert algorithm.init_memory((3,)) == ()
    agent_state = algorithm.init(jax.random.key(0))
    obs = jax.random.normal(jax.random.key(1), (3, 4))
    action, memory = algorithm.act(agent_state, (), obs, None, deterministic=True)
    assert memory == ()
    np.testing.assert_array_equal(action, algorithm.propose(agent_state, obs[:, :2], obs[:, 2:]))


@pytest.mark.parametrize("length", [1, 2, 3])
def test_the_entropy_that_is_asked_for_grows_with_the_plan(length):
    """Half a nat less for each of its numbers; alpha is 1 at the start."""
    config = tiny(action_chunk=length)
    networks = crl.make_networks(config, ProbeEnv())
    agent_state = crl.init(config, networks, jax.random.key(0))
    batch = crl.Batch(*(jax.random.normal(jax.random.key(size), (6, size)) for size in (2, 2 * length, 2)))
    _, metrics = crl.update(config, networks, agent_state, batch, jax.random.key(1))
    assert metrics["alpha_loss"] == pytest.approx(float(metrics["entropy"]) + 0.5 * 2 * length, rel=1e-5)


# How it is carried out.


def test_a_plan_is_followed_to_its_end():
    """Each env of several on its own, each from another place in its plan."""
    memory = planning.init_plan((4,), 3, 2)
    memory = memory.replace(taken=jnp.array([0, 1, 2, 0]))
    proposals = np.arange(7 * 4 * 6, dtype=np.float32).reshape(7, 4, 6)
    plans = np.zeros((4, 3, 2))
    taken = [0, 1, 2, 0]
    for proposal in proposals:
        action, memory = planning.follow_plan(memory, jnp.asarray(proposal), 3)
        for env in range(4):
            if taken[env] == 0:
                plans[env] = proposal[env].reshape(3, 2)
            np.testing.assert_array_equal(action[env], plans[env, taken[env]])
            taken[env] = (taken[env] + 1) % 3
    np.testing.assert_array_equal(memory.taken, taken)


def decided(agent_state):
    """The same agent, with hardly any chance in its actions, and means that depend much on what it sees."""
    head = agent_state.params["actor"]["params"]["Dense_0"]
    size = head["bias"].size // 2
    head = {"kernel": head["kernel"].at[:, :size].mul(8), "bias": head["bias"].at[size:].set(-1e4)}
    actor = {"params": agent_state.params["actor"]["params"] | {"Dense_0": head}}
    return agent_state.replace(params=agent_state.params | {"actor": actor})


@pytest.mark.parametrize("action_repeat", [1, 2])
def test_plans_are_carried_out_without_looking_until_they_or_the_episode_end(action_repeat):
    """Unrolls of 5 actions, plans of 3, episodes of 2 to 8. What is counted are actions, not env steps."""
    config = tiny(action_chunk=3, num_envs=8, batch_size=8, max_replay_size=40, action_repeat=action_repeat)
    config = dataclasses.replace(config, episode_length=8 * action_repeat)
    lives = (2 * action_repeat, 12 * action_repeat)
    program = make_probe_program(config, functools.partial(ProbeEnv, lives=lives))
    program = program._replace(algorithm=program.algorithm._replace(keep=lambda step: step))
    state = train.init(program, jax.random.key(3))
    state = state.replace(agent_state=decided(state.agent_state))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(8):
        state = collect(state)
    rows = jax.device_get(state.buffer_state.rows)
    networks = crl.make_networks(config, ProbeEnv())
    proposals = np.asarray(agent.propose(networks, state.agent_state, rows.state, rows.goal)).reshape(40, 8, 3, 2)
    taken, first = np.zeros(8, int), np.zeros(8, int)
    replanned = []
    for t in range(40):
        begins = taken == 0
        first[begins] = t
        planned = proposals[first, np.arange(8), taken]
        np.testing.assert_allclose(rows.action[t], planned, atol=0.02)
        replanned += list(np.abs(proposals[t, ~begins, 0] - planned[~begins]).max(axis=-1))
        ended = rows.terminated[t] | rows.truncated[t]
        taken = np.where(ended, 0, (taken + 1) % 3)
    assert np.median(replanned) > 0.1  # another policy would have been noticed
    np.testing.assert_array_equal(state.memory.taken, taken)
    assert {0, 1, 2} == set(taken)


# The critic's favourite.


@pytest.mark.parametrize("length", [1, 3])
def test_the_plan_that_is_taken_is_the_best_of_those_sampled(length):
    """Against a loop over the samples, on two leading axes."""
    config = tiny(action_chunk=length, best_of=5)
    algorithm, networks = crl.make(config, ProbeEnv()), crl.make_networks(config, ProbeEnv())
    agent_state, key = algorithm.init(jax.random.key(0)), jax.random.key(3)
    obs = jax.random.normal(jax.random.key(1), (4, 6, 4))
    state, goal = obs[..., :2], obs[..., 2:]
    mean, std = agent.policy(networks, agent_state, state, goal)
    plans = jnp.tanh(mean + std * jax.random.normal(key, (5, *mean.shape)))
    energies = np.stack([algorithm.energy(agent_state, state, plan, goal) for plan in plans])
    expected = np.empty(mean.shape)
    for at in np.ndindex(4, 6):
        expected[at] = plans[(energies[:, *at].argmax(), *at)]
    action, memory = algorithm.explore(agent_state, algorithm.init_memory((4, 6)), obs, key)
    np.testing.assert_allclose(action, expected[..., :2], rtol=1e-5, atol=1e-6)
    if length > 1:
        np.testing.assert_allclose(memory.actions.reshape(mean.shape), expected, rtol=1e-5, atol=1e-6)
    assert len(set(energies.argmax(axis=0).ravel())) == 5


@pytest.mark.parametrize("flags", [{"best_of": 4}, {"eval_best_of": 4}])
def test_the_favourite_of_training_and_that_of_evaluation_are_two_flags(flags):
    """One of one is the sample that it always was, and a deterministic policy never chooses."""
    config = tiny(**flags)
    algorithm, plain = crl.make(config, ProbeEnv()), crl.make(tiny(), ProbeEnv())
    agent_state, obs, key = (
        plain.init(jax.random.key(0)),
        jax.random.normal(jax.random.key(1), (9, 4)),
        jax.random.key(2),
    )
    sampled, _ = plain.act(agent_state, (), obs, key)
    for name, count in (("explore", config.best_of), ("act", config.eval_best_of)):
        action, _ = getattr(algorithm, name)(agent_state, (), obs, key)
        assert np.array_equal(action, sampled) == (count == 1)
    for each in (algorithm, plain):
        action, _ = each.act(agent_state, (), obs, None, deterministic=True)
        np.testing.assert_array_equal(action, each.propose(agent_state, obs[:, :2], obs[:, 2:]))


def test_one_plan_to_choose_from_is_the_sample_of_the_policy():
    """In every digit: mean plus standard deviation times the noise of the key."""
    algorithm, networks = crl.make(tiny(), ProbeEnv()), crl.make_networks(tiny(), ProbeEnv())
    agent_state, obs, key = algorithm.init(jax.random.key(0)), jnp.ones((3, 4)), jax.random.key(2)
    mean, std = agent.policy(networks, agent_state, obs[:, :2], obs[:, 2:])
    expected = jnp.tanh(mean + std * jax.random.normal(key, mean.shape))
    for act in (algorithm.explore, algorithm.act):
        np.testing.assert_array_equal(act(agent_state, (), obs, key)[0], expected)


# Learning.


@pytest.mark.slow
@pytest.mark.parametrize("num_critics", [1, 2])
def test_a_policy_that_plans_learns_to_reach_goals(num_critics):
    config = dataclasses.replace(LEARNER, action_chunk=3, num_critics=num_critics)
    untrained, trained = success_rates(config)
    assert untrained < 0.25
    assert trained > 0.8  # .88 to 1 on several machines
