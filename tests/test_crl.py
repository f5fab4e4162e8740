"""The algorithm on its own: gradients of one update, what each option changes, normalisation, acting."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import UPDATE_METRICS, ProbeEnv, tiny
from jax.flatten_util import ravel_pytree

from src import critics, densities, losses, planning
from src.agent import Normalizer, batch_means, normalize, update_moments
from src.algorithms import crl
from src.goals import with_other_goals
from src.networks import NETWORKS, Encoder, make_trunk

BATCH = 12
RATE_FLAGS = {"actor": "policy_lr", "critic": "critic_lr", "log_alpha": "alpha_lr"}


def make_networks(config, env=None):
    return crl.make_networks(config, env or ProbeEnv(tagged=True))


@functools.cache
def start(config):
    """Networks and a fresh agent of a config."""
    networks = make_networks(config)
    return networks, jax.jit(functools.partial(crl.init, config, networks))(jax.random.key(1))


def make_batch(seed=0, offset=0.0, scale=1.0):
    random = np.random.default_rng(seed)
    state, future = offset + scale * random.standard_normal((2, BATCH, 6))
    action = np.tanh(random.standard_normal((BATCH, 2)))
    return crl.Batch(*(jnp.asarray(x, jnp.float32) for x in (state, action, future[:, :2])))


def represent(config, critic, state, action, goal):
    """phi and psi of the critic's parameters, by encoders made here."""
    encoder = Encoder(make_trunk(config, "critic"), config.repr_dim)
    return encoder.apply(critic["sa_encoder"], state, action), encoder.apply(critic["g_encoder"], goal)


def update(config, agent_state, batch, key=None):
    networks, _ = start(config)
    return jax.jit(functools.partial(crl.update, config, networks))(
        agent_state, batch, jax.random.key(3) if key is None else key
    )


# What one update does, against losses put together here.


def separate_losses(config, networks, batch, key):
    """Critic, actor and temperature loss as three functions of their own parameters, everything else held fixed."""
    goal = batch.future_goal

    def critic(critic_params):
        phi, psi = represent(config, critic_params, batch.state, batch.action, goal)
        logits = losses.l2(phi[:, None], psi[None, :])
        log_partition = jax.nn.logsumexp(logits, axis=1)
        return losses.symmetric_infonce(logits) + config.logsumexp_penalty * jnp.mean(log_partition**2)

    def policy(actor_params):
        mean, std = networks.actor.apply(actor_params, batch.state, goal)
        z = mean + std * jax.random.normal(key, mean.shape)
        return jnp.tanh(z), densities.tanh_gaussian_log_prob(z, mean, std)

    def actor(actor_params, critic_params, log_alpha):
        action, log_prob = policy(actor_params)
        phi, psi = represent(config, critic_params, batch.state, action, goal)
        return jnp.mean(jnp.exp(log_alpha) * log_prob - losses.l2(phi, psi))

    def temperature(log_alpha, actor_params):
        return jnp.exp(log_alpha) * jnp.mean(-policy(actor_params)[1] - -0.5 * networks.action_size)

    return critic, actor, temperature


RATES = {"policy_lr": 1e-2, "critic_lr": 1e-3, "alpha_lr": 1e-4}


@pytest.fixture(scope="module")
def one_update():
    """Config, agent before and after, metrics, separate losses and gradients. Temperature and rates stand apart."""
    config = tiny(**RATES)
    networks, agent = start(config)
    agent = agent.replace(params=agent.params | {"log_alpha": jnp.asarray(0.5)})
    batch, key = make_batch(), jax.random.key(3)
    after, metrics = update(config, agent, batch, key)
    critic, actor, temperature = separate_losses(config, networks, batch, key)
    params = agent.params

    @jax.jit
    def separate(params):
        return {
            "critic": jax.value_and_grad(critic)(params["critic"]),
            "actor": jax.value_and_grad(actor)(params["actor"], params["critic"], params["log_alpha"]),
            "log_alpha": jax.value_and_grad(temperature)(params["log_alpha"], params["actor"]),
        }

    return config, agent, after, metrics, separate(params)


