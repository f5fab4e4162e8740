"""Counts against probabilities."""

import numpy as np
import scipy.stats


def exact_geometric(num_future, discounting):
    """P(k) for k = 1 to num_future, proportional to discounting^k."""
    weights = discounting ** np.arange(1, num_future + 1)
    return weights / weights.sum()


# P(k) of each goal rule, for k = 1 to num_future.
GOAL_CHANCES = {
    "geometric": exact_geometric,
    "uniform": lambda num_future, discounting: np.full(num_future, 1 / num_future),
    "last": lambda num_future, discounting: np.eye(num_future)[-1],
}


def chi_square(observed, probabilities):
    """p-value of the counts `observed`: 0 if one of probability 0 occurred. Classes that expect fewer than 5 are put
    together."""
    observed, expected = np.asarray(observed, float), np.sum(observed) * np.asarray(probabilities, float)
    if np.any(observed[expected == 0]):
        return 0.0
    order = np.argsort(expected)
    small = order[np.cumsum(expected[order]) < 5]
    if small.size:
        small = order[: small.size + 1]  # with the next one, the pool expects 5
        rest = np.setdiff1d(order, small)
        observed = np.append(observed[rest], observed[small].sum())
        expected = np.append(expected[rest], expected[small].sum())
    return scipy.stats.chisquare(observed, expected).pvalue if len(observed) > 1 else 1.0
