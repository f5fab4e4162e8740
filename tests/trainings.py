"""Whole runs of a program, without folders."""

import dataclasses

import jax
from conftest import make_probe_program, tiny, tiny_of

from src import loop


def silent(text):
    del text


def run_to_end(program, seeds=(0,), resumed=None, seconds_per_chunk=2.0):
    """[(env_steps, metrics of every seed)] of all evaluations, and the last run state, as NumPy arrays."""
    reports, last = [], None
    for moment in loop.run(program, seeds, silent, resumed, seconds_per_chunk):
        last = jax.device_get(moment.run_state._replace(train_state=without_key(moment.run_state.train_state)))
        if moment.metrics is not None:
            reports.append((moment.env_steps, moment.metrics))
    return reports, last


def without_key(train_state):
    return train_state.replace(key=jax.random.key_data(train_state.key))


# A run in which the probe env is learned in seconds.
LEARNER = dataclasses.replace(
    tiny(),
    num_envs=32,
    episode_length=25,
    unroll_length=25,
    batch_size=64,
    min_replay_size=50,
    max_replay_size=1000,
    num_timesteps=60_000,
    num_evals=2,
    num_eval_envs=64,
    h_dim=32,
    repr_dim=16,
    policy_lr=1e-3,
    critic_lr=1e-3,
    alpha_lr=1e-3,
)


# What makes values reach back over an episode in such a run.
BOOTSTRAPPING = {"num_timesteps": 100_000, "multiplier_num_sgd_steps": 4.0, "discounting": 0.95, "tau": 0.02}


def learner_of(config_class, **changes):
    """The same run by another algorithm."""
    return tiny_of(config_class, like=LEARNER, **changes)


def success_rates(config):
    """Of the untrained policy and of the trained one."""
    reports, _ = run_to_end(make_probe_program(config))
    return [metrics["eval/episode_success_any"] for _, (metrics,) in reports]
