"""SRL and chrono: what their critics learn and their actors maximise, put together here; and that they learn."""

import csv
import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, make_probe_program, slow, tiny_of
from trainings import learner_of, success_rates

import training
from src import hazards, train
from src.algorithms import ALGORITHMS, chrono, srl

NAMES = pytest.mark.parametrize("name", ["srl", "chrono"])


class Dweller(ProbeEnv):
    """Asks for dwelling."""

    dwell = 3


def networks_of(config, env):
    bins = hazards.occupancy_bins(config.window()) if isinstance(config, chrono.ChronoConfig) else None
    return srl.make_networks(config, env, bins)


@functools.cache
def prepared(name, dwelling=False, **changes):
    """Config, networks, agent and one batch of the untrained policy's rows."""
    probe = Dweller if dwelling else ProbeEnv
    config = tiny_of(ALGORITHMS[name].config, batch_size=10, num_envs=4, **dict(changes))
    program = make_probe_program(config, functools.partial(probe, lives=(4, 12)))
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(0))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(4):
        state = collect(state)

    @jax.jit
    def first_batch(state):
        index, picks = train.draw(program, state, jax.random.key(1))
        return program.algorithm.gather(state.buffer_state.rows, index, jax.tree.map(lambda leaf: leaf[0], picks))

    batch = first_batch(state)
    return config, networks_of(config, program.env.env), program.algorithm, state.agent_state, batch


def representations(networks, params, batch):
    phi = networks.critic.phi.apply(params["phi"], batch.state, batch.action)
    dwell = batch.goal.shape[1]
    sequence = batch.goal.reshape(batch.goal.shape[0], -1)
    first = jnp.concatenate([batch.goal[:, 0]] * dwell, axis=-1)
    psi, first_psi = (networks.critic.psi.apply(params["psi"], each) for each in (sequence, first))
    return phi, psi, first_psi


@NAMES
@pytest.mark.parametrize("dwelling", [slow(False), True])
def test_the_losses_of_the_critic(name, dwelling):
    config, networks, algorithm, agent_state, batch = prepared(name, dwelling)
    _, metrics = algorithm.update(agent_state, batch, jax.random.key(3))
    params = agent_state.params["critic"]
    phi, psi, first_psi = representations(networks, params, batch)
    logits, _ = networks.critic.head.apply(params["head"], phi, psi)
    likelihood = hazards.log_likelihood(networks.bins, logits, batch.first_hit, batch.known)
    assert metrics["hazard_loss"] == pytest.approx(-float(np.mean(likelihood)), rel=1e-5)
    assert metrics["died"] == pytest.approx(float(np.mean(batch.died))) and np.any(batch.died)
    assert metrics["reached"] == pytest.approx(float(np.mean(batch.first_hit >= 0)))
    if name == "srl":
        return
    pace, (phi, psi, first_psi) = -np.log(0.999), (np.asarray(each) for each in (phi, psi, first_psi))
    hit = np.asarray(batch.first_hit)
    error = np.linalg.norm(phi - psi, axis=-1) - pace * hit
    huber = np.where(np.abs(error) < 1, error**2 / 2, np.abs(error) - 0.5)
    assert metrics["time_loss"] == pytest.approx(np.mean(huber[hit >= 1]) if np.any(hit >= 1) else 0, rel=1e-4)
    short = []
    for i in range(10):
        for j in range(10):
            apart = np.linalg.norm(batch.goal[i, 0] - batch.goal[j, 0]) > ProbeEnv.goal_dist
            if (i != j and apart) or (i == j and hit[i] < 0 <= batch.known[i]):
                short.append(max(0, 8 * pace - np.linalg.norm(phi[i] - first_psi[j])))
    assert metrics["separation_loss"] == pytest.approx(np.mean(short), rel=1e-4, abs=1e-7)
    _, of_occupancy = networks.critic.head.apply(params["head"], phi, first_psi)
    expected = hazards.occupancy_loss(of_occupancy, batch.occupancy)
    assert metrics["occupancy_loss"] == pytest.approx(float(expected), rel=1e-5)


