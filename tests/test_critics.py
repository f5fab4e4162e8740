"""Critics in parts: several as one, against each alone; and trunks of each part's own size."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, tiny

from src import critics
from src.algorithms import crl
from src.critics import CRITICS, Critic, critic_loss, ensemble
from src.losses import ENERGY_FNS

BATCH, STATE, ACTION, GOAL = 5, 6, 2, 3
random = np.random.default_rng(0)
STATES, ACTIONS, GOALS = (jnp.asarray(random.standard_normal((BATCH, size))) for size in (STATE, ACTION, GOAL))


def make(num_critics, config=None):
    """The critic, and its parameters."""
    config = config or tiny()
    critic = ensemble(CRITICS[config.critic](config, STATE, ACTION, GOAL), num_critics)
    return critic, critic.init(tuple(jax.random.split(jax.random.key(1))))


def own(params, number):
    """The parameters of one critic of several."""
    return jax.tree.map(lambda leaf: leaf[number], params)


def represent(critic, params):
    return critic.phi(params, STATES, ACTIONS), critic.psi(params, GOALS)


def assert_same(one, other, **tolerance):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a, b, **tolerance)


def test_an_ensemble_of_one_is_the_critic_alone():
    """Its keys and its digits, too."""
    alone = CRITICS["two_encoders"](tiny(), STATE, ACTION, GOAL)
    one, params = make(1)
    assert_same(params, alone.init(tuple(jax.random.split(jax.random.key(1)))), rtol=0)
    phi, psi = represent(one, params)
    assert phi.shape == psi.shape == (BATCH, 4)
    assert_same((phi, psi), represent(alone, params), rtol=0)
    assert_same(one.table(phi, psi), alone.table(phi, psi), rtol=0)
    assert_same(one.energy(phi, psi), alone.energy(phi, psi), rtol=0)


@pytest.mark.parametrize("energy_fn", ENERGY_FNS)
def test_an_ensemble_is_its_critics_side_by_side_and_its_energy_the_least(energy_fn):
    config = tiny(energy_fn=energy_fn)
    alone, (both, params) = make(1, config)[0], make(2, config)
    phi, psi = represent(both, params)
    table, energy = both.table(phi, psi), both.energy(phi, psi)
    assert phi.shape == psi.shape == (2, BATCH, 4)
    assert table.shape == (2, BATCH, BATCH)
    assert energy.shape == (BATCH,)
    parts = [represent(alone, own(params, number)) for number in range(2)]
    for number, part in enumerate(parts):
        assert_same((phi[number], psi[number]), part, rtol=1e-5, atol=1e-6)
        assert_same(table[number], alone.table(*part), rtol=1e-4, atol=1e-5)
    energies = np.stack([alone.energy(*part) for part in parts])
    np.testing.assert_allclose(energy, energies.min(axis=0), rtol=1e-5, atol=1e-6)
    assert {0, 1} == set(energies.argmin(axis=0))  # neither is the least everywhere


def test_the_critics_of_an_ensemble_start_apart():
    params = make(3)[1]
    for group in ("sa_encoder", "g_encoder"):
        kernel = np.asarray(params[group]["params"]["trunk"]["Dense_1"]["kernel"])
        assert len({each.tobytes() for each in kernel}) == 3
    hidden = [params[group]["params"]["trunk"]["Dense_1"]["kernel"] for group in ("sa_encoder", "g_encoder")]
    assert not np.any(np.isclose(*hidden, rtol=1e-3))


def test_an_ensemble_takes_any_leading_axes():
    critic, params = make(2)
    phi = critic.phi(params, jnp.tile(STATES, (3, 1, 1)), jnp.tile(ACTIONS, (3, 1, 1)))
    psi = critic.psi(params, jnp.tile(GOALS, (3, 1, 1)))
    assert phi.shape == psi.shape == (2, 3, BATCH, 4)
    energy = critic.energy(phi, psi)
    np.testing.assert_allclose(energy, np.tile(critic.energy(*represent(critic, params)), (3, 1)), rtol=1e-5)


# In the update.

OPTIONS = [{}, {"use_c_target": True, "l2_penalty": 0.1, "no_resubs": True}, {"energy_fn": "mrn"}]


@functools.cache
def start(config):
    networks = crl.make_networks(config, ProbeEnv(tagged=True))
    return networks, crl.init(config, networks, jax.random.key(1))


def make_batch():
    goals = STATES[:, :2]
    return crl.Batch(STATES, jnp.tanh(ACTIONS), jnp.roll(goals, 1, axis=0))


@pytest.mark.parametrize("options", OPTIONS)
def test_losses_of_an_ensemble_add_and_each_critic_follows_its_own(options):
    together, alone = tiny(num_critics=2, **options), tiny(**options)
    (networks, agent), (single, _) = start(together), start(alone)
    params = agent.params["critic"]
    if together.use_c_target:
        assert params["c_target"].shape == (2,)
        params = params | {"c_target": jnp.array([0.5, 2.0])}
    batch = make_batch()

    def loss(config, critic, params):
        phi, psi = critic.phi(params, batch.state, batch.action), critic.psi(params, batch.future_goal)
        return critic_loss(config, critic, params, phi, psi)

    def graded(config, critic, params):
        return jax.jit(jax.value_and_grad(functools.partial(loss, config, critic), has_aux=True))(params)

    (value, metrics), gradient = graded(together, networks.critic, params)
    each = [graded(alone, single.critic, own(params, number)) for number in range(2)]
    assert value == pytest.approx(float(sum(value for (value, _), _ in each)), rel=1e-5)
    for number, ((_, _), gradient_of_one) in enumerate(each):
        assert_same(own(gradient, number), gradient_of_one, rtol=1e-3, atol=1e-6)
    first, second = (metrics for (_, metrics), _ in each)
    expected = jax.tree.map(lambda *of_each: sum(of_each) / 2, first, second)
    assert_same(metrics, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("options", [{}, {"random_goals": 0.5}, {"exploration_coef": 0.3}])
def test_the_actor_climbs_the_least_of_the_energies(options):
    """Two critics that are one: the least is that one, with its gradient."""
    together, alone = tiny(num_critics=2, **options), tiny(**options)
    (networks, _), (single, agent) = start(together), start(alone)
    twice = agent.params | {"critic": jax.tree.map(lambda leaf: jnp.stack([leaf, leaf]), agent.params["critic"])}
    batch = make_batch()

    def loss(config, networks, actor, params):
        psi = networks.critic.psi(params["critic"], batch.future_goal)
        inputs = params | {"actor": actor}, jax.random.key(3), batch.state, batch.future_goal, psi
        return crl.policy_loss(config, networks, *inputs)[0]

    one, both = (
        jax.value_and_grad(functools.partial(loss, config, each))(agent.params["actor"], params)
        for config, each, params in ((alone, single, agent.params), (together, networks, twice))
    )
    assert_same(both, one, rtol=1e-3, atol=1e-6)


def test_an_update_of_two_critics_reports_what_one_does():
    names = []
    for config in (tiny(), tiny(num_critics=2)):
        networks, agent = start(config)
        update = functools.partial(crl.update, config, networks)
        after, metrics = jax.eval_shape(update, agent, make_batch(), jax.random.key(0))
        assert jax.tree.structure(after) == jax.tree.structure(agent)
        assert all(leaf.shape == () for leaf in metrics.values())
        names.append(metrics.keys())
    assert names[0] == names[1]


# Sizes of each part.


def parameter_count(widths):
    return sum(inputs * outputs + outputs for inputs, outputs in zip(widths, widths[1:], strict=False))


@pytest.mark.parametrize("num_critics", [1, 2])
@pytest.mark.parametrize(
    ("flags", "actor", "encoder"),
    [
        ({}, [8, 8], [8, 8]),
        ({"actor_n_hidden": 4}, [8] * 4, [8, 8]),
        ({"critic_n_hidden": 1}, [8, 8], [8]),
        ({"actor_h_dim": 5}, [5, 5], [8, 8]),
        ({"critic_h_dim": 7, "critic_n_hidden": 3}, [8, 8], [7] * 3),
        ({"actor_h_dim": 3, "actor_n_hidden": 1, "critic_h_dim": 9}, [3], [9, 9]),
    ],
)
def test_each_part_has_its_own_width_and_depth(num_critics, flags, actor, encoder):
    config = tiny(num_critics=num_critics, action_chunk=2, **flags)
    networks = crl.make_networks(config, ProbeEnv(tagged=True))
    params = jax.eval_shape(functools.partial(crl.init, config, networks), jax.random.key(0)).params
    counts = {name: sum(leaf.size for leaf in jax.tree.leaves(part)) for name, part in params.items()}
    state, goal, plan = 6, 2, 2 * 2
    encoders = parameter_count([state + plan, *encoder, 4]) + parameter_count([goal, *encoder, 4])
    assert counts["critic"] == num_critics * encoders
    assert counts["actor"] == parameter_count([state + goal, *actor, 2 * plan])


# Another form.


def test_a_critic_of_another_form_is_a_function_and_a_line(monkeypatch):
    """Bilinear: W (s, a) against g."""

    def bilinear(config, state_dim, action_size, goal_dim):
        return Critic(
            init=lambda keys: {"weight": jax.random.normal(keys[0], (state_dim + action_size, goal_dim))},
            phi=lambda params, state, action: jnp.concatenate([state, action], axis=-1) @ params["weight"],
            psi=lambda params, goal: goal,
            energy=lambda phi, psi: jnp.sum(phi * psi, axis=-1),
            table=lambda phi, psi: phi @ psi.T,
        )

    monkeypatch.setitem(critics.CRITICS, "bilinear", bilinear)
    for num_critics in (1, 2):
        config = tiny(critic="bilinear", num_critics=num_critics, critic_lr=1e-2)
        networks = crl.make_networks(config, ProbeEnv(tagged=True))
        agent = crl.init(config, networks, jax.random.key(0))
        update = jax.jit(functools.partial(crl.update, config, networks))
        reported = []
        for _ in range(50):
            agent, metrics = update(agent, make_batch(), jax.random.key(2))
            reported.append(float(metrics["crl_critic_loss"]))
        assert reported[-1] < 0.7 * reported[0]