def applied_gradient(agent_state, group):
    """The gradient that Adam received in its first step: its first moment is 0.1 of it."""
    _, unravel = ravel_pytree(agent_state.params)
    adam, _ = agent_state.opt_state
    return unravel(adam.mu / 0.1)[group]


@pytest.mark.parametrize("group", RATE_FLAGS)
def test_each_group_follows_its_own_loss_from_the_parameters_before_the_step(one_update, group):
    """The actor's loss moves neither encoder, the temperature's not the actor, the critic's nothing else."""
    _, _, after, _, separate = one_update
    _, expected = separate[group]
    actual = applied_gradient(after, group)
    assert jax.tree.structure(actual) == jax.tree.structure(expected)
    for one, other in zip(jax.tree.leaves(actual), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-6)
        assert np.any(np.abs(other) > 1e-5)


@pytest.mark.parametrize(("group", "rate"), RATE_FLAGS.items())
def test_each_group_has_its_own_learning_rate(one_update, group, rate):
    """Adam's first step is the rate times g / (|g| + 1e-8)."""
    config, before, after, _, _ = one_update
    gradients = jax.tree.leaves(applied_gradient(after, group))
    olds, news = jax.tree.leaves(before.params[group]), jax.tree.leaves(after.params[group])
    for gradient, old, new in zip(gradients, olds, news, strict=True):
        step = -getattr(config, rate) * gradient / (np.abs(gradient) + 1e-8)
        np.testing.assert_allclose(new - old, step, rtol=1e-2, atol=2e-7)


def test_reported_losses_are_the_separate_losses(one_update):
    _, _, _, metrics, separate = one_update
    for metric, group in {"crl_critic_loss": "critic", "actor_loss": "actor", "alpha_loss": "log_alpha"}.items():
        assert metrics[metric] == pytest.approx(float(separate[group][0]), rel=1e-4)
    assert metrics["alpha"] == pytest.approx(np.exp(0.5))


def test_the_temperature_falls_while_the_policy_is_too_random(one_update):
    """A fresh policy's entropy lies above the target -0.5 * 2 = -1: a positive gradient, alpha times the excess."""
    _, before, after, metrics, _ = one_update
    excess = float(metrics["entropy"]) - -1.0
    assert excess > 0
    assert applied_gradient(after, "log_alpha") == pytest.approx(np.exp(0.5) * excess, rel=1e-4)
    assert after.params["log_alpha"] < before.params["log_alpha"]


@pytest.mark.parametrize("use_c_target", [False, True])
def test_what_is_reported(use_c_target):
    config = tiny(use_c_target=use_c_target)
    networks, agent = start(config)
    shapes = jax.eval_shape(functools.partial(crl.update, config, networks), agent, make_batch(), jax.random.key(0))[1]
    assert set(shapes) == UPDATE_METRICS | ({"c_target"} if use_c_target else set())
    assert all(leaf.shape == () for leaf in shapes.values())


# What each option of the critic changes.


def critic_loss(config, phi, psi, c_target=1.0):
    loss = functools.partial(critics.critic_loss, config, critics.two_encoders(config, 6, 2, 2))
    params = {"c_target": jnp.asarray(c_target)} if config.use_c_target else {}
    (value, metrics), gradients = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(params, phi, psi)
    return value, batch_means(metrics), gradients


@pytest.fixture(scope="module")
def representations():
    random = np.random.default_rng(5)
    return [jnp.asarray(random.standard_normal((BATCH, 4)), jnp.float32) for _ in range(2)]


PLAIN = tiny(logsumexp_penalty=0.0)


def plain(**changes):
    return dataclasses.replace(PLAIN, **changes)


def numpy_logits(representations):
    phi, psi = (np.asarray(x, np.float64) for x in representations)
    return -np.linalg.norm(phi[:, None] - psi[None], axis=-1)


def numpy_logsumexp(logits, keep=None):
    return np.log(np.sum(np.exp(logits), axis=1, where=True if keep is None else keep))


