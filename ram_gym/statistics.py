"""Statistics of proportions: the interval of one, and the paired difference of two counted on the same scenes."""

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
    approximation it stays in [-1, 1], and its width is not 0 if no pair differs.

    Args:
        more: number of pairs that count only for the first.
        less: number of pairs that count only for the second.
        total: number of all pairs, at least 1.
    """
    middle = (more - less) / total

    def excess(difference: float) -> float:
        """Above 0 if the score test rejects the difference."""
        # Given the difference, the share of pairs that count only for the second is the root of a quadratic.
        linear = -more - less + (2 * total - more + less) * difference
        constant = -less * difference * (1 - difference)
        share = (math.sqrt(max(linear**2 - 8 * total * constant, 0.0)) - linear) / (4 * total)
        variance = total * (2 * share + difference * (1 - difference))
        return (more - less - total * difference) ** 2 - _Z**2 * variance

    def bound(end: float) -> float:
        # If all pairs are alike, the excess is 0 at the middle itself, so the search begins beside it.
        beside = middle + 1e-9 * (end - middle)
        return end if excess(end) <= 0 else float(brentq(excess, end, beside, xtol=1e-12))

    return bound(-1.0), bound(1.0)


@dataclasses.dataclass(frozen=True)
class Comparison:
    """A policy against a reference on the same scenes."""

    only_policy_wrong: int
    """Number of scenes that only the policy got wrong."""
    only_reference_wrong: int
    """Number of scenes that only the reference got wrong."""
    episodes: int
    """Number of all scenes."""

    @property
    def difference_percent(self) -> float:
        """The policy's error minus the reference's, in percentage points."""
        return 100 * (self.only_policy_wrong - self.only_reference_wrong) / self.episodes

    @property
    def interval_percent(self) -> tuple[float, float]:
        """95% interval of the difference of errors, in percentage points: `tango_interval`."""
        low, high = tango_interval(self.only_policy_wrong, self.only_reference_wrong, self.episodes)
        return 100 * low, 100 * high

    @property
    def accuracy_difference_percent(self) -> float:
        """The policy's accuracy minus the reference's, in percentage points: minus `difference_percent`."""
        return 100 * (self.only_reference_wrong - self.only_policy_wrong) / self.episodes

    @property
    def accuracy_interval_percent(self) -> tuple[float, float]:
        """95% interval of the difference of accuracies, in percentage points: `tango_interval`."""
        low, high = tango_interval(self.only_reference_wrong, self.only_policy_wrong, self.episodes)
        return 100 * low, 100 * high

    @property
    def p_value(self) -> float:
        """McNemar's exact test: the probability of a difference this large if both policies err equally often."""
        discordant = self.only_policy_wrong + self.only_reference_wrong
        return float(binomtest(self.only_policy_wrong, discordant).pvalue) if discordant else 1.0
