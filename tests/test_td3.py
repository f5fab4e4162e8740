"""TD3: its noises, its target against numbers put together here, the delay and the lag, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, slow, tiny_of
from trainings import BOOTSTRAPPING, learner_of, success_rates

from src import train
from src.algorithms import td3
from src.command_line import parse_config
from src.hindsight import Batch
from src.registries import REGISTRIES
from utils import ConfigError

BATCH = 12
# 4 envs * 7 / 4: 7 updates a training step, of which the actor has 3.
CONFIG = tiny_of(td3.TD3Config, batch_size=4, policy_lr=1e-2, critic_lr=1e-3, tau=0.1, discounting=0.9)
KEY = jax.random.key(3)


def make_batch(number, seed=0):
    random = np.random.default_rng(seed)
    state, next_state = random.standard_normal((2, BATCH, 6))
    arrays = (
        state,
        np.tanh(random.standard_normal((BATCH, 2))),
        state[:, 2:4],
        random.standard_normal(BATCH),
        next_state,
    )
    terminated = jnp.asarray(random.random(BATCH) < 0.4)
    return Batch(*(jnp.asarray(x, jnp.float32) for x in arrays), terminated, jnp.asarray(number))


@functools.cache
def start():
    """Networks, and an agent whose targets differ from what a fresh one has."""
    networks = td3.make_networks(CONFIG, ProbeEnv(tagged=True))
    agent = jax.jit(functools.partial(td3.init, CONFIG, networks))(jax.random.key(1))
    return networks, agent.replace(targets=jax.tree.map(lambda leaf: 1.3 * leaf + 0.02, agent.targets))


@pytest.fixture(scope="module")
def updates():
    """The agent before, and after an update that is the first and one that is the second of a training step."""
    networks, before = start()
    update = jax.jit(functools.partial(td3.update, CONFIG, networks))
    return before, *(update(before, make_batch(number), KEY) for number in (0, 1))


def assert_same(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(*map(jax.tree.leaves, (one, other)), strict=True):
        np.testing.assert_array_equal(a, b)


# Noise.


def test_noise_is_cut_off_and_actions_stay_in_bounds():
    """At 0 the noise shows as it is: of standard deviation .2, cut off at .5; at the border half of it is lost."""
    noise = np.asarray(td3.blur(jax.random.key(0), jnp.zeros(40_000), 0.2, 0.5))
    assert noise.std() == pytest.approx(0.2, rel=0.03)
    assert noise.mean() == pytest.approx(0, abs=0.005)
    assert np.abs(noise).max() == 0.5
    assert np.mean(np.abs(noise) == 0.5) == pytest.approx(0.0124, rel=0.2)  # 2.5 standard deviations
    wide = np.asarray(td3.blur(jax.random.key(0), jnp.full(1000, 0.9), 10.0, 0.5))
    assert (wide.min(), wide.max()) == (pytest.approx(0.4), 1.0)
    np.testing.assert_array_equal(td3.blur(KEY, jnp.array([-1.0, 0.3]), 0.0, 0.5), jnp.array([-1.0, 0.3]))


def test_act_explores_unless_deterministic():
    algorithm = td3.make(CONFIG, ProbeEnv())
    agent = td3.init(CONFIG, td3.make_networks(CONFIG, ProbeEnv()), jax.random.key(0))
    obs = jnp.tile(jnp.array([0.1, -0.2, 0.3, 0.4]), (5000, 1))
    still, memory = algorithm.act(agent, (), obs, KEY, deterministic=True)
    noisy, _ = algorithm.act(agent, (), obs, KEY)
    assert memory == ()
    assert np.all(still == still[0])
    np.testing.assert_array_equal(still, algorithm.propose(agent, obs[:, :2], obs[:, 2:]))
    noise = np.asarray(noisy - still)
    assert np.abs(noise).max() <= 0.5 + 1e-6
    # A Gaussian of .4, cut off at 1.25 standard deviations, has .338.
    assert noise.std() == pytest.approx(0.338, rel=0.05)
    assert CONFIG.deterministic_eval


def test_actions_are_random_until_something_is_learned(updates):
    """Uniform in [-1, 1], whatever the actor says."""
    algorithm, obs = td3.make(CONFIG, ProbeEnv(tagged=True)), jnp.tile(jnp.linspace(-1, 1, 8), (5000, 1))
    before, (after, _), _ = updates
    random, _ = algorithm.explore(before, (), obs, KEY)
    assert np.abs(random).max() <= 1 and np.abs(np.mean(random)) < 0.02
    assert np.std(random) == pytest.approx(3**-0.5, rel=0.02)
    act_key, _ = jax.random.split(KEY)
    np.testing.assert_array_equal(algorithm.explore(after, (), obs, KEY)[0], algorithm.act(after, (), obs, act_key)[0])


# The target.


def test_the_target_in_numpy():
    """r + gamma (1 - death) min_k Qbar_k(s', clip(abar(s') + clip(noise)), g), with the target's actor."""
    networks, agent = start()
    batch = make_batch(0)
    abar = np.tanh(networks.actor.apply(agent.targets["actor"], batch.next_state, batch.goal))
    noise = np.clip(0.2 * np.asarray(jax.random.normal(KEY, abar.shape)), -0.5, 0.5)
    action = np.clip(abar + noise, -1, 1)
    values = networks.values.apply(agent.targets["critic"], batch.next_state, batch.goal, action)
    expected = np.asarray(batch.reward) + 0.9 * np.where(batch.terminated, 0, np.min(values, axis=0))
    target = td3.target_of(CONFIG, networks, agent.targets, batch, KEY)
    np.testing.assert_allclose(target, expected, rtol=1e-5, atol=1e-6)
    assert np.any(noise > 0.2)


