"""What a run has learned, loaded again: in two lines, as the agent it was, by any of its names, with its memory."""

import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv, tiny

from src import agent, planning
from src.agent import update_moments
from src.algorithm import policy_of
from src.algorithms import crl
from src.checkpoint import BEST_PARAMS_FILE, PARAMS_FILE, save_params
from src.policy import load_policy, load_trained
from utils import ConfigError, derive_schedule, write_record

STATE_DIM, GOAL_DIM, ACTION_SIZE = 2, 2, 2
CONFIG = tiny(normalize_observations=True, use_c_target=True)
OBS = np.random.default_rng(0).standard_normal((7, STATE_DIM + GOAL_DIM)).astype(np.float32)


@pytest.fixture(autouse=True)
def _probe(probe_registered):
    """All runs here are of the probe env."""


@functools.cache
def trained(config=CONFIG, seed=5):
    """An agent state that has seen something, without training."""
    agent_state = crl.init(config, crl.make_networks(config, ProbeEnv()), jax.random.key(seed))
    states = jax.random.normal(jax.random.key(seed + 1), (50, STATE_DIM)) * 3 + 1
    return agent_state.replace(normalizer=update_moments(agent_state.normalizer, states))


def write_run(run_dir, config=CONFIG, seed=5):
    """A run folder as training leaves it."""
    run_dir.mkdir(exist_ok=True)
    write_record(run_dir, config, derive_schedule(config), ["cpu"], [run_dir.name])
    save_params(run_dir / PARAMS_FILE, trained(config, seed))
    return run_dir


@pytest.fixture
def run_dir(tmp_path):
    return write_run(tmp_path)


def expected_actions(config=CONFIG, seed=5, obs=OBS):
    networks = crl.make_networks(config, ProbeEnv())
    return planning.act(config, networks, trained(config, seed), (), jnp.asarray(obs), None, deterministic=True)[0]


def test_the_policy_acts_as_the_agent_did(run_dir):
    """Normaliser and all: it is what the run evaluated with --deterministic_eval."""
    expected, policy = expected_actions(), load_policy(run_dir)
    actions = policy(OBS)
    assert actions.shape == (7, ACTION_SIZE)
    assert np.all(np.abs(actions) <= 1)
    np.testing.assert_allclose(actions, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(policy(OBS[0]), expected[0], rtol=1e-5, atol=1e-6)
    networks, bare = crl.make_networks(CONFIG, ProbeEnv()), trained().replace(normalizer=None)
    bare, _ = planning.act(CONFIG, networks, bare, (), jnp.asarray(OBS), None, deterministic=True)
    assert np.max(np.abs(bare - expected)) > 1e-2
    assert (policy.obs_size, policy.action_size, policy.has_memory) == (4, 2, False)


def test_a_stochastic_policy_needs_a_key_and_uses_it(run_dir):
    policy = load_policy(run_dir, deterministic=False)
    with pytest.raises(ValueError, match="needs a key"):
        policy(OBS)
    first, second = policy(OBS, jax.random.key(0)), policy(OBS, jax.random.key(1))
    assert np.array_equal(first, policy(OBS, jax.random.key(0)))
    assert np.array_equal(first, policy(OBS, key=jax.random.key(0)))
    assert not np.allclose(first, second)
    assert np.all(np.abs(first) <= 1)


@pytest.mark.parametrize("deterministic", [True, False])
def test_one_policy_whichever_way_it_is_loaded(run_dir, deterministic):
    program, agent_state = load_trained(run_dir)
    assert agent_state.opt_state is None
    act = policy_of(program.algorithm, agent_state, deterministic).act
    expected, _ = act((), jnp.asarray(OBS), jax.random.key(3))
    np.testing.assert_allclose(load_policy(run_dir, deterministic)(OBS, jax.random.key(3)), expected, rtol=1e-6)


def test_a_policy_is_chosen_by_name_by_env_steps_or_by_file(run_dir, tmp_path):
    (run_dir / "policies").mkdir()
    elsewhere = tmp_path / "copied.npz"
    places = {
        "best": run_dir / BEST_PARAMS_FILE,
        "800": run_dir / "policies" / "000000000800.npz",
        "12000": run_dir / "policies" / "000000012000.npz",
        str(elsewhere): elsewhere,
    }
    for seed, path in enumerate(places.values(), start=20):
        save_params(path, trained(seed=seed))
    spellings = {"last": 5, "best": 20, "800": 21, "000000000800": 21, "12_000": 22, "1.2e4": 22, str(elsewhere): 23}
    spellings |= {"policies/000000000800.npz": 21, str(run_dir / "params.npz"): 5}
    for params, seed in spellings.items():
        expected = expected_actions(seed=seed)
        np.testing.assert_allclose(load_policy(run_dir, params=params)(OBS), expected, rtol=1e-5, atol=1e-6)
        agent_state = load_trained(run_dir, params)[1]
        np.testing.assert_array_equal(agent_state.normalizer.mean, trained(seed=seed).normalizer.mean)
    with pytest.raises(ConfigError, match=r"no policy '900': there are last, best, 800, 12000$"):
        load_policy(run_dir, params="900")
    for nothing in ("wurst.npz", "", ".", "\u00b2", "8_", "nan", "inf", "~nobody/x.npz", "x" * 300):
        with pytest.raises(ConfigError, match=rf"no policy {nothing!r}: there are last"):
            load_trained(run_dir, nothing)


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="is not a run folder"):
        load_policy(tmp_path / "nothing")


