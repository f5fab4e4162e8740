"""Aggregates for a handful of runs: interquartile means, stratified bootstrap intervals, probability of improvement.

They follow "Deep RL at the edge of the statistical precipice", https://arxiv.org/abs/2108.13264. Pure functions of
NumPy arrays; everything random comes from a seed.

Shapes: runs are the leading axis, trailing axes (`...`, such as the points of a curve) are treated one by one. A
stratum holds the runs of one task, shape (runs, ...); tasks may have different numbers of runs.
"""

from collections.abc import Callable, Sequence

import numpy as np

Strata = Sequence[np.ndarray]


def interquartile_mean(scores: np.ndarray) -> np.ndarray:
    """Mean of the middle half over the leading axis: (runs, ...) -> (...).

    A trimmed mean as the paper (https://arxiv.org/abs/2108.13264) computes it, that is
    `scipy.stats.trim_mean(scores, 0.25)`: floor(runs / 4) scores are cut off at each end, whole ones only. So fewer
    than four runs give the plain mean.

    Raises:
      ValueError: no runs, or a score that is not finite.
    """
    scores = _checked(scores)
    cut = len(scores) // 4
    return np.sort(scores, axis=0)[cut : len(scores) - cut].mean(axis=0)


def pooled_interquartile_mean(strata: Strata) -> np.ndarray:
    """Interquartile mean over all runs of all strata: K arrays (runs_k, ...) -> (...).

    Raises:
      ValueError: no strata, an empty one, trailing shapes that differ, or a score that is not finite.
    """
    return interquartile_mean(np.concatenate(_checked_strata(strata)))


def probability_of_improvement(x_strata: Strata, y_strata: Strata) -> float:
    """How probably a run of X scores above a run of Y on the same task, averaged over tasks.

    Per task, the Mann-Whitney statistic over the number of pairs: the share of pairs (x, y) with x > y, ties counting
    half (https://arxiv.org/abs/2108.13264). `x_strata[k]` (runs,) and `y_strata[k]` (runs,) belong to the same task.

    Raises:
      ValueError: different numbers of tasks, none, one without runs, or a score that is not finite.
    """
    if len(x_strata) != len(y_strata):
        raise ValueError(f"X has {len(x_strata)} tasks and Y has {len(y_strata)}: they must be the same ones")
    pairs = zip(_checked_strata(x_strata), _checked_strata(y_strata), strict=True)
    shares = [np.mean((np.sign(x[:, None] - y[None, :]) + 1) / 2) for x, y in pairs]
    return float(np.mean(shares))


def stratified_bootstrap(
    strata: Strata,
    statistic: Callable[[list[np.ndarray]], np.ndarray | float] = pooled_interquartile_mean,
    *,
    confidence: float = 0.95,
    repetitions: int = 2000,
    seed: int = 0,
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap interval of a statistic of strata: K arrays (runs_k, ...) -> low (...), high (...).

    Each repetition draws runs_k runs of every stratum with replacement, never across strata, since the tasks are fixed
    and only the seeds are random (https://arxiv.org/abs/2108.13264). Trailing axes keep together: a run is drawn with
    its whole curve.

    Args:
      strata: the runs of each task. Two settings can be compared by passing the strata of both and a statistic that
        splits them again.
      statistic: function of such a list of strata.
      confidence: share of repetitions inside the interval.
      repetitions: how often to resample.
      seed: where the draws come from; the same seed gives the same interval.

    Raises:
      ValueError: no strata, an empty one, a score that is not finite, or an option out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence {confidence} is out of range: it lies inside (0, 1), e.g. 0.95")
    if repetitions < 1:
        raise ValueError(f"repetitions {repetitions} is out of range: at least 1, e.g. 2000")
    strata = _checked_strata(strata)
    generator = np.random.default_rng(seed)
    draws = []
    for _ in range(repetitions):
        draws.append(statistic([runs[generator.integers(len(runs), size=len(runs))] for runs in strata]))
    low, high = np.quantile(np.asarray(draws), [(1 - confidence) / 2, (1 + confidence) / 2], axis=0)
    return low, high


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Mean of each value and the `window - 1` before it along the leading axis: (T, ...) -> (T, ...).

    The first entries average over what there is, so that the curve keeps its length and never looks ahead.

    Raises:
      ValueError: a window below 1.
    """
    if window < 1:
        raise ValueError(f"a window of {window} is out of range: at least 1")
    values = np.asarray(values, dtype=float)
    means = [values[max(0, end - window) : end].mean(axis=0) for end in range(1, len(values) + 1)]
    return np.asarray(means).reshape(values.shape)


def _checked(scores: np.ndarray) -> np.ndarray:
    scores = np.asarray(scores, dtype=float)
    if not scores.ndim or not len(scores):
        raise ValueError("there are no runs to aggregate")
    if not np.isfinite(scores).all():
        raise ValueError(f"{np.count_nonzero(~np.isfinite(scores))} of {scores.size} scores are not finite numbers")
    return scores


def _checked_strata(strata: Strata) -> list[np.ndarray]:
    if not len(strata):
        raise ValueError("there are no tasks to aggregate")
    return [_checked(runs) for runs in strata]
