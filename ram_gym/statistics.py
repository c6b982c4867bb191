"""Proportions: the interval of one, and the difference of two that were counted on the same scenes."""

from __future__ import annotations

import dataclasses
import math

from scipy.optimize import brentq
from scipy.special import ndtri
from scipy.stats import binomtest

_Z = float(ndtri(0.975))


def wilson_percent(count: int, total: int) -> tuple[float, float]:
    """95% Wilson score interval of count / total, in percent."""
    interval = binomtest(count, total).proportion_ci(method="wilson")
    return 100 * float(interval.low), 100 * float(interval.high)


def tango_interval(more: int, less: int, total: int) -> tuple[float, float]:
    """95% score interval of the paired difference (more - less) / total.

    Tango 1998, "Equivalence test and confidence interval for the difference in proportions for the paired-sample
    design", Statistics in Medicine 17, 891-908: all differences that the score test does not reject. Unlike the normal
    approximation it stays in [-1, 1] and has a width where no pair differs.

    Args:
        more: pairs that count for the first alone.
        less: pairs that count for the second alone.
        total: all pairs, at least 1.
    """
    middle = (more - less) / total

    def excess(difference: float) -> float:
        """Above 0 where the score test rejects the difference."""
        # The share of pairs that count for the second alone is, given the difference, the root of a quadratic.
        linear = -more - less + (2 * total - more + less) * difference
        constant = -less * difference * (1 - difference)
        share = (math.sqrt(max(linear**2 - 8 * total * constant, 0.0)) - linear) / (4 * total)
        variance = total * (2 * share + difference * (1 - difference))
        return (more - less - total * difference) ** 2 - _Z**2 * variance

    def bound(end: float) -> float:
        # The test just does not reject the middle itself where all pairs are alike, so the search begins beside it.
        beside = middle + 1e-9 * (end - middle)
        return end if excess(end) <= 0 else float(brentq(excess, end, beside, xtol=1e-12))

    return bound(-1.0), bound(1.0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A policy against a reference on the same scenes."""

    only_policy_wrong: int
    """Scenes that the policy alone got wrong."""
    only_reference_wrong: int
    """Scenes that the reference alone got wrong."""
    episodes: int
    """All scenes."""

    @property
    def difference_percent(self) -> float:
        """The policy's error minus the reference's, in points of percent."""
        return 100 * (self.only_policy_wrong - self.only_reference_wrong) / self.episodes

    @property
    def interval_percent(self) -> tuple[float, float]:
        """95% interval of the difference of errors, in points: `tango_interval`."""
        low, high = tango_interval(self.only_policy_wrong, self.only_reference_wrong, self.episodes)
        return 100 * low, 100 * high

    @property
    def accuracy_difference_percent(self) -> float:
        """The policy's accuracy minus the reference's, in points: `difference_percent` with the other sign."""
        return 100 * (self.only_reference_wrong - self.only_policy_wrong) / self.episodes

    @property
    def accuracy_interval_percent(self) -> tuple[float, float]:
        """95% interval of the difference of accuracies, in points: `tango_interval`."""
        low, high = tango_interval(self.only_reference_wrong, self.only_policy_wrong, self.episodes)
        return 100 * low, 100 * high

    @property
    def p_value(self) -> float:
        """McNemar's exact test: how likely a difference this large is if both policies err equally often."""
        discordant = self.only_policy_wrong + self.only_reference_wrong
        return float(binomtest(self.only_policy_wrong, discordant).pvalue) if discordant else 1.0