@NAMES
@pytest.mark.parametrize("dwelling", [False, True])
def test_the_actor_maximises_the_value_of_arrival_and_where_agents_die_of_staying(name, dwelling):
    """For the first goal, dwelt at. The policy's plans are those of the key."""
    config, networks, algorithm, agent_state, batch = prepared(name, dwelling)
    key = jax.random.key(3)
    _, metrics = algorithm.update(agent_state, batch, key)
    params, goal = agent_state.params["critic"], batch.goal[:, 0]
    mean, std = networks.actor.apply(agent_state.params["actor"], batch.state, goal)
    plan = jnp.tanh(mean + std * jax.random.normal(key, mean.shape))
    phi, _, psi = representations(networks, params, dataclasses.replace(batch, action=plan))
    logits, of_occupancy = networks.critic.head.apply(params["head"], phi, psi)
    value = arrival = hazards.arrival_value(networks.bins, logits, 0.999)
    if name == "chrono":
        deaths = np.mean(batch.died)
        value = arrival + deaths * hazards.occupancy_value(networks.outlook.occupancy_bins, of_occupancy, 0.999)
    assert metrics["actor_loss"] == pytest.approx(-float(metrics["entropy"] + np.mean(value)), rel=1e-4)
    np.testing.assert_allclose(algorithm.energy(agent_state, batch.state, plan, goal), arrival, rtol=1e-4)


def test_the_distance_can_guide_the_actor():
    config, networks, _, agent_state, batch = prepared("chrono")
    params = agent_state.params["critic"]
    phi, psi, _ = representations(networks, params, batch)
    far = dataclasses.replace(config, distance_coef=0.5)
    values = [np.asarray(chrono.value(each, networks, params, phi, psi)) for each in (config, far)]
    distance = np.linalg.norm(np.asarray(phi) - np.asarray(psi), axis=-1)
    np.testing.assert_allclose(values[0] - values[1], 0.5 * distance / -np.log(0.999), rtol=1e-3)


@NAMES
@pytest.mark.parametrize("hazard_bins", [0, 48])
def test_hazards_begin_falling_with_time_by_bins_and_level_one_by_one(name, hazard_bins):
    config, networks, _, agent_state, batch = prepared(name, hazard_bins=hazard_bins)
    params = agent_state.params["critic"]
    logits, _ = networks.critic.head.apply(params["head"], *representations(networks, params, batch)[:2])
    first = hazards.hazard_bins(8, hazard_bins).first
    assert logits.shape == (10, len(first)) and (hazard_bins or len(first) == 9)
    start = -np.log(first[1:]) if hazard_bins else np.zeros(8)
    np.testing.assert_allclose(np.mean(logits[:, 1:], axis=0), start, atol=0.5)


@NAMES
def test_the_critic_and_the_actor_are_moved_by_their_own_losses_alone(name):
    """Without one of the rates, that part rests and the others move as before."""
    config, networks, algorithm, agent_state, batch = prepared(name)
    after, _ = algorithm.update(agent_state, batch, jax.random.key(3))
    for part, flag in (("actor", "policy_lr"), ("critic", "critic_lr"), ("log_alpha", "alpha_lr")):
        resting = ALGORITHMS[name].make(dataclasses.replace(config, **{flag: 0.0}), ProbeEnv())
        other, _ = resting.update(agent_state, batch, jax.random.key(3))
        for group in after.params:
            expected = agent_state.params if group == part else after.params
            for one, two in zip(*map(jax.tree.leaves, (other.params[group], expected[group])), strict=True):
                np.testing.assert_allclose(one, two, rtol=1e-5, atol=1e-7)


# Learning.


@pytest.mark.slow
@pytest.mark.parametrize(("name", "hazard_bins"), [("srl", 48), ("srl", 0), ("chrono", 48)])
def test_the_probe_env_is_learned(name, hazard_bins):
    untrained, trained = success_rates(learner_of(ALGORITHMS[name].config, hazard_bins=hazard_bins))
    assert untrained < 0.25
    assert trained > 0.8


@pytest.mark.slow
@NAMES
def test_point_is_learned_from_the_command_line(tmp_path, name):
    sizes = "--num_envs 32 --episode_length 25 --unroll_length 25 --batch_size 64 --min_replay_size 50"
    sizes += " --max_replay_size 1000 --num_timesteps 60000 --num_evals 2 --num_eval_envs 64 --h_dim 32 --no_render"
    words = ["--env_name", "point", "--algorithm", name, "--output_dir", str(tmp_path), *sizes.split()]
    assert training.main([*words, "--policy_lr", "1e-3", "--critic_lr", "1e-3", "--alpha_lr", "1e-3"]) == 0
    (path,) = tmp_path.rglob("metrics.csv")
    with path.open(newline="") as file:
        rates = [float(row["eval/episode_success_any"]) for row in csv.DictReader(file)]
    assert rates[0] < 0.25 and rates[-1] > 0.8
