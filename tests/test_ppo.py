"""PPO: advantages against a slow loop, its objective, what a training step draws, and that it learns."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, tiny_of
from trainings import learner_of, success_rates

from src import agent, train
from src.advantages import gae
from src.algorithm import Step
from src.algorithms import ppo
from src.command_line import parse_config
from src.densities import action_log_prob
from src.registries import REGISTRIES
from utils import ConfigError

CONFIG = tiny_of(ppo.PPOConfig, batch_size=5, num_passes=3)

# Advantages.


def make_steps(seed, shape=(9, 200)):
    """Steps with every kind of end, each in a fifth of them."""
    random = np.random.default_rng(seed)
    kind = random.choice(4, p=(0.4, 0.2, 0.2, 0.2), size=shape)
    flags = {name: kind == number for number, name in enumerate(("terminated", "truncated", "blown_up"), start=1)}
    reward, value, next_value = random.standard_normal((3, *shape)).astype(np.float32)
    nothing = dict.fromkeys(("state", "goal", "action", "next_state", "traj_id"))
    return Step(reward=reward, **flags, **nothing), value, next_value


def slow_advantage(steps, value, next_value, t, n, discounting, gae_lambda):
    """The sum over later steps, one by one, up to the end of the trajectory or of the unroll."""
    total, weight = 0.0, 1.0
    for later in range(t, len(value)):
        if steps.blown_up[later, n]:
            return total
        future = 0.0 if steps.terminated[later, n] else next_value[later, n]
        total += weight * (steps.reward[later, n] + discounting * future - value[later, n])
        if steps.terminated[later, n] or steps.truncated[later, n]:
            return total
        weight *= discounting * gae_lambda
    return total


@pytest.mark.parametrize("gae_lambda", [0.0, 0.6, 1.0])
def test_advantages_are_those_of_a_slow_loop(gae_lambda):
    steps, value, next_value = make_steps(1)
    advantage = gae(steps, jnp.asarray(value), jnp.asarray(next_value), 0.9, gae_lambda)
    slow = [[slow_advantage(steps, value, next_value, t, n, 0.9, gae_lambda) for n in range(200)] for t in range(9)]
    np.testing.assert_allclose(advantage, slow, atol=1e-5)


def test_what_follows_a_death_is_left_out_even_if_it_is_no_number():
    steps, value, next_value = make_steps(2)
    lost = steps.terminated | steps.blown_up
    advantage = gae(steps, jnp.asarray(value), jnp.where(lost, jnp.nan, next_value), 0.9, 0.95)
    np.testing.assert_array_equal(advantage, gae(steps, jnp.asarray(value), jnp.asarray(next_value), 0.9, 0.95))


def test_a_time_limit_is_no_death():
    """A chain of one step, reward 1: cut off by the clock it goes on being worth the next value."""
    ends = {name: np.array([[False]]) for name in ("terminated", "truncated", "blown_up")}
    nothing = dict.fromkeys(("state", "goal", "action", "next_state", "traj_id"))
    for name, expected in (("truncated", 1 + 0.9 * 5 - 2), ("terminated", 1 - 2), ("blown_up", 0)):
        steps = Step(reward=jnp.ones((1, 1)), **(ends | {name: np.array([[True]])}), **nothing)
        advantage = gae(steps, jnp.full((1, 1), 2.0), jnp.full((1, 1), 5.0), 0.9, 0.95)
        assert float(advantage[0, 0]) == pytest.approx(expected)


# The objective.


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected"),
    [(1.0, 2.0, 2.0), (1.2, 2.0, 2.4), (1.5, 2.0, 2.6), (0.5, 2.0, 1.0), (1.5, -2.0, -3.0), (0.5, -2.0, -1.4)],
)
def test_the_clipped_objective_by_hand(ratio, advantage, expected):
    assert float(ppo.clipped_objective(jnp.float32(ratio), jnp.float32(advantage), 0.3)) == pytest.approx(expected)


@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_no_gradient_is_lost_to_a_ratio_beyond_all_numbers(collected, advantage):
    """An old log density far below that of now, as of a policy that narrowed in between."""
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 0)
    apart = jnp.asarray([-advantage, advantage, 0, 0, 0])
    batch = batch._replace(picks=batch.picks.replace(log_prob=batch.picks.log_prob.at[0].add(-1e4), advantage=apart))
    after, metrics = ppo.update(CONFIG, networks, agent_state, batch, jax.random.key(0))
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((after.params, metrics)))


@pytest.fixture(scope="module")
def collected():
    """A training step's data, halfway: networks, agent, the ring after an unroll in which episodes died, and picks."""
    program = make_probe_program(CONFIG, functools.partial(ProbeEnv, lives=(2, 12)))
    state = train.init(program, jax.random.key(5))
    state = jax.jit(functools.partial(train.collect, program))(state)
    networks = networks_of(CONFIG)
    picks = ppo.draw(CONFIG, networks, state.agent_state, state.buffer_state, (), jax.random.key(6))
    return networks, state.agent_state, state.buffer_state.rows, picks