def test_a_run_before_its_first_evaluation_has_no_policy(run_dir):
    (run_dir / PARAMS_FILE).unlink()
    with pytest.raises(ConfigError, match="holds no policy 'last': the first evaluation leaves one"):
        load_policy(run_dir)


@pytest.mark.parametrize("shape", [(3,), (7, 2), (4, 5), (0,), ()])
def test_an_observation_of_another_size_is_told_the_sizes(run_dir, shape):
    given = shape[-1] if shape else 0
    with pytest.raises(ValueError, match=rf"has 4 entries, 2 of state and 2 of goal; got {given}$"):
        load_policy(run_dir)(np.zeros(shape))


def test_observations_come_in_any_form(run_dir):
    policy, expected = load_policy(run_dir), expected_actions()
    close = functools.partial(np.testing.assert_allclose, desired=expected, rtol=1e-4, atol=1e-5)
    close(policy(OBS.astype(np.float64)))
    close(policy(jnp.asarray(OBS)))
    close(policy(OBS.tolist()))
    close(jax.jit(policy)(OBS))
    close(jax.vmap(policy)(OBS))
    assert policy(OBS.reshape(7, 1, 1, 4)).shape == (7, 1, 1, 2)
    assert policy([1, 0, 0, 1]).shape == (2,)


def test_parameters_trained_under_an_older_jax_act_as_they_did_there():
    """A run folder of JAX 0.10.2, and the actions it chose there; the tests run on every supported version."""
    policy = load_policy(Path(__file__).parent / "data" / "policy_of_jax_0.10")
    obs = np.linspace(-1, 1, 39).reshape(3, 13)
    actions = [[-0.86583865, 0.24069673], [0.05498117, -0.47034395], [0.17060605, -0.52968955]]
    np.testing.assert_allclose(policy(obs), actions, atol=1e-5)


# Policies with a memory.

PLANNING = tiny(action_chunk=3)


@pytest.mark.parametrize("shape", [(), (7,)])
def test_a_policy_with_a_memory_carries_out_what_it_planned(tmp_path, shape):
    """Three actions are those of one proposal, whatever is seen in between; the fourth is of the next one."""
    policy = load_policy(write_run(tmp_path, PLANNING))
    networks = crl.make_networks(PLANNING, ProbeEnv())
    assert policy.has_memory
    memory = policy.init_memory(shape)
    seen = [np.broadcast_to(OBS[number], (*shape, 4)) for number in range(4)]
    for number, obs in enumerate(seen):
        action, memory = policy(obs, memory)
        state, goal = np.split(seen[number // 3 * 3], [2], axis=-1)
        planned = agent.propose(networks, trained(PLANNING), state, goal).reshape(*shape, 3, 2)[..., number % 3, :]
        np.testing.assert_allclose(action, planned, rtol=1e-5, atol=1e-6)
        assert action.shape == (*shape, 2)


def test_a_policy_with_a_memory_never_acts_without_it(tmp_path):
    policy = load_policy(write_run(tmp_path, PLANNING))
    lines = r"memory = policy\.init_memory\(obs\.shape\[:-1\]\)\naction, memory = policy\(obs, memory\)$"
    with pytest.raises(ValueError, match=lines):
        policy(OBS)
    with pytest.raises(ValueError, match=lines):
        policy(OBS, key=jax.random.key(0))
    sampled = load_policy(tmp_path, deterministic=False)
    memory = sampled.init_memory((7,))
    with pytest.raises(ValueError, match="needs a key"):
        sampled(OBS, memory)
    first, _ = sampled(OBS, memory, jax.random.key(0))
    assert np.any(first != sampled(OBS, memory, key=jax.random.key(1))[0])


def test_the_two_lines_work_for_policies_without_a_memory_too(run_dir):
    policy = load_policy(run_dir)
    memory = policy.init_memory(OBS.shape[:-1])
    action, memory = policy(OBS, memory)
    assert memory == ()
    np.testing.assert_array_equal(action, policy(OBS))
    sampled = load_policy(run_dir, deterministic=False)
    action, memory = sampled(OBS, memory, jax.random.key(1))
    np.testing.assert_array_equal(action, sampled(OBS, jax.random.key(1)))
