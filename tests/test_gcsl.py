"""GCSL: its loss against numbers put together here, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, tiny_of
from trainings import learner_of, success_rates

from src.algorithms import crl, gcsl

CONFIG = tiny_of(gcsl.GCSLConfig, policy_lr=1e-2)
NETWORKS = gcsl.make(CONFIG, ProbeEnv()).update.args[1]


@pytest.fixture(scope="module")
def start():
    """An agent, and a batch whose actions its policy would hardly take."""
    agent_state = gcsl.init(CONFIG, NETWORKS, jax.random.key(0))
    random = np.random.default_rng(0)
    state, goal = random.standard_normal((2, 7, 2)).astype(np.float32)
    action = np.tanh(random.standard_normal((7, 2)) + 1).astype(np.float32)
    return agent_state, crl.Batch(*map(jnp.asarray, (state, action, goal)))


def test_the_loss_is_minus_the_mean_log_density_of_what_was_done(start):
    agent_state, batch = start
    _, metrics = gcsl.update(CONFIG, NETWORKS, agent_state, batch, jax.random.key(1))
    mean, std = map(np.float64, NETWORKS.actor.apply(agent_state.params["actor"], batch.state, batch.future_goal))
    action = np.float64(batch.action)
    z = np.arctanh(action)
    density = -0.5 * ((z - mean) / std) ** 2 - np.log(std * np.sqrt(2 * np.pi)) - np.log(1 - action**2)
    assert float(metrics["actor_loss"]) == pytest.approx(-density.sum(axis=1).mean(), rel=1e-4)
    assert float(metrics["policy_std"]) == pytest.approx(std.mean(), rel=1e-5)


def test_actions_at_their_bounds_are_learned_from(start):
    agent_state, batch = start
    batch = batch.replace(action=jnp.sign(batch.action))
    after, metrics = gcsl.update(CONFIG, NETWORKS, agent_state, batch, jax.random.key(1))
    assert float(metrics["actor_loss"]) > 0  # minus a log of probabilities, not of densities
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(after.params))


def test_the_actor_comes_to_do_what_led_to_the_goal(start):
    agent_state, batch = start
    update = jax.jit(functools.partial(gcsl.update, CONFIG, NETWORKS))
    for _ in range(300):
        agent_state, metrics = update(agent_state, batch, jax.random.key(1))
    mean, _ = NETWORKS.actor.apply(agent_state.params["actor"], batch.state, batch.future_goal)
    assert float(jnp.abs(jnp.tanh(mean) - batch.action).mean()) < 0.1


@pytest.mark.slow
def test_gcsl_learns_to_reach_goals():
    untrained, trained = success_rates(learner_of(gcsl.GCSLConfig, policy_lr=1e-3, num_timesteps=100_000))
    assert untrained < 0.25
    assert trained > 0.6