def test_the_plain_critic_loss(representations):
    logits = numpy_logits(representations)
    value, metrics, _ = critic_loss(PLAIN, *representations)
    rows, columns = numpy_logsumexp(logits), numpy_logsumexp(logits.T)
    assert value == pytest.approx(np.mean(rows + columns - 2 * np.diagonal(logits)), rel=1e-5)
    norms = [np.linalg.norm(x, axis=-1) for x in representations]
    assert metrics["sa_repr_mean"] == pytest.approx(norms[0].mean(), rel=1e-5)
    assert metrics["sa_repr_std"] == pytest.approx(norms[0].std(), rel=1e-4)
    assert metrics["g_repr_mean"] == pytest.approx(norms[1].mean(), rel=1e-5)
    assert metrics["g_repr_std"] == pytest.approx(norms[1].std(), rel=1e-4)
    assert metrics["logsumexp"] == pytest.approx(np.mean(rows**2), rel=1e-5)
    assert metrics["l_align"] + metrics["l_unif"] == pytest.approx(float(value), rel=1e-5)


@pytest.mark.parametrize("no_resubs", [False, True])
def test_logsumexp_penalty_adds_its_term(representations, no_resubs):
    logits = numpy_logits(representations)
    keep = ~np.eye(BATCH, dtype=bool) if no_resubs else None
    base, _, _ = critic_loss(plain(no_resubs=no_resubs), *representations)
    value, _, _ = critic_loss(plain(no_resubs=no_resubs, logsumexp_penalty=0.7), *representations)
    assert value - base == pytest.approx(0.7 * np.mean(numpy_logsumexp(logits, keep) ** 2), rel=1e-4)


def test_l2_penalty_adds_its_term(representations):
    expected = sum(np.mean(np.square(x)) for x in representations)
    base, metrics, base_gradients = critic_loss(PLAIN, *representations)
    value, _, gradients = critic_loss(plain(l2_penalty=0.3), *representations)
    assert metrics["l2_penalty"] == pytest.approx(expected, rel=1e-5)
    assert value - base == pytest.approx(0.3 * expected, rel=1e-4)
    for x, one, other in zip(representations, gradients[1:], base_gradients[1:], strict=True):
        np.testing.assert_allclose(one - other, 0.3 * 2 * x / x.size, rtol=1e-3, atol=1e-6)


def test_no_resubs_takes_the_positive_out(representations):
    logits = numpy_logits(representations)
    value, _, _ = critic_loss(plain(no_resubs=True), *representations)
    keep = ~np.eye(BATCH, dtype=bool)
    both = numpy_logsumexp(logits, keep) + numpy_logsumexp(logits.T, keep)
    assert value == pytest.approx(np.mean(both - 2 * np.diagonal(logits)), rel=1e-5)


def test_c_target_scales_the_logits(representations):
    config = plain(use_c_target=True, contrastive_loss_fn="ipo")
    value, metrics, (by_params, _, _) = critic_loss(config, *representations, c_target=2.5)
    logits = numpy_logits(representations)
    margin = np.diagonal(logits)[:, None] - logits
    assert value == pytest.approx(np.mean((2.5 * margin - 1) ** 2), rel=1e-5)
    assert metrics["c_target"] == 2.5
    assert by_params["c_target"] == pytest.approx(np.mean(2 * (2.5 * margin - 1) * margin), rel=1e-4)
    unscaled, metrics, _ = critic_loss(plain(contrastive_loss_fn="ipo"), *representations)
    assert unscaled == pytest.approx(np.mean((margin - 1) ** 2), rel=1e-5)
    assert "c_target" not in metrics


def test_c_target_is_learned_from_one():
    config = tiny(use_c_target=True, critic_lr=1e-2)
    _, agent = start(config)
    assert agent.params["critic"]["c_target"] == 1
    after, _ = update(config, agent, make_batch())
    assert abs(float(after.params["critic"]["c_target"]) - 1) == pytest.approx(1e-2, rel=1e-2)
    assert "c_target" not in start(tiny())[1].params["critic"]


@pytest.mark.parametrize("energy_fn", losses.ENERGY_FNS)
@pytest.mark.parametrize("at", ["equal", "zero"])
def test_equal_and_zero_representations_give_finite_gradients(energy_fn, at):
    x = jnp.zeros((BATCH, 4)) if at == "zero" else jnp.ones((BATCH, 4))
    value, metrics, gradients = critic_loss(tiny(energy_fn=energy_fn, l2_penalty=0.1), x, x)
    assert np.isfinite(value)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((metrics, gradients)))


# What each option of the actor changes.