# The delay and the lag.


def test_between_its_turns_the_actor_and_all_targets_rest(updates):
    before, (first, _), _ = updates
    assert_same(first.params["actor"], before.params["actor"])
    assert_same(first.opt_state["actor"], before.opt_state["actor"])
    assert_same(first.targets, before.targets)


def test_the_critics_learn_at_every_update_by_their_own_loss(updates):
    networks, agent = start()
    batch = make_batch(0)
    target = td3.target_of(CONFIG, networks, agent.targets, batch, KEY)

    def loss(critic):
        q1, q2 = networks.values.apply(critic, batch.state, batch.goal, batch.action)
        return (jnp.mean((q1 - target) ** 2) + jnp.mean((q2 - target) ** 2)) / 4

    value, gradient = jax.value_and_grad(loss)(agent.params["critic"])
    _, (first, metrics), (second, _) = updates
    assert metrics["critic_loss"] == pytest.approx(float(value), rel=1e-5)
    assert_same(first.params["critic"], second.params["critic"])
    assert_first_step(agent.params["critic"], first.params["critic"], gradient, CONFIG.critic_lr)


def assert_first_step(before, after, gradient, rate):
    """Adam's first step is the rate times g / (|g| + 1e-8)."""
    for old, new, each in zip(*map(jax.tree.leaves, (before, after, gradient)), strict=True):
        sure = np.abs(each) > 1e-4
        assert np.any(sure)
        np.testing.assert_allclose((new - old)[sure], -rate * np.sign(each)[sure], rtol=2e-3)


def test_at_its_turn_the_actor_climbs_the_first_critic_of_before_the_update(updates):
    networks, agent = start()
    batch = make_batch(1)

    def loss(actor):
        action = jnp.tanh(networks.actor.apply(actor, batch.state, batch.goal))
        return -jnp.mean(networks.values.apply(agent.params["critic"], batch.state, batch.goal, action)[0])

    value, gradient = jax.value_and_grad(loss)(agent.params["actor"])
    _, (_, resting), (second, metrics) = updates
    assert_first_step(agent.params["actor"], second.params["actor"], gradient, CONFIG.policy_lr)
    # The mean over the 7 updates of a training step, 3 of them the actor's, is the mean over those.
    assert resting["actor_loss"] == 0
    assert 3 * metrics["actor_loss"] / 7 == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("part", ["actor", "critic"])
def test_at_the_actors_turn_both_targets_move_by_tau_and_lag(updates, part):
    before, _, (after, _) = updates
    trees = before.targets[part], after.targets[part], after.params[part]
    for old, new, param in zip(*map(jax.tree.leaves, trees), strict=True):
        np.testing.assert_allclose(new, 0.9 * old + 0.1 * param, rtol=1e-5, atol=1e-7)
        assert np.any(np.abs(new - param) > 1e-3)


def branches(jaxpr):
    """The conditions of a program that skip work: each as the sets of primitives of its branches."""
    for equation in jaxpr.eqns:
        inner = [getattr(each, "jaxpr", each) for value in equation.params.values() for each in as_list(value)]
        if equation.primitive.name == "cond":
            yield [{each.primitive.name for each in every(getattr(b, "jaxpr", b))} for b in equation.params["branches"]]
        for each in inner:
            if hasattr(each, "eqns"):
                yield from branches(each)


def every(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for value in equation.params.values():
            for each in as_list(value):
                each = getattr(each, "jaxpr", each)
                if hasattr(each, "eqns"):
                    yield from every(each)


def as_list(value):
    return value if isinstance(value, (tuple, list)) else [value]


@pytest.mark.parametrize("several_seeds", [False, True])
def test_the_delay_is_a_branch_that_is_really_skipped(several_seeds):
    """Also when seeds train together: the number of an update is the same for all of them."""
    program = make_probe_program(CONFIG)
    start = train.over_seeds(functools.partial(train.init_run, program), several_seeds)
    keys = jax.random.split(jax.random.key(0), 2) if several_seeds else jax.random.key(0)
    step = train.over_seeds(functools.partial(train.train_chunk, program), several_seeds, (0, 0, None, None))
    count = jnp.asarray(1)
    jaxpr = jax.make_jaxpr(step)(*jax.eval_shape(start, keys), count, count).jaxpr
    conditions = [sorted("dot_general" in each for each in branch) for branch in branches(jaxpr)]
    assert [False, True] in conditions


def test_a_delay_beyond_the_updates_of_a_training_step_is_refused():
    args = ["--algorithm", "td3", "--num_envs", "4", "--episode_length", "8", "--unroll_length", "5"]
    args += ["--batch_size", "4", "--policy_delay"]
    assert parse_config([*args, "7"], REGISTRIES).policy_delay == 7
    with pytest.raises(
        ConfigError, match="--policy_delay 8 counts the updates of a training step, .* 7: at most 7, or"
    ):
        parse_config([*args, "8"], REGISTRIES)


# Learning.


@pytest.mark.parametrize("her_ratio", [slow(0.0), 0.8])
def test_td3_learns_to_reach_goals(her_ratio):
    untrained, trained = success_rates(learner_of(td3.TD3Config, her_ratio=her_ratio, **BOOTSTRAPPING))
    assert untrained < 0.25
    assert trained > 0.9
