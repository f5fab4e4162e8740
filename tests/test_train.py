"""The loop: what it collects, updates, reports and repeats, on the probe env and with an algorithm that only counts."""

import collections
import dataclasses
import functools
import itertools
import math
import re

import counting
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import UPDATE_METRICS, ProbeEnv, make_probe_program, registered, slow, tiny, tiny_of
from trainings import LEARNER, run_to_end, silent, success_rates

from src import loop, train
from src.algorithms import ALGORITHMS
from src.algorithms.crl import CRLConfig
from src.losses import CONTRASTIVE_LOSSES, ENERGY_FNS
from src.plan import measure, memory_plan
from src.program import make_program
from utils import derive_schedule

CLOCK_METRICS = {"eval/sps", "eval/walltime", "training/sps", "training/walltime"}


def numbers(reports):
    """The reports without what depends on the clock."""
    return [
        (env_steps, [{name: v for name, v in each.items() if name not in CLOCK_METRICS} for each in metrics])
        for env_steps, metrics in reports
    ]


def assert_same(one, other):
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.fixture(scope="module")
def program():
    return make_probe_program(tiny())


@pytest.fixture(scope="module")
def finished(program):
    """The run that the others are compared with."""
    return run_to_end(program)


# What a run reports.


def test_reports_come_at_the_scheduled_env_steps(program, finished):
    """160 env steps in unrolls of 4 * 5: 2 for the prefill and 6 with updates, in two epochs of 3."""
    reports, last = finished
    assert [env_steps for env_steps, _ in reports] == [0, 100, 160]
    assert program.schedule.total_env_steps == 160
    assert last.position.training_steps == 8
    assert last.train_state.buffer_state.size == 20


def test_metrics_have_the_names_that_dashboards_rely_on(finished):
    """And nothing is reported before it was measured."""
    reports, _ = finished
    per_episode = [
        f"eval/episode_{name}{suffix}"
        for name in ("reward", "success", "dist", "x", "effort")
        for suffix in ("", "_std", "_min", "_max")
    ]
    evaluation = {*per_episode, "eval/episode_success_any", "eval/avg_episode_length", "eval/sps", "eval/walltime"}
    counts = ("buffer_current_size", "env_resets_nonfinite", "replay_drawable")
    training = {f"training/{name}" for name in (*UPDATE_METRICS, "sps", "walltime", *counts)}
    names = [set(metrics[0]) for _, metrics in reports]
    assert names == [evaluation, evaluation | training, evaluation | training]
    assert all(type(value) is float for _, metrics in reports for value in metrics[0].values())
    assert [metrics[0].get("training/buffer_current_size") for _, metrics in reports] == [None, 80, 80]
    assert all(reports[i][1][0]["eval/walltime"] < reports[i + 1][1][0]["eval/walltime"] for i in range(2))


def test_a_single_evaluation_comes_at_the_end():
    """Of two epochs, none is left to evaluate the untrained policy."""
    reports, _ = run_to_end(counting_program(tiny(num_evals=1)))
    assert [env_steps for env_steps, _ in reports] == [160]


# Determinism.


@pytest.mark.parametrize("seconds_per_chunk", [1e-9, 2.0, 1e9])
def test_one_seed_gives_the_same_bits_however_the_run_is_cut(program, finished, seconds_per_chunk):
    reports, last = run_to_end(program, seconds_per_chunk=seconds_per_chunk)
    assert numbers(reports) == numbers(finished[0])
    assert_same(last.train_state, finished[1].train_state)


def test_other_seeds_give_other_numbers(program, finished):
    reports, last = run_to_end(program, seeds=(1,))
    for (_, (other,)), (_, (metrics,)) in zip(numbers(reports), numbers(finished[0]), strict=True):
        assert other["eval/episode_dist"] != metrics["eval/episode_dist"]
        assert other.keys() == metrics.keys()
    for one, two in zip(
        jax.tree.leaves(last.train_state.agent_state.params["critic"]),
        jax.tree.leaves(finished[1].train_state.agent_state.params["critic"]),
        strict=True,
    ):
        assert not np.array_equal(one, two)


