"""SAC: its target and losses against numbers put together here, what one update moves, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, slow, tiny_of
from jax.flatten_util import ravel_pytree
from trainings import BOOTSTRAPPING, learner_of, success_rates

from src.agent import Normalizer
from src.algorithms import sac
from src.critics import value_loss, value_target
from src.hindsight import Batch

BATCH = 12
CONFIG = tiny_of(sac.SACConfig, policy_lr=1e-2, critic_lr=1e-3, alpha_lr=1e-4, tau=0.1, discounting=0.9)
RATE_FLAGS = {"actor": "policy_lr", "critic": "critic_lr", "log_alpha": "alpha_lr"}
KEY = jax.random.key(3)


def make_batch(seed=0, offset=0.0, scale=1.0):
    random = np.random.default_rng(seed)
    state, next_state = offset + scale * random.standard_normal((2, BATCH, 6))
    goal = offset + scale * random.standard_normal((BATCH, 2))
    arrays = state, np.tanh(random.standard_normal((BATCH, 2))), goal, random.standard_normal(BATCH), next_state
    terminated = jnp.asarray(random.random(BATCH) < 0.4)
    return Batch(*(jnp.asarray(x, jnp.float32) for x in arrays), terminated, jnp.asarray(0))


@functools.cache
def start(config=CONFIG):
    """Networks, and an agent whose targets and temperature differ from what a fresh one has."""
    networks = sac.make_networks(config, ProbeEnv(tagged=True))
    agent = jax.jit(functools.partial(sac.init, config, networks))(jax.random.key(1))
    targets = jax.tree.map(lambda leaf: 1.3 * leaf + 0.02, agent.targets)
    return networks, agent.replace(params=agent.params | {"log_alpha": jnp.asarray(-0.5)}, targets=targets)


def update(agent, batch, config=CONFIG):
    return jax.jit(functools.partial(sac.update, config, start(config)[0]))(agent, batch, KEY)


@pytest.fixture(scope="module")
def one_update():
    _, before = start()
    return before, *update(before, make_batch())


# Targets.


def test_targets_of_a_chain_of_five_states():
    """Places 0 to 4, reward 1 for coming to 4, values 0, .1, .2, .3, .4 of the next places, gamma .9. Only where the
    environment ended the episode does the next value not count; the time limit of the fourth row is no such end."""
    reward, next_value = jnp.array([0.0, 0.0, 0.0, 0.0, 1.0]), jnp.array([0.0, 0.1, 0.2, 0.3, 0.4])
    terminated = jnp.array([False, False, True, False, True])
    target = value_target(reward, terminated, 0.9, next_value)
    np.testing.assert_allclose(target, [0, 0.09, 0, 0.27, 1], rtol=1e-6)


def test_the_value_after_an_end_is_left_out_even_if_it_is_no_number():
    target = value_target(jnp.ones(2), jnp.array([True, False]), 0.9, jnp.array([jnp.nan, 1.0]))
    np.testing.assert_allclose(target, [1, 1.9], rtol=1e-6)


def test_the_value_loss_is_half_the_mean_square_over_rows_and_heads():
    loss, metrics = value_loss(jnp.array([[1.0, 2.0], [3.0, -1.0]]), jnp.array([0.0, 1.0]))
    assert loss == pytest.approx(0.5 * (1 + 1 + 9 + 4) / 4)
    np.testing.assert_array_equal(metrics["q_mean"], [2, 0.5])
    with pytest.raises(ValueError, match=r"values \(K, B\) need a target \(B,\), got \(2, 2\) and \(2, 2\)"):
        value_loss(jnp.ones((2, 2)), jnp.ones((2, 2)))


def density(action, mean, std):
    """log density of tanh(N(mean, std)) by the change of variables, in double precision."""
    action, mean, std = (np.asarray(x, np.float64) for x in (action, mean, std))
    gaussian = -0.5 * ((np.arctanh(action) - mean) / std) ** 2 - np.log(std) - 0.5 * np.log(2 * np.pi)
    return np.sum(gaussian - np.log(1 - action**2), axis=-1)


def test_the_target_in_numpy():
    """r + gamma (1 - death) (min_k Qbar_k(s', a', g) - alpha log pi(a'|s', g)), by the old actor and temperature."""
    networks, agent = start()
    batch = make_batch()
    mean, std = networks.actor.apply(agent.params["actor"], batch.next_state, batch.goal)
    action = np.tanh(mean + std * jax.random.normal(KEY, mean.shape))
    values = networks.values.apply(agent.targets["critic"], batch.next_state, batch.goal, action)
    online = networks.values.apply(agent.params["critic"], batch.next_state, batch.goal, action)
    assert values.shape == (2, BATCH)
    assert np.abs(values - online).min() > 1e-3  # so that one cannot stand for the other
    soft = np.min(values, axis=0) - np.exp(-0.5) * density(action, mean, std)
    expected = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, soft)
    target = sac.target_of(CONFIG, networks, agent, batch, KEY)
    np.testing.assert_allclose(target, expected, rtol=1e-4, atol=1e-5)


# One update.


def separate_losses(networks, agent, batch):
    """Critic, actor and temperature loss as three functions of their own parameters, everything else held fixed."""
    target_key, policy_key = jax.random.split(KEY)
    target = sac.target_of(CONFIG, networks, agent, batch, target_key)

    def critic(params):
        q1, q2 = networks.values.apply(params, batch.state, batch.goal, batch.action)
        return (jnp.mean((q1 - target) ** 2) + jnp.mean((q2 - target) ** 2)) / 4

    def policy(actor):
        mean, std = networks.actor.apply(actor, batch.state, batch.goal)
        action = jnp.tanh(mean + std * jax.random.normal(policy_key, mean.shape))
        z = jnp.arctanh(action)
        gaussian = jax.scipy.stats.norm.logpdf(z, mean, std)
        return action, jnp.sum(gaussian - jnp.log(1 - action**2), axis=-1)

    def actor(params):
        action, log_prob = policy(params)
        q1, q2 = networks.values.apply(agent.params["critic"], batch.state, batch.goal, action)
        return jnp.mean(jnp.exp(-0.5) * log_prob - jnp.minimum(q1, q2))

    def temperature(log_alpha):
        return jnp.exp(log_alpha) * jnp.mean(-policy(agent.params["actor"])[1] - -0.5 * 2)

    losses = {"critic": critic, "actor": actor, "log_alpha": temperature}
    return {part: jax.value_and_grad(loss)(agent.params[part]) for part, loss in losses.items()}


@pytest.fixture(scope="module")
def separate():
    networks, agent = start()
    return jax.jit(functools.partial(separate_losses, networks))(agent, make_batch())


def applied_gradient(agent, part):
    """The gradient that Adam received in its first step: its first moment is 0.1 of it."""
    _, unravel = ravel_pytree(agent.params)
    return unravel(agent.opt_state[0].mu / 0.1)[part]


@pytest.mark.parametrize("part", RATE_FLAGS)
def test_each_part_follows_its_own_loss_from_the_parameters_before_the_step(one_update, separate, part):
    _, after, _ = one_update
    _, expected = separate[part]
    actual = applied_gradient(after, part)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-6)
        assert np.any(np.abs(other) > 1e-5)


@pytest.mark.parametrize(("part", "rate"), RATE_FLAGS.items())
def test_each_part_has_its_own_learning_rate(one_update, part, rate):
    """Adam's first step is the rate times g / (|g| + 1e-8)."""
    before, after, _ = one_update
    gradients = jax.tree.leaves(applied_gradient(after, part))
    for gradient, old, new in zip(
        gradients, *(map(jax.tree.leaves, (before.params[part], after.params[part]))), strict=True
    ):
        step = -getattr(CONFIG, rate) * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(new - old, step, rtol=1e-2, atol=2e-7)


