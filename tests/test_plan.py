"""The plan of a run: its bytes, how many seeds fit, what it says."""

import dataclasses
import functools

import jax
import pytest
from conftest import make_probe_program, tiny

from envs.base import Sizes
from src import plan, replay_buffer, train
from src.algorithms.crl import CRLConfig
from utils import derive_schedule

SIZES = Sizes(2, 2, 2)  # of the probe env


@pytest.mark.parametrize("changes", [{}, {"num_envs": 7, "unroll_length": 9, "batch_size": 10, "num_timesteps": 999}])
def test_the_plan_counts_the_bytes_of_the_replay(changes):
    program = make_probe_program(tiny(**changes))
    memory = plan.memory_plan(program.config, program.schedule, program.env.env.sizes)
    state = jax.eval_shape(functools.partial(train.init, program), jax.random.key(0))
    assert memory["replay"] == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state.buffer_state.rows))
    index = jax.eval_shape(replay_buffer.index_futures, state.buffer_state)
    assert memory["index"] >= sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(index))
    learned = jax.tree.leaves((state.agent_state.params, state.agent_state.opt_state))
    assert memory["rest"] >= sum(leaf.size * leaf.dtype.itemsize for leaf in learned)


def test_the_plan_says_what_will_happen():
    config = CRLConfig()
    text = plan.describe_plan(config, derive_schedule(config), Sizes(10, 2, 2))
    for fragment in (
        *("reacher: state 10, goal 2, action 2", "10,031,104 in 512 envs", "17 unrolls", "1,998", "597,402 in all"),
        *("1 update per 15.9 env steps", "49 of 6 or 7", "50 of 128 episodes", "10,044 rows per env"),
    ):
        assert fragment in text


def test_the_plan_says_when_there_are_fewer_evaluations():
    config = tiny(num_evals=50)
    assert "7 of 4 episodes (asked for 50" in plan.describe_plan(config, derive_schedule(config), SIZES)


def test_as_many_seeds_are_trained_together_as_fit_in_even_batches():
    config = tiny(num_seeds=8)
    one = plan.planned_bytes(tiny(), SIZES, 1)
    assert plan.seeds_that_fit(config, SIZES, 1, None) == 8
    assert plan.seeds_that_fit(config, SIZES, 1, 100 * one) == 8
    assert plan.seeds_that_fit(config, SIZES, 1, 6 * one) == 4  # 5 would fit
    assert plan.seeds_that_fit(config, SIZES, 1, one // 2) == 1
    assert plan.seeds_that_fit(config, SIZES, 4, 3 * one) == 8  # two on each of four devices


def test_seeds_are_not_split_into_batches_that_would_be_refused():
    config = tiny(num_seeds=8, num_envs=100, batch_size=100, num_eval_envs=100)
    one = plan.planned_bytes(dataclasses.replace(config, num_seeds=1), SIZES, 1)
    fitting = [plan.seeds_that_fit(config, SIZES, 8, share * one) for share in (100, 0.8, 0.4, 0.01)]
    assert fitting == [8, 4, 2, 2]  # 3 and 1 would leave 8 devices to a seed
    odd = dataclasses.replace(config, num_seeds=5, num_envs=6)
    assert plan.seeds_that_fit(odd, SIZES, 4, one) == 5  # no size divides; refused with the reason
