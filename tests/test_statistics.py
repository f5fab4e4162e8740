"""Aggregates against numbers worked by hand, SciPy, and the coverage that an interval promises."""

import numpy as np
import pytest
from scipy import stats

from src.statistics import (
    interquartile_mean,
    moving_average,
    pooled_interquartile_mean,
    probability_of_improvement,
    stratified_bootstrap,
)


@pytest.mark.parametrize(
    ("scores", "expected"),
    [
        ([7.0], 7.0),
        ([1.0, 2.0, 6.0], 3.0),  # fewer than four: nothing is cut
        ([100.0, 2.0, 4.0, -50.0], 3.0),
        ([9.0, 1.0, 2.0, 3.0, 100.0], 14 / 3),  # floor(5 / 4) = 1 at each end
        ([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 100.0], 5.5),
    ],
)
def test_interquartile_mean_by_hand(scores, expected):
    assert interquartile_mean(np.array(scores)) == pytest.approx(expected)


@pytest.mark.parametrize("runs", range(1, 14))
def test_interquartile_mean_is_scipys_trimmed_mean(runs):
    scores = np.random.default_rng(runs).normal(size=(runs, 3, 2))
    np.testing.assert_allclose(interquartile_mean(scores), stats.trim_mean(scores, 0.25, axis=0))


def test_pooling_mixes_tasks_of_different_sizes():
    assert pooled_interquartile_mean([np.array([0.0, 10.0, 1.0]), np.array([3.0])]) == pytest.approx(2.0)


def test_probability_of_improvement_by_hand():
    # Pairs of the first task: 3 > 1, 3 > 2, 2 > 1 and the tie 2 = 2, so 3.5 of 4; of the second: 0 of 1.
    first, second = np.array([3.0, 2.0]), np.array([0.0])
    probability = probability_of_improvement([first, second], [np.array([1.0, 2.0]), np.array([5.0])])
    assert probability == pytest.approx((3.5 / 4 + 0) / 2)


def test_probability_of_improvement_is_mann_whitney():
    generator = np.random.default_rng(0)
    x, y = generator.integers(5, size=9).astype(float), generator.integers(5, size=7).astype(float)
    expected = stats.mannwhitneyu(x, y).statistic / (9 * 7)
    assert probability_of_improvement([x], [y]) == pytest.approx(expected)
    assert probability_of_improvement([y], [x]) == pytest.approx(1 - expected)


def test_bootstrap_resamples_within_strata_only():
    # Constant tasks: any draw across them would move the mean, a draw within cannot.
    strata = [np.zeros(3), np.ones(5)]
    low, high = stratified_bootstrap(strata, lambda drawn: np.concatenate(drawn).mean(), repetitions=50)
    assert low == high == 5 / 8


def test_bootstrap_of_two_runs_by_hand():
    # The mean of two draws from {0, 1} is 0, 1/2, 1 with probability 1/4, 1/2, 1/4.
    low, high = stratified_bootstrap([np.array([0.0, 1.0])], confidence=0.6, repetitions=4000)
    assert (low, high) == (0.0, 1.0)
    low, high = stratified_bootstrap([np.array([0.0, 1.0])], confidence=0.4, repetitions=4000)
    assert (low, high) == (0.5, 0.5)


def test_bootstrap_draws_whole_curves():
    runs = np.random.default_rng(0).normal(size=6)
    low, high = stratified_bootstrap([np.stack([runs, -runs, runs], axis=1)], repetitions=200)
    np.testing.assert_allclose(low[0], -high[1])
    assert (low[0], high[0]) == (low[2], high[2])


def test_bootstrap_agrees_with_scipy():
    runs = np.random.default_rng(3).normal(size=12)
    expected = stats.bootstrap(
        (runs,), lambda x, axis: stats.trim_mean(x, 0.25, axis=axis), method="percentile", n_resamples=9999, rng=0
    ).confidence_interval
    assert stratified_bootstrap([runs], repetitions=9999) == pytest.approx(tuple(expected), abs=0.03)


def test_bootstrap_is_decided_by_the_seed():
    strata = [np.random.default_rng(0).normal(size=7)]
    intervals = [stratified_bootstrap(strata, repetitions=100, seed=seed) for seed in (1, 1, 2)]
    assert intervals[0] == intervals[1] != intervals[2]


def test_interval_covers_the_truth_as_often_as_it_promises():
    # 600 data sets side by side on the trailing axis; three tasks of 20 seeds, symmetric around 0.
    generator = np.random.default_rng(0)
    strata = [scale * generator.normal(size=(20, 600)) for scale in (0.5, 1.0, 2.0)]
    for confidence, tolerance in ((0.95, 0.04), (0.8, 0.06)):
        low, high = stratified_bootstrap(strata, confidence=confidence, repetitions=800)
        assert np.mean((low <= 0) & (high >= 0)) == pytest.approx(confidence, abs=tolerance)


def test_moving_average_by_hand():
    np.testing.assert_allclose(moving_average(np.array([2.0, 4.0, 9.0, 2.0]), 3), [2.0, 3.0, 5.0, 5.0])
    np.testing.assert_allclose(moving_average(np.array([2.0, 4.0]), 1), [2.0, 4.0])
    np.testing.assert_allclose(moving_average(np.array([[0.0, 1.0], [2.0, 5.0]]), 5), [[0.0, 1.0], [1.0, 3.0]])
    assert moving_average(np.zeros(0), 5).shape == (0,)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: interquartile_mean(np.zeros((0, 3))), "no runs"),
        (lambda: interquartile_mean(np.array([1.0, np.nan])), "1 of 2 scores are not finite"),
        (lambda: pooled_interquartile_mean([]), "no tasks"),
        (lambda: stratified_bootstrap([np.zeros(2), np.zeros(0)]), "no runs"),
        (lambda: stratified_bootstrap([np.zeros(2)], confidence=95), "confidence 95"),
        (lambda: stratified_bootstrap([np.zeros(2)], repetitions=0), "repetitions 0"),
        (lambda: probability_of_improvement([np.zeros(2)], []), "1 tasks and Y has 0"),
        (lambda: moving_average(np.zeros(3), 0), "window of 0"),
    ],
)
def test_bad_input_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