def test_reported_losses_are_the_separate_losses(one_update, separate):
    _, _, metrics = one_update
    for metric, part in {"critic_loss": "critic", "actor_loss": "actor", "alpha_loss": "log_alpha"}.items():
        assert metrics[metric] == pytest.approx(float(separate[part][0]), rel=1e-4)
    assert metrics["alpha"] == pytest.approx(np.exp(-0.5))
    assert metrics["batch_reward"] == pytest.approx(float(np.mean(make_batch().reward)), rel=1e-5)
    assert metrics.keys() == {
        *("critic_loss", "actor_loss", "alpha_loss", "alpha", "entropy", "q_mean", "q_target", "batch_reward")
    }


def test_the_targets_follow_by_tau_and_the_optimiser_does_not_know_them(one_update):
    """A target is an average of itself and the parameters after the step."""
    before, after, _ = one_update
    assert after.targets.keys() == {"critic"}
    online = after.params["critic"]
    for old, new, param in zip(
        *map(jax.tree.leaves, (before.targets["critic"], after.targets["critic"], online)), strict=True
    ):
        np.testing.assert_allclose(new, 0.9 * old + 0.1 * param, rtol=1e-5, atol=1e-7)
    count = sum(leaf.size for leaf in jax.tree.leaves(after.params))
    assert after.opt_state[0].mu.size == count


