#!/usr/bin/env python
"""Measures a trained policy: `python scripts/evaluate.py RUN_DIR --episodes 1000`.

Prints success and time near the goal with confidence intervals, deterministic and stochastic, by distance to the goal;
writes the table as evaluation.csv and draws the pictures of `src/insight.py` into the run folder; those of another
policy or environment (`--params`, `--eval_env`, `--eval_gen_distances`) have it in their names.
"""

import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # so that it runs from any directory

from scripts.plot import markdown_table, write_csv  # noqa: E402
from scripts.trained import TrainedConfig, load_or_refuse  # noqa: E402
from src.algorithm import Policy, policy_of  # noqa: E402
from src.evaluator import Episodes, run_episodes  # noqa: E402
from src.insight import draw_all, name_of_eval_env  # noqa: E402
from src.output import run_command  # noqa: E402
from src.program import Program, key_beside  # noqa: E402
from src.statistics import stratified_bootstrap  # noqa: E402
from utils import FAILED, REFUSED, ConfigError  # noqa: E402

MOST_BINS = 5
MOST_EPISODES = 100_000  # they run side by side, each with the memory of an environment


@dataclasses.dataclass(frozen=True)
class EvaluateConfig(TrainedConfig):
    """Measures a trained policy on many episodes."""

    episodes: int = 1000
    """Episodes for each of the two policies; the first ones are those of the run's own evaluations."""
    confidence: float = 0.95
    """Confidence of the intervals."""
    seed: int = 0
    """Where sampled actions and the bootstrap's resamples come from."""


@functools.partial(jax.jit, static_argnums=(0, 1))
def roll_out(
    program: Program, num_episodes: int, agent_state: Any, key: jax.Array, deterministic: jax.Array
) -> Episodes:
    """Whole episodes of a policy whose `deterministic` is data, so that one program serves both."""

    both = [policy_of(program.algorithm, agent_state, which) for which in (True, False)]

    def act(memory: Any, obs: jax.Array, key: jax.Array) -> tuple[jax.Array, Any]:
        return jax.tree.map(functools.partial(jnp.where, deterministic), *[each.act(memory, obs, key) for each in both])

    return run_episodes(program.eval_env, Policy(both[0].init_memory, act), num_episodes, key)[0]


def distance_bins(distances: np.ndarray, goal_dist: float) -> list[tuple[float, float]]:
    """Bounds of up to `MOST_BINS` equal bins over the distances (N,), none narrower than the goal's own width."""
    low, high = float(distances.min()), float(distances.max())
    count = int(np.clip((high - low) / (2 * goal_dist), 1, MOST_BINS))
    edges = np.linspace(low, high, count + 1)
    return list(zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True))


def table_rows(
    episodes: Episodes, distances: np.ndarray, bins: list[tuple[float, float]], actions: str, config: EvaluateConfig
) -> list[dict[str, Any]]:
    """One row for all episodes, and one for each bin of distance that holds any."""
    last = bins[-1]
    inside = {f"{low:.2f} to {high:.2f}": (distances >= low) & (distances < high) for low, high in bins[:-1]}
    inside[f"{last[0]:.2f} to {last[1]:.2f}"] = distances >= last[0]
    chosen = {"all": np.ones(len(distances), bool)} | (inside if len(bins) > 1 else {})
    near = episodes.totals["success"]
    return [
        {"actions": actions, "distance to goal (m)": name, **scores(near[which], config)}
        for name, which in chosen.items()
        if which.any()
    ]


def scores(near: np.ndarray, config: EvaluateConfig) -> dict[str, int | float]:
    """Success rate with Wilson's interval, and mean time near the goal with a bootstrap interval, of (N,) times."""
    reached = stats.binomtest(int(np.sum(near > 0)), len(near))
    rate = reached.proportion_ci(config.confidence, method="wilson")
    low, high = stratified_bootstrap(
        [near], lambda strata: float(np.mean(strata[0])), confidence=config.confidence, seed=config.seed
    )
    return {
        "episodes": len(near),
        "success": float(reached.statistic),
        "success low": float(rate.low),
        "success high": float(rate.high),
        "time near goal": float(np.mean(near)),
        "time low": float(low),
        "time high": float(high),
    }


def check(config: EvaluateConfig) -> None:
    """Raises ConfigError for what cannot be carried out."""
    if not 1 <= config.episodes <= MOST_EPISODES:
        raise ConfigError(f"--episodes {config.episodes} is out of range: 1 to {MOST_EPISODES:,}")
    if not 0 < config.confidence < 1:
        raise ConfigError(f"--confidence {config.confidence} is out of range: it lies inside (0, 1), e.g. 0.95")


def main(args: list[str]) -> int:
    """Runs the command line; returns the exit status: 0 done, 1 a file could not be written, 2 refused."""
    loaded = load_or_refuse(EvaluateConfig, args, "evaluate.py", check)
    if loaded is None:
        return REFUSED
    config, program, agent_state = loaded
    env, run_dir = program.eval_env.env, Path(config.run_dir)
    rows = []
    for actions in ("deterministic", "stochastic"):
        key = key_beside(config.seed, "evaluate")
        which = jnp.asarray(actions == "deterministic")
        episodes = jax.device_get(roll_out(program, config.episodes, agent_state, key, which))
        distances = np.asarray(env.goal_distance(episodes.start, episodes.goal))
        rows += table_rows(episodes, distances, distance_bins(distances, env.goal_dist), actions, config)
        if (actions == "deterministic") == program.config.deterministic_eval:
            shown = episodes
    print(f"{name_of_eval_env(program.config)}, policy of {run_dir} ({config.params})\n")
    print(markdown_table(rows))
    print(
        f"success: share of episodes within {env.goal_dist:g} m of the goal at least once; time near goal: env steps "
        f"there, of {program.config.episode_length:,}.\n"
        f"low, high: {100 * config.confidence:g} % intervals, Wilson's for success, bootstrap for time."
    )
    # The run's own files stand for its last policy in its own env.
    others = (config.policy_name, config.eval_env, config.eval_gen_distances)
    suffix = "".join(f"_{other}" for other in others if other not in ("last", None, ""))
    path = run_dir / f"evaluation{suffix}.csv"
    try:
        write_csv(path, rows)
    except OSError as error:
        print(f"error: {error}", file=sys.stderr)
        return FAILED
    pictures, complete = draw_all(run_dir, program, agent_state, shown, suffix)
    print("written: " + ", ".join(map(str, [path, *pictures])))
    return 0 if complete else FAILED


if __name__ == "__main__":
    sys.exit(run_command(main))