def policy_parts(config, log_alpha=0.5):
    """The policy loss and its metrics on one batch, and the pieces that its options put together."""
    networks, agent = start(tiny(energy_fn=config.energy_fn))
    params = agent.params | {"log_alpha": jnp.asarray(log_alpha)}
    batch, key = make_batch(7), jax.random.key(8)
    goal = batch.future_goal
    psi = networks.critic.psi(params["critic"], goal)
    loss, metrics = crl.policy_loss(config, networks, params, key, batch.state, goal, psi)
    metrics = batch_means(metrics)

    def pieces(goal, psi):
        mean, std = networks.actor.apply(params["actor"], batch.state, goal)
        z = mean + std * jax.random.normal(key, mean.shape)
        phi, _ = represent(config, params["critic"], batch.state, jnp.tanh(z), goal)
        return (
            np.asarray(densities.tanh_gaussian_log_prob(z, mean, std)),
            np.asarray(losses.ENERGY_FNS[config.energy_fn](phi, psi)),
            np.linalg.norm(phi, axis=-1),
        )

    return loss, metrics, pieces, goal, psi


def test_the_actor_loss_is_entropy_minus_energy():
    loss, metrics, pieces, goal, psi = policy_parts(tiny())
    log_prob, energy, _ = pieces(goal, psi)
    assert metrics["actor_loss"] == pytest.approx(np.mean(np.exp(0.5) * log_prob - energy), rel=1e-4)
    assert metrics["alpha_loss"] == pytest.approx(np.exp(0.5) * (np.mean(-log_prob) + 1), rel=1e-4)
    assert metrics["entropy"] == pytest.approx(-np.mean(log_prob), rel=1e-4)
    assert loss == pytest.approx(float(metrics["actor_loss"] + metrics["alpha_loss"]), rel=1e-5)


def test_disable_entropy_actor_leaves_the_energy_alone():
    _, metrics, pieces, goal, psi = policy_parts(tiny(disable_entropy_actor=True))
    assert metrics["actor_loss"] == pytest.approx(-np.mean(pieces(goal, psi)[1]), rel=1e-4)


@pytest.mark.parametrize(("energy_fn", "sign"), [("l2", -1), ("dot", 1)])
def test_exploration_coef_rewards_or_costs_the_norm_of_phi(energy_fn, sign):
    _, plain_metrics, pieces, goal, psi = policy_parts(tiny(energy_fn=energy_fn))
    _, metrics, _, _, _ = policy_parts(tiny(energy_fn=energy_fn, exploration_coef=0.4))
    norms = pieces(goal, psi)[2]
    assert metrics["actor_loss"] - plain_metrics["actor_loss"] == pytest.approx(sign * 0.4 * norms.mean(), rel=1e-3)


@pytest.mark.parametrize(("share", "swapped"), [(0.0, 0), (0.25, 3), (0.5, 6), (1.0, BATCH)])
def test_random_goals_is_the_share_of_rows_with_another_rows_goal(share, swapped):
    goal, psi = jnp.arange(2.0 * BATCH).reshape(BATCH, 2), 100 * jnp.arange(3.0 * BATCH).reshape(BATCH, 3)
    other_goal, other_psi = with_other_goals(share, goal, psi)
    of_row = other_goal[:, 0] / 2
    assert np.sum(np.asarray(of_row) != np.arange(BATCH)) == swapped
    np.testing.assert_array_equal(other_goal, goal[of_row.astype(int)])
    np.testing.assert_array_equal(other_psi, psi[of_row.astype(int)])  # the goal and its representation move together


def test_random_goals_reach_actor_and_critic_alike():
    _, metrics, pieces, goal, psi = policy_parts(tiny(random_goals=1.0))
    log_prob, energy, _ = pieces(jnp.roll(goal, -1, axis=0), jnp.roll(psi, -1, axis=0))
    assert metrics["actor_loss"] == pytest.approx(np.mean(np.exp(0.5) * log_prob - energy), rel=1e-4)