def test_seeds_trained_together_are_the_runs_they_would_be_alone(program, finished):
    """Up to rounding: products of many matrices at once are summed in another order."""
    reports, _ = run_to_end(program, seeds=(1, 0))
    assert [env_steps for env_steps, _ in reports] == [0, 100, 160]
    for (_, (of_one, of_zero)), (_, (alone,)) in zip(numbers(reports), numbers(finished[0]), strict=True):
        # Goals that are twice in a batch are as near as the positive: rounding decides which of them counts as highest.
        slack = {"training/categorical_accuracy": 0.1}
        expected = {name: pytest.approx(v, rel=2e-2, abs=slack.get(name, 2e-3)) for name, v in alone.items()}
        assert of_zero == expected
        assert of_one["eval/episode_dist"] != pytest.approx(alone["eval/episode_dist"], rel=1e-3)


def test_a_run_continues_from_where_it_was_left(program, finished):
    """From a chunk in the middle of an epoch, and from an evaluation."""
    for stop in (lambda m: m.env_steps == 80, lambda m: m.env_steps == 100 and m.metrics):
        for moment in loop.run(program, (0,), silent, seconds_per_chunk=1e-9):
            if stop(moment):
                break
        assert stop(moment)
        reports, last = run_to_end(program, resumed=moment.run_state)
        missed = len(finished[0]) - len(reports)
        assert missed == (2 if moment.metrics else 1)
        assert numbers(reports) == numbers(finished[0])[missed:]
        assert_same(last.train_state, finished[1].train_state)


def test_no_key_is_used_twice(program):
    """JAX's own checker, over everything that is compiled. A key that is drawn from twice raises when traced."""
    with jax.debug_key_reuse(True):
        state, totals = jax.jit(functools.partial(train.init_run, program))(jax.random.key(0))
        count = jnp.zeros((), jnp.int32)
        jax.jit(functools.partial(train.train_chunk, program)).lower(state, totals, count, count)
        jax.jit(functools.partial(train.evaluation, program)).lower(state.agent_state, jax.random.key(1), count)


def test_the_number_of_epochs_does_not_change_how_often_step_is_traced():
    counts = []
    for num_evals in (2, 7):
        program = counting_program(tiny(num_evals=num_evals))
        before = ProbeEnv.traces
        reports, _ = run_to_end(program, seconds_per_chunk=1e-9)
        counts.append(ProbeEnv.traces - before)
        assert len(reports) == num_evals
    assert counts[0] == counts[1] <= 6


# What the loop does with an algorithm, whatever it is.


def counting_program(config, **probe_options):
    program = make_probe_program(config, functools.partial(ProbeEnv, **probe_options))
    return program._replace(algorithm=counting.make(config, program.env.env))


def test_every_update_is_made_and_averaged():
    """Update number n reports n, so an epoch's mean is that of all its numbers, the first and the last alike."""
    config = tiny(multiplier_num_sgd_steps=2, num_timesteps=200)
    program = counting_program(config)
    updates, epochs = program.schedule.updates_per_training_step, program.schedule.epoch_lengths
    assert updates == 9
    assert epochs == (4, 4)
    reports, last = run_to_end(program)
    ends = [updates * end for end in itertools.accumulate(epochs)]
    for (_, (metrics,)), (first, end) in zip(reports[1:], itertools.pairwise([0, *ends]), strict=True):
        assert metrics["training/number"] == pytest.approx(np.mean(np.arange(first + 1, end + 1)))
        assert metrics["training/draw"] == pytest.approx(0.5, abs=0.25)
    assert last.train_state.agent_state.params["updates"] == program.schedule.total_updates == 72
    assert len({metrics["training/draw"] for _, (metrics,) in reports[1:]}) == 2
    # The policy never changes, so only its own chance tells the evaluations apart.
    assert len({metrics["eval/episode_dist"] for _, (metrics,) in reports}) == 3
    assert last.train_state.agent_state.params["observed"] == program.schedule.total_env_steps


def test_the_prefill_makes_no_updates_but_is_observed():
    program = counting_program(tiny())
    state, totals = jax.jit(functools.partial(train.init_run, program))(jax.random.key(0))
    chunk = jax.jit(functools.partial(train.train_chunk, program))
    state, totals = chunk(state, totals, jnp.asarray(2), jnp.asarray(0))
    assert state.agent_state.params["updates"] == 0
    assert not any(np.any(leaf) for leaf in jax.tree.leaves(totals))
    assert state.agent_state.params["observed"] == 40
    assert state.buffer_state.size == 10
    state, totals = chunk(state, totals, jnp.asarray(1), jnp.asarray(3))
    assert state.agent_state.params["updates"] == 3
    assert totals["number"] == 2