def test_a_fresh_agent_has_two_critics_and_equal_targets():
    networks = sac.make_networks(CONFIG, ProbeEnv())
    agent = sac.init(CONFIG, networks, jax.random.key(0))
    assert agent.params["log_alpha"] == 0
    for param, target in zip(*map(jax.tree.leaves, (agent.params["critic"], agent.targets["critic"])), strict=True):
        np.testing.assert_array_equal(param, target)
    kernels = [leaf for leaf in jax.tree.leaves(agent.params["critic"]) if leaf.ndim == 3]
    assert len(kernels) == CONFIG.n_hidden + 1
    assert all(np.all(kernel[0] != kernel[1]) for kernel in kernels)


# States and goals as the networks see them.


def test_both_states_and_the_goal_are_normalised():
    """The update of raw data by a normaliser is that of data which was standardised before."""
    networks, agent = start()
    random = np.random.default_rng(5)
    mean, std = jnp.asarray(random.normal(size=6), jnp.float32), jnp.asarray(random.uniform(0.5, 2, 6), jnp.float32)
    batch = make_batch()
    raw = batch.replace(
        state=batch.state * std + mean, next_state=batch.next_state * std + mean, goal=batch.goal * std[:2] + mean[:2]
    )
    knowing = agent.replace(normalizer=Normalizer(jnp.asarray(100.0), mean, 100 * std**2))
    after, metrics = update(knowing, raw)
    expected, expected_metrics = update(agent, batch)
    for name in metrics:
        assert metrics[name] == pytest.approx(float(expected_metrics[name]), rel=1e-3, abs=1e-5)
    np.testing.assert_allclose(after.opt_state[0].mu, expected.opt_state[0].mu, rtol=1e-2, atol=1e-5)
    del networks


def test_the_energy_of_pictures_is_the_least_value():
    networks, agent = start()
    batch, algorithm = make_batch(), sac.make(CONFIG, ProbeEnv(tagged=True))
    energy = algorithm.energy(agent, batch.state, batch.action, batch.goal)
    values = networks.values.apply(agent.params["critic"], batch.state, batch.goal, batch.action)
    np.testing.assert_array_equal(energy, np.min(values, axis=0))
    mean, _ = networks.actor.apply(agent.params["actor"], batch.state, batch.goal)
    np.testing.assert_array_equal(algorithm.propose(agent, batch.state, batch.goal), jnp.tanh(mean))


# Learning.


@pytest.mark.parametrize("her_ratio", [slow(0.0), 0.8])
def test_sac_learns_to_reach_goals(her_ratio):
    untrained, trained = success_rates(learner_of(sac.SACConfig, her_ratio=her_ratio, **BOOTSTRAPPING))
    assert untrained < 0.25
    assert trained > 0.9