# Networks of a config.


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("use_ln", [False, True])
def test_use_ln_reaches_the_actor_and_both_encoders(network, use_ln):
    n_hidden, layers = (4, 5) if network == "residual4" else (3, 3)  # which does not count its input layer
    config = tiny(network=network, use_ln=use_ln, n_hidden=n_hidden)
    params = jax.eval_shape(functools.partial(crl.init, config, make_networks(config)), jax.random.key(0)).params
    for group in (params["actor"], params["critic"]["sa_encoder"], params["critic"]["g_encoder"]):
        trunk = jax.tree_util.tree_leaves_with_path(group["params"]["trunk"])
        kernels = [leaf for path, leaf in trunk if path[-1].key == "kernel"]
        scales = [leaf for path, leaf in trunk if path[-1].key == "scale"]
        # The layers of several blocks may be one array with a leading axis.
        assert sum(leaf.shape[0] if leaf.ndim == 3 else 1 for leaf in kernels) == layers
        assert sum(leaf.shape[0] if leaf.ndim == 2 else 1 for leaf in scales) == (layers if use_ln else 0)
        assert all(leaf.shape[-1] == 8 for leaf in kernels)


def test_sizes_come_from_the_env():
    config = tiny(repr_dim=6)
    params = start(config)[1].params

    def first_and_last(group):
        group = group["params"]
        return group["trunk"]["Dense_0"]["kernel"].shape[0], group["Dense_0"]["kernel"].shape[1]

    assert first_and_last(params["actor"]) == (6 + 2, 2 * 2)
    assert first_and_last(params["critic"]["sa_encoder"]) == (6 + 2, 6)
    assert first_and_last(params["critic"]["g_encoder"]) == (2, 6)
    assert params["log_alpha"] == 0


def test_the_three_networks_start_from_different_keys():
    """phi's and the actor's first layers have one shape here, so one key would give them one content."""
    params = start(tiny())[1].params
    phi, actor = (p["params"]["trunk"]["Dense_0"]["kernel"] for p in (params["critic"]["sa_encoder"], params["actor"]))
    assert phi.shape == actor.shape
    assert not np.allclose(phi, actor)
    hidden = [p["params"]["trunk"]["Dense_1"]["kernel"] for p in params["critic"].values()]
    assert not np.allclose(*hidden)


# Normalisation.


def test_the_normalizer_keeps_the_moments_of_all_it_has_seen():
    """Chunks of any size, far from zero: the sums of squares would be off in float32 where deviations are not."""
    random = np.random.default_rng(0)
    scale, offset = np.array([1.0, 0.01, 50.0]), np.array([0.0, 30.0, -2000.0])
    seen = offset + scale * random.standard_normal((600, 3))
    normalizer = Normalizer(jnp.zeros(()), jnp.zeros(3), jnp.zeros(3))
    start = 0
    for shape in [(1, 3), (7, 3), (4, 50, 3), (2, 3), (390, 3)]:
        size = int(np.prod(shape[:-1]))
        normalizer = update_moments(normalizer, jnp.asarray(seen[start : start + size].reshape(shape), jnp.float32))
        start += size
        expected = seen[:start]
        assert normalizer.count == start
        np.testing.assert_allclose(normalizer.mean / scale, expected.mean(0) / scale, rtol=1e-6, atol=1e-3)
        std = np.sqrt(normalizer.squares / start)
        np.testing.assert_allclose(std / scale, expected.std(0) / scale, rtol=1e-3, atol=1e-3)
    assert start == len(seen)


NORMALIZED = tiny(normalize_observations=True)
MOMENTS = (np.linspace(-3, 3, 6), np.geomspace(0.1, 10, 6))


def with_moments(agent, mean, std, count=50.0):
    mean, std = (jnp.asarray(x, jnp.float32) for x in (mean, std))
    return agent.replace(normalizer=Normalizer(jnp.asarray(count), mean, count * std**2))


def standardised(states):
    return (states - MOMENTS[0]) / MOMENTS[1]


