"""Intervals and tests against published examples and a second computation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.stats import binom

from ram_gym.statistics import Comparison, tango_interval, wilson_percent


def test_published_examples() -> None:
    # Complete response before and after consolidation therapy (Cavo et al. 2012), as analysed in chapter 8 of
    # Fagerland, Lydersen and Laake 2017, "Statistical Analysis of Contingency Tables": 59, 6, 16, 80.
    np.testing.assert_allclose(tango_interval(6, 16, 161), (-0.1240, -0.0054), atol=5e-5)
    assert Comparison(6, 16, 161).p_value == pytest.approx(0.052479, abs=5e-7)


def statistic(more: int, less: int, total: int, difference: float) -> float:
    """The score statistic, with the most likely probabilities under the difference found by search."""

    def surprise(share: float) -> float:
        # share: probability of a pair for the second alone; with the difference it fixes the other two.
        counts, chances = (more, less, total - more - less), (share + difference, share, 1 - 2 * share - difference)
        return -sum(n * math.log(max(p, 1e-300)) for n, p in zip(counts, chances, strict=True) if n)

    low, high = max(0.0, -difference), (1 - difference) / 2
    share = minimize_scalar(surprise, bounds=(low, high), method="bounded", options={"xatol": 1e-12}).x
    return (more - less - total * difference) / math.sqrt(total * (2 * share + difference * (1 - difference)))


@pytest.mark.parametrize(
    ("more", "less", "total"), [(6, 16, 161), (30, 12, 1000), (9, 0, 20), (0, 3, 358), (1, 1, 2), (700, 200, 1000)]
)
def test_the_ends_are_the_differences_that_the_score_test_just_rejects(more: int, less: int, total: int) -> None:
    low, high = tango_interval(more, less, total)
    assert statistic(more, less, total, low) == pytest.approx(1.959964, abs=1e-4)
    assert statistic(more, less, total, high) == pytest.approx(-1.959964, abs=1e-4)
    assert -1 < low < (more - less) / total < high < 1
    np.testing.assert_allclose(tango_interval(less, more, total), (-high, -low), atol=1e-9)


def test_intervals_without_differences_and_with_nothing_else() -> None:
    z = 1.959963984540054
    np.testing.assert_allclose(tango_interval(0, 0, 50), (-z * z / (50 + z * z), z * z / (50 + z * z)))
    low, high = tango_interval(5, 0, 5)
    assert high == 1
    assert low == pytest.approx(
        (5 - z * z) / (5 + z * z)
    )  # the root of the score equation where all pairs differ alike


def test_accuracy_differences_mirror_error_differences() -> None:
    comparison = Comparison(only_policy_wrong=30, only_reference_wrong=12, episodes=1000)
    assert comparison.accuracy_difference_percent == -comparison.difference_percent == -1.8
    low, high = comparison.interval_percent
    np.testing.assert_allclose(comparison.accuracy_interval_percent, (-high, -low), atol=1e-9)
    np.testing.assert_allclose((low, high), 100 * np.array(tango_interval(30, 12, 1000)))
    assert comparison.p_value == pytest.approx(2 * binom.cdf(12, 42, 0.5))


def test_wilson_solves_its_equation() -> None:
    for count in (0, 3, 17, 20):
        for end in np.array(wilson_percent(count, 20)) / 100:
            assert (count / 20 - end) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / 20, abs=1e-9)