def test_what_is_stored_is_what_happened():
    """Row by row the probe's dynamics: the next state of a trajectory is this one moved by this row's action."""
    program = counting_program(tiny(num_envs=8, max_replay_size=40, batch_size=8), lives=(3, 12))
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(2))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(8):
        state = collect(state)
    rows = jax.device_get(state.buffer_state.rows)
    moved = np.clip(rows.state[:-1] + 0.1 * rows.action[:-1], -1, 1)
    same = rows.traj_id[1:] == rows.traj_id[:-1]
    np.testing.assert_allclose(rows.state[1:][same], moved[same], atol=1e-6)
    assert np.max(np.abs(rows.state[1:][~same] - moved[~same]), axis=-1).min() > 1e-4
    assert collections.Counter(same.flat)[False] > 8  # early ends and time limits alike begin a new trajectory
    assert np.sum(state.agent_state.params["sum"]) == pytest.approx(np.sum(rows.state), rel=1e-3)


def test_the_trajectories_that_are_stored_are_those_that_goals_come_from():
    program = make_probe_program(
        tiny(num_envs=8, max_replay_size=40, batch_size=8), functools.partial(ProbeEnv, lives=(3, 12))
    )
    state = jax.jit(functools.partial(train.init, program))(jax.random.key(2))
    collect = jax.jit(functools.partial(train.collect, program))
    for _ in range(8):
        state = collect(state)
    rows = jax.device_get(state.buffer_state.rows)
    _, pairs = train.draw(program, state, jax.random.key(0))
    env = np.asarray(pairs.row) % 8
    np.testing.assert_array_equal(env, np.asarray(pairs.future_row) % 8)
    np.testing.assert_array_equal(rows.traj_id.reshape(-1)[pairs.row], rows.traj_id.reshape(-1)[pairs.future_row])
    assert pairs.row.shape == (program.schedule.updates_per_training_step, 8)


def test_envs_whose_physics_blows_up_are_restarted_and_counted():
    """Each episode turns NaN in its fourth step, so 40 steps of 4 envs, 20 for the prefill, hold 40 such moments."""
    program = counting_program(tiny(num_timesteps=160, num_evals=2), lives=(3, 3), ends=False)
    reports, last = run_to_end(program)
    assert [metrics.get("training/env_resets_nonfinite") for _, (metrics,) in reports] == [None, 40]
    *_, moment = loop.run(program, [0], silent)
    np.testing.assert_array_equal(moment.env_resets, [[10, 10, 10, 10]])
    assert not np.any(last.train_state.env_resets_nonfinite)  # it counts since the last evaluation
    rows = last.train_state.buffer_state.rows
    assert np.all(np.isfinite(rows.state))
    assert np.all(last.train_state.env_state.traj_id == 10)
    for _, (metrics,) in reports:
        assert all(np.isfinite(value) for value in metrics.values())
        assert metrics["eval/avg_episode_length"] == 4


def test_actions_differ_between_envs_and_steps():
    program = counting_program(tiny(num_envs=8, batch_size=8))
    state = train.init(program, jax.random.key(2))
    rows = jax.jit(functools.partial(train.collect, program))(state).buffer_state.rows
    actions = np.asarray(rows.action)[:5].reshape(-1, 2)
    assert len({tuple(action) for action in actions.tolist()}) == 5 * 8


# Programs.


def test_eval_env_of_other_sizes_is_refused():
    config = tiny(eval_env="bigger")
    with (
        registered(probe=ProbeEnv, bigger=functools.partial(ProbeEnv, tagged=True)),
        pytest.raises(ValueError, match=r"eval_env bigger does not fit env_name probe.*\(6, .*need \(2, "),
    ):
        make_program(config, derive_schedule(config))


def test_eval_env_is_where_the_policy_is_judged():
    """There the goal lies within reach of every point, so that every step counts as near it."""

    class Easy(ProbeEnv):
        goal_dist = 10.0

    config = tiny(eval_env="easy")
    with registered(probe=ProbeEnv, easy=Easy):
        program = make_program(config, derive_schedule(config))
    assert type(program.env.env) is ProbeEnv
    state, _ = train.init_run(program, jax.random.key(0))
    metrics = jax.jit(functools.partial(train.evaluation, program))(
        state.agent_state, jax.random.key(0), jnp.asarray(0)
    )
    assert metrics["episode_success"] == metrics["avg_episode_length"] == config.episode_length


# Learning.


def test_crl_learns_to_reach_goals():
    untrained, trained = success_rates(LEARNER)
    assert untrained < 0.25
    assert trained > 0.9


# Without the entropy term, whose weight suits the logits of InfoNCE with l2 and drowns smaller ones at first.
ANY_SCALE = {"disable_entropy_actor": True, "logsumexp_penalty": 0.0, "num_timesteps": 150_000}


