"""Evaluation against a loop in NumPy, on the probe env whose dynamics fit on one line."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import ProbeEnv

from envs.wrappers import VectorEnv
from src.algorithm import Policy
from src.evaluator import EVAL_GOALS_SEED, evaluate, run_episodes

NUM, LENGTH = 16, 12


def towards_goal(obs, key):
    del key
    return jnp.clip(10 * (obs[..., 2:] - obs[..., :2]), -1, 1)


def remembering_nothing(act):
    """The policy of a function of observations and a key."""
    return Policy(lambda shape: (), lambda memory, obs, key: (act(obs, key), memory))


def at_random(obs, key):
    return jax.random.uniform(key, (*obs.shape[:-1], 2), minval=-1.0)


class NaNAfterTheEnd(ProbeEnv):
    """Its state stays finite, but what it reports of an ended episode does not."""

    def step_pipeline(self, pipeline_state, action):
        moved = super().step_pipeline(pipeline_state, action)
        return moved | {"position": jnp.nan_to_num(moved["position"])}

    def step_metrics(self, before, after, action):
        metrics = super().step_metrics(before, after, action)
        return jax.tree.map(lambda value: jnp.where(after.pipeline_state["life"] < 0, jnp.nan, value), metrics)


def run(policy, key=0, action_repeat=1, num=NUM, length=LENGTH, probe=ProbeEnv, **options):
    vector = VectorEnv(probe(**options), length, action_repeat)
    summary = jax.jit(functools.partial(evaluate, vector, remembering_nothing(policy), num))(jax.random.key(key))
    return {name: float(value) for name, value in summary.items()}


def numpy_episodes(lives=None):
    """(reward, success, effort, x, dist, length) of each frozen episode under `towards_goal`, one step at a time."""
    probe = ProbeEnv(lives=lives)
    first = jax.device_get(VectorEnv(probe, LENGTH).reset(jax.random.key(EVAL_GOALS_SEED), NUM))
    episodes = []
    for position, goal, life in zip(first.state, first.goal, first.pipeline_state["life"], strict=True):
        sums = dict.fromkeys(("reward", "success", "effort", "x", "dist"), 0.0)
        for _ in range(min(LENGTH, life)):
            action = np.clip(10 * (goal - position), -1, 1)
            position = np.clip(position + 0.1 * action, -1, 1)
            dist = float(np.linalg.norm(position - goal))
            near = float(dist < probe.goal_dist)
            step = {"reward": near, "success": near, "effort": np.sum(action**2), "x": position[0], "dist": dist}
            sums = {name: total + step[name] for name, total in sums.items()}
        episodes.append(sums | {"length": min(LENGTH, life)})
    return episodes


@pytest.mark.parametrize(("probe", "lives"), [(ProbeEnv, None), (ProbeEnv, (2, 20)), (NaNAfterTheEnd, (2, 20))])
def test_sums_over_each_episode_and_their_spread(probe, lives):
    """With `lives` episodes end early. What is NaN from then on, the state or a metric, must not leak."""
    summary, episodes = run(towards_goal, probe=probe, lives=lives), numpy_episodes(lives)
    expected = {"avg_episode_length": np.mean([episode["length"] for episode in episodes])}
    for name in ("reward", "success", "effort", "x", "dist"):
        values = np.array([episode[name] for episode in episodes])
        expected[f"episode_{name}"] = values.mean()
        expected[f"episode_{name}_std"] = values.std()
        expected[f"episode_{name}_min"] = values.min()
        expected[f"episode_{name}_max"] = values.max()
    successes = np.array([episode["success"] for episode in episodes])
    expected["episode_success_any"] = np.mean(successes > 0)
    assert summary == {name: pytest.approx(value, rel=1e-4, abs=1e-4) for name, value in expected.items()}
    assert successes.min() + successes.max() > 0
    assert 0 < expected["episode_success_any"] < 1
    assert expected["episode_success_std"] > 0.1


@pytest.mark.parametrize(("lives", "actions"), [(0, 0), (3, 3)])
def test_an_episode_whose_physics_blows_up_keeps_its_last_finite_state(lives, actions):
    vector = VectorEnv(ProbeEnv(lives=(lives, lives), ends=False), LENGTH)
    forwards = remembering_nothing(lambda obs, key: jnp.ones((NUM, 2)))
    episodes, _ = run_episodes(vector, forwards, NUM, jax.random.key(0))
    assert np.all(episodes.length == actions + 1)
    np.testing.assert_allclose(episodes.last, np.clip(episodes.start + 0.1 * actions, -1, 1), atol=1e-6)


def test_the_average_length_is_in_env_steps():
    assert run(towards_goal)["avg_episode_length"] == LENGTH
    assert run(towards_goal, action_repeat=4)["avg_episode_length"] == LENGTH
    assert run(towards_goal, lives=(3, 3))["avg_episode_length"] == 3


def test_action_repeat_evaluates_as_many_env_steps():
    """One constant action, so that repeating it changes nothing."""

    def constant(obs, key):
        return jnp.full((*obs.shape[:-1], 2), 0.25)

    once, thrice = run(constant), run(constant, action_repeat=3)
    assert thrice == {name: pytest.approx(value, rel=1e-4, abs=1e-5) for name, value in once.items()}


def test_starts_and_goals_are_frozen():
    """A policy that ignores its key meets the same episodes whatever the key; one that uses it does not."""
    assert run(towards_goal, key=0) == run(towards_goal, key=1)
    assert run(at_random, key=0) == run(at_random, key=0)
    assert run(at_random, key=0)["episode_dist"] != run(at_random, key=1)["episode_dist"]


def test_episodes_differ_from_each_other():
    assert run(towards_goal)["episode_dist_std"] > 0.1


def test_metrics_an_env_does_not_report_are_absent():
    """No success flag, no success rate: nothing is invented."""

    class Mute(ProbeEnv):
        def _after(self, before, pipeline_state, action):
            env_state = super()._after(before, pipeline_state, action)
            return env_state.replace(metrics={"x": env_state.metrics["x"]})

    summary = evaluate(VectorEnv(Mute(), 3), remembering_nothing(towards_goal), 2, jax.random.key(0))
    assert {name.removesuffix("_std").removesuffix("_min").removesuffix("_max") for name in summary} == {
        "avg_episode_length",
        "episode_x",
        "episode_reward",
    }