def test_goals_are_scaled_by_the_moments_of_their_entries():
    agent = with_moments(start(NORMALIZED)[1], *MOMENTS)
    states = np.random.default_rng(1).standard_normal((5, 6))
    state, goal = normalize(agent.normalizer, (4, 1), jnp.asarray(states), jnp.asarray(states[:, [4, 1]]))
    np.testing.assert_allclose(state, standardised(states), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(goal, standardised(states)[:, [4, 1]], rtol=1e-4, atol=1e-5)


def test_one_normalisation_for_the_actor_and_both_encoders():
    """Raw data through the normaliser is an update on data standardised beforehand, to the last network."""
    agent = start(NORMALIZED)[1]
    raw = make_batch(offset=2.0, scale=3.0)
    ready = raw.replace(
        state=jnp.asarray(standardised(raw.state), jnp.float32),
        future_goal=jnp.asarray((raw.future_goal - MOMENTS[0][:2]) / MOMENTS[1][:2], jnp.float32),
    )
    normalised, metrics = update(NORMALIZED, with_moments(agent, *MOMENTS), raw)
    expected, expected_metrics = update(tiny(), agent.replace(normalizer=None), ready)
    for group in RATE_FLAGS:
        leaves = [jax.tree.leaves(applied_gradient(agent, group)) for agent in (normalised, expected)]
        for one, other in zip(*leaves, strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-2, atol=1e-5)
    for name in UPDATE_METRICS:
        assert metrics[name] == pytest.approx(float(expected_metrics[name]), rel=1e-3, abs=1e-4)


def test_acting_normalises_like_learning():
    networks, agent = start(NORMALIZED)
    states = np.random.default_rng(2).standard_normal((5, 6)) * MOMENTS[1] + MOMENTS[0]
    goals = states[::-1, :2]
    ready = np.concatenate([standardised(states), standardised(states)[::-1, :2]], axis=-1)
    raw = np.concatenate([states, goals], axis=-1)
    act = functools.partial(planning.act, NORMALIZED, networks, memory=(), key=None, deterministic=True)
    actions, _ = act(with_moments(agent, *MOMENTS), obs=jnp.asarray(raw, jnp.float32))
    expected, _ = act(agent.replace(normalizer=None), obs=jnp.asarray(ready, jnp.float32))
    np.testing.assert_allclose(actions, expected, rtol=1e-3, atol=1e-5)


def test_a_normalizer_that_has_seen_nothing_changes_nothing():
    networks, agent = start(NORMALIZED)
    assert agent.normalizer.count == 0
    state, goal = jnp.ones((2, 6)), 2 * jnp.ones((2, 2))
    one, other = normalize(agent.normalizer, networks.goal_indices, state, goal)
    np.testing.assert_array_equal(one, state)
    np.testing.assert_array_equal(other, goal)


def test_an_entry_that_never_moves_is_not_blown_up():
    networks, agent = start(NORMALIZED)
    normalizer = update_moments(agent.normalizer, jnp.full((100, 6), 0.3))
    state, _ = normalize(normalizer, networks.goal_indices, jnp.full((1, 6), 0.3 + 1e-6), jnp.zeros((1, 2)))
    assert np.all(np.abs(state) < 1e-3)


def test_without_the_flag_there_is_no_normalizer():
    agent = start(tiny())[1]
    assert agent.normalizer is None
    assert update_moments(None, jnp.ones((3, 6))) is None


# Acting.


def test_actions_are_samples_of_the_tanh_gaussian():
    networks, agent = start(tiny())
    obs = jnp.concatenate([jnp.linspace(-1, 1, 6), jnp.array([0.5, -0.5])])
    mean, std = networks.actor.apply(agent.params["actor"], obs[:6], obs[6:])
    act = functools.partial(planning.act, tiny(), networks, agent, ())
    action, memory = act(obs, None, deterministic=True)
    assert np.asarray(action) == pytest.approx(np.tanh(mean))
    assert memory == ()

    actions = np.asarray(act(jnp.tile(obs, (20_000, 1)), jax.random.key(0))[0])
    assert actions.shape == (20_000, 2)
    assert np.all(np.abs(actions) <= 1)
    z = np.arctanh(np.clip(actions.astype(np.float64), -1 + 1e-7, 1 - 1e-7))
    np.testing.assert_allclose(z.mean(0), mean, atol=0.03)
    np.testing.assert_allclose(z.std(0), std, rtol=0.03)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03


def test_the_goal_changes_the_action():
    networks, agent = start(tiny())
    act = functools.partial(planning.act, tiny(), networks, agent, (), key=None, deterministic=True)
    assert not np.allclose(act(jnp.zeros(8))[0], act(jnp.zeros(8).at[7].set(1.0))[0])