@pytest.mark.slow
@pytest.mark.parametrize("energy_fn", ENERGY_FNS)
def test_every_energy_learns_to_reach_goals(energy_fn):
    untrained, trained = success_rates(dataclasses.replace(LEARNER, energy_fn=energy_fn, **ANY_SCALE))
    assert untrained < 0.25
    assert trained > 0.8


# Each once, but for the default, with which the energies are tested.
OTHER_LOSSES = {function: name for name, function in CONTRASTIVE_LOSSES.items() if name != LEARNER.contrastive_loss_fn}


@pytest.mark.slow
@pytest.mark.parametrize("loss", OTHER_LOSSES.values())
def test_every_contrastive_loss_learns_to_reach_goals(loss):
    """fb asks for positive logits, which the negative l2 cannot give, and the more the better: cos has a bound."""
    energy_fn = "cos" if loss == "fb" else "l2"
    config = dataclasses.replace(LEARNER, contrastive_loss_fn=loss, energy_fn=energy_fn, **ANY_SCALE)
    untrained, trained = success_rates(config)
    assert untrained < 0.25
    assert trained > 0.7


# Memory, as the compiler counts it.

ROOMY = tiny(num_envs=64, episode_length=50, max_replay_size=1000, batch_size=256, h_dim=256, repr_dim=64)


def compiled_chunk(config, probe=ProbeEnv):
    program = make_probe_program(config, probe)
    init, keys, _ = loop.make_init(program, range(config.num_seeds))
    state, totals = jax.eval_shape(init, keys)
    return program, loop.compile_program(program, config.num_seeds > 1, state, totals, silent).train_chunk


def measured_and_planned(program, compiled):
    memory = compiled.memory_analysis()
    plan = memory_plan(program.config, program.schedule, measure(program.config, program.env.env))
    assert memory.alias_size_in_bytes >= plan["replay"]  # written where it is
    return memory.argument_size_in_bytes + memory.temp_size_in_bytes, plan


@pytest.mark.parametrize(
    "changes",
    [
        slow({"num_critics": 2}),
        slow({"num_critics": 2, "action_chunk": 3, "num_seeds": 2}),
        {"num_envs": 512, "max_replay_size": 2000, "batch_size": 64},
        slow({"num_timesteps": 100_000, "batch_size": 700, "multiplier_num_sgd_steps": 20}),
    ],
)
def test_the_planned_memory_is_that_of_the_compiled_program(changes):
    """Whichever of learning, indexing the replay and drawing from it needs most."""
    measured, plan = measured_and_planned(*compiled_chunk(dataclasses.replace(ROOMY, **changes)))
    assert sum(plan.values()) == pytest.approx(measured, rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "crl"])
def test_the_planned_memory_of_another_algorithm_is_that_of_its_compiled_program(name):
    """With a batch so large that what an update needs counts."""
    like = dataclasses.replace(ROOMY, max_replay_size=200, batch_size=640, unroll_length=10)
    config = tiny_of(ALGORITHMS[name].config, like=like)
    measured, plan = measured_and_planned(*compiled_chunk(config))
    assert sum(plan.values()) == pytest.approx(measured, rel=0.2)


def test_nothing_in_the_compiled_program_is_larger_than_the_replay():
    """No table of rows by rows, and no second replay."""
    config = dataclasses.replace(ROOMY, num_envs=16, max_replay_size=2000, h_dim=16, batch_size=16)
    program, compiled = compiled_chunk(config, functools.partial(ProbeEnv, tagged=True))
    shapes = re.findall(r"\b(?:pred|[a-z]+\d+)\[([\d,]+)\]", compiled.as_text())
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    assert largest == program.schedule.replay_rows * config.num_envs * program.env.env.state_dim
    _, plan = measured_and_planned(program, compiled)
    assert compiled.memory_analysis().temp_size_in_bytes < 0.5 * plan["replay"]


@pytest.mark.slow
def test_a_run_of_1024_envs_needs_little_more_than_its_replay():
    config = CRLConfig(env_name="ant", num_envs=1024)
    program = make_program(config, derive_schedule(config))
    init, keys, _ = loop.make_init(program, [0])
    compiled = loop.compile_program(program, False, *jax.eval_shape(init, keys), silent).train_chunk
    measured, plan = measured_and_planned(program, compiled)
    assert measured < 1.3 * plan["replay"]
    assert sum(plan.values()) == pytest.approx(measured, rel=0.2)
