"""The plan of a run: its bytes, how many seeds fit, what it says."""

import dataclasses
import functools
import itertools
import re

import jax
import pytest
from conftest import ProbeEnv, make_probe_program, tiny, tiny_of

from envs.base import Sizes
from src import plan, train
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from utils import derive_schedule

COSTS = plan.measure(tiny(), ProbeEnv())


def size_of(tree):
    """Bytes of its arrays."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


@pytest.mark.parametrize("changes", [{}, {"num_envs": 7, "unroll_length": 9, "batch_size": 10, "num_timesteps": 999}])
def test_the_plan_counts_the_bytes_of_the_replay(changes):
    program = make_probe_program(tiny(**changes))
    memory = plan.memory_plan(program.config, program.schedule, plan.measure(program.config, program.env.env))
    state = jax.eval_shape(functools.partial(train.init, program), jax.random.key(0))
    assert memory["replay"] == size_of(state.buffer_state.rows)
    assert memory["index"] >= size_of(jax.eval_shape(program.algorithm.index, state.buffer_state))
    assert memory["rest"] >= size_of((state.agent_state.params, state.agent_state.opt_state))


@pytest.mark.parametrize("name", ALGORITHMS)
def test_costs_are_those_of_the_arrays_of_a_run(name):
    config = tiny_of(ALGORITHMS[name].config, batch_size=4)
    program = make_probe_program(config)
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(0))
    costs = plan.measure(config, program.env.env)
    assert 4 * costs.parameters == size_of(state.agent_state.params)
    assert 4 * costs.agent == size_of(state.agent_state)
    rows = program.schedule.replay_rows * config.num_envs
    assert 4 * costs.row == pytest.approx(size_of(state.buffer_state.rows) / rows, abs=4)  # whole floats


@pytest.mark.parametrize("name", ALGORITHMS)
def test_what_would_fit_is_offered_in_flags_of_the_algorithm(name):
    config = tiny_of(ALGORITHMS[name].config, num_envs=256, batch_size=256)
    costs = plan.measure(config, ProbeEnv())
    line = plan.smaller_plans(config, costs, 1, plan.planned_bytes(config, costs, 1) // 2)
    named = re.findall(r"--(\w+)", line)
    assert named and all(hasattr(config, flag) for flag in named)


def weights(*widths):
    return sum(inputs * outputs + outputs for inputs, outputs in itertools.pairwise(widths))


def test_parameters_are_counted_by_part():
    """State, goal and action have two entries each; plans of three actions six."""
    config = tiny(action_chunk=3, num_critics=2, actor_h_dim=5, critic_n_hidden=1)
    encoders = weights(2 + 6, 8, 4) + weights(2, 8, 4)
    assert plan.measure(config, ProbeEnv()).parameters == weights(2 + 2, 5, 5, 2 * 6) + 2 * encoders + 1
    assert plan.measure(config, ProbeEnv()).row == plan.measure(tiny(), ProbeEnv()).row == 2 + 2 + 1


def test_the_plan_says_what_will_happen():
    config = CRLConfig()
    text = plan.describe_plan(config, derive_schedule(config), COSTS._replace(sizes=Sizes(10, 2, 2)))
    for fragment in (
        *("reacher: state 10, goal 2, action 2", "10,031,104 in 512 envs", "17 unrolls", "1,998", "597,402 in all"),
        *("1 update per 15.9 env steps", "49 of 6 or 7", "50 of 128 episodes", "10,044 rows per env"),
    ):
        assert fragment in text


def test_the_plan_says_when_there_are_fewer_evaluations():
    config = tiny(num_evals=50)
    assert "7 of 4 episodes (asked for 50" in plan.describe_plan(config, derive_schedule(config), COSTS)


def test_as_many_seeds_are_trained_together_as_fit_in_even_batches():
    config = tiny(num_seeds=8)
    one = plan.planned_bytes(tiny(), COSTS, 1)
    assert plan.seeds_that_fit(config, COSTS, 1, None) == 8
    assert plan.seeds_that_fit(config, COSTS, 1, 100 * one) == 8
    assert plan.seeds_that_fit(config, COSTS, 1, 6 * one) == 4  # 5 would fit
    assert plan.seeds_that_fit(config, COSTS, 1, one // 2) == 1
    assert plan.seeds_that_fit(config, COSTS, 4, 3 * one) == 8  # two on each of four devices


def test_seeds_are_not_split_into_batches_that_would_be_refused():
    config = tiny(num_seeds=8, num_envs=100, batch_size=100, num_eval_envs=100)
    one = plan.planned_bytes(dataclasses.replace(config, num_seeds=1), COSTS, 1)
    fitting = [plan.seeds_that_fit(config, COSTS, 8, share * one) for share in (100, 0.8, 0.4, 0.01)]
    assert fitting == [8, 4, 2, 2]  # 3 and 1 would leave 8 devices to a seed
    odd = dataclasses.replace(config, num_seeds=5, num_envs=6)
    assert plan.seeds_that_fit(odd, COSTS, 4, one) == 5  # no size divides; refused with the reason