def networks_of(config):
    """The networks that `make` binds."""
    return ppo.make(config, ProbeEnv()).update.args[1]


def minibatch(rows, picks, number):
    pick = jax.tree.map(lambda leaf: leaf[number], picks)
    return ppo.make(CONFIG, ProbeEnv()).gather(rows, (), pick)


def loss_of(networks, agent_state, batch, config=CONFIG, key=0):
    inputs = batch.steps.state, batch.steps.goal
    return ppo.loss(config, networks, agent_state.params, inputs, batch, jax.random.key(key))


def test_every_row_is_learned_from_once_per_pass(collected):
    *_, picks = collected
    numbers = np.asarray(picks.row).reshape(CONFIG.num_passes, -1)
    for passed in numbers:
        np.testing.assert_array_equal(np.sort(passed), np.arange(CONFIG.num_envs * CONFIG.unroll_length))
    assert len({tuple(passed) for passed in numbers}) == CONFIG.num_passes


def test_before_the_first_update_every_ratio_is_1(collected):
    networks, agent_state, rows, picks = collected
    for number in range(len(picks.row)):
        _, metrics = loss_of(networks, agent_state, minibatch(rows, picks, number))
        assert metrics["clip_fraction"] == 0
        assert abs(float(metrics["approx_kl"])) < 1e-6
        assert abs(float(metrics["actor_loss"])) < 1e-5  # minus the mean of advantages with mean 0


def test_the_ratio_is_to_the_policy_that_acted():
    """Which saw by the moments before the unroll's own were added."""
    config = tiny_of(ppo.PPOConfig, batch_size=5, normalize_observations=True)
    program, networks = make_probe_program(config), networks_of(config)
    collect = jax.jit(functools.partial(train.collect, program))
    before = collect(train.init(program, jax.random.key(5)))
    after = collect(before)
    assert np.all(before.agent_state.normalizer.mean != after.agent_state.normalizer.mean)
    picks = ppo.draw(config, networks, after.agent_state, after.buffer_state, (), jax.random.key(6))
    rows = after.buffer_state.rows
    density = action_log_prob(rows.action, *agent.policy(networks, before.agent_state, rows.state, rows.goal))
    np.testing.assert_allclose(picks.log_prob, density.reshape(-1)[picks.row], atol=1e-4)
    _, metrics = ppo.update(config, networks, after.agent_state, minibatch(rows, picks, 0), jax.random.key(7))
    assert metrics["clip_fraction"] == 0 and abs(float(metrics["approx_kl"])) < 1e-6


def test_advantages_are_scaled_within_a_minibatch(collected):
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 0)
    other = batch._replace(picks=batch.picks.replace(advantage=7 * batch.picks.advantage + 3))
    moved = jax.tree.map(lambda leaf: leaf + 0.05, agent_state.params)  # ratios that are not 1
    losses = [loss_of(networks, agent_state.replace(params=moved), each)[1]["actor_loss"] for each in (batch, other)]
    assert abs(float(losses[0])) > 1e-4
    assert float(losses[0]) == pytest.approx(float(losses[1]), rel=1e-3)


def test_the_loss_is_the_sum_of_its_weighted_parts(collected):
    networks, agent_state, rows, picks = collected
    config = tiny_of(ppo.PPOConfig, batch_size=5, value_coef=0.7, entropy_coef=0.01)
    total, means = loss_of(networks, agent_state, minibatch(rows, picks, 1), config)
    expected = means["actor_loss"] + 0.7 * means["critic_loss"] - 0.01 * means["entropy"]
    assert float(total) == pytest.approx(float(expected), rel=1e-6)


def test_the_values_target_is_the_value_plus_the_advantage(collected):
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 2)
    value = networks.critic.apply(agent_state.params["critic"], batch.steps.state, batch.steps.goal)[..., 0]
    np.testing.assert_allclose(batch.picks.value_target, value + batch.picks.advantage, atol=1e-6)
    _, means = loss_of(networks, agent_state, batch)
    assert float(means["critic_loss"]) == pytest.approx(float(jnp.mean(jnp.square(batch.picks.advantage))), rel=1e-5)


def test_what_blew_up_is_not_learned_from(collected):
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 0)
    steps = batch.steps.replace(blown_up=jnp.array([False, True, False, False, True]))
    worse = batch.picks.replace(advantage=batch.picks.advantage.at[1].set(1e3), value_target=picks.advantage[0] + 9.0)
    worse = worse.replace(value_target=jnp.where(steps.blown_up, worse.value_target, batch.picks.value_target))
    losses = [loss_of(networks, agent_state, ppo.Batch(steps, each))[1] for each in (batch.picks, worse)]
    for name in ("actor_loss", "critic_loss"):
        assert float(losses[0][name]) == pytest.approx(float(losses[1][name]), abs=1e-5)


def test_the_entropy_is_that_of_the_tanh_gaussian(collected):
    """On average over samples: minus the mean log density of fresh actions."""
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 0)
    entropy = jax.vmap(lambda key: ppo.loss(CONFIG, networks, agent_state.params, inputs, batch, key)[1]["entropy"])
    inputs = batch.steps.state, batch.steps.goal
    estimate = jnp.mean(entropy(jax.random.split(jax.random.key(1), 4000)))
    mean, std = networks.actor.apply(agent_state.params["actor"], *inputs)
    z = mean + std * jax.random.normal(jax.random.key(2), (20_000, *mean.shape))
    slope = jnp.log1p(-jnp.square(jnp.tanh(z)) + 1e-9)
    density = jnp.sum(jax.scipy.stats.norm.logpdf(z, mean, std) - slope, axis=-1)
    assert float(estimate) == pytest.approx(-float(jnp.mean(density)), abs=0.02)


def test_one_update_climbs(collected):
    """The loss of the minibatch falls with small steps, in actor and critic."""
    networks, agent_state, rows, picks = collected
    batch = minibatch(rows, picks, 0)
    update = jax.jit(functools.partial(ppo.update, CONFIG, networks))
    after, _ = update(agent_state, batch, jax.random.key(0))
    for _ in range(20):
        after, _ = update(after, batch, jax.random.key(0))
    before, after = (loss_of(networks, each, batch)[1] for each in (agent_state, after))
    assert after["actor_loss"] < before["actor_loss"]
    assert after["critic_loss"] < before["critic_loss"]


# Bad input.


def test_sizes_that_do_not_divide_are_refused_with_legal_ones():
    args = ["--env_name=probe", "--algorithm=ppo", "--num_envs=128", "--unroll_length=10", "--batch_size=512"]
    with pytest.raises(ConfigError, match="does not divide the 1280 rows") as refusal:
        parse_config(args, {**REGISTRIES, "env": {"probe": ProbeEnv}})
    assert "--batch_size 320 or --unroll_length 12" in str(refusal.value)
    for legal in (["--batch_size=320"], ["--unroll_length=12"]):
        parse_config([*args, *legal], {**REGISTRIES, "env": {"probe": ProbeEnv}})


# Learning.


@pytest.mark.slow
def test_ppo_learns_to_reach_goals():
    config = learner_of(ppo.PPOConfig, batch_size=100, policy_lr=3e-4, use_dense_reward=True, discounting=0.9)
    untrained, trained = success_rates(config)
    assert untrained < 0.25
    assert trained > 0.8
