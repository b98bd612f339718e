"""Compute 95% intervals of scores and of shares, and of their paired differences.

A score gets a percentile bootstrap over rows. Its differences are paired: both models are resampled at the
same rows, so rows that are hard for both cancel (Efron & Tibshirani 1993, ch. 8 and 13). A share gets a
score interval, which stays honest where no row is a hit, or where two models agree on every row.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any

import numpy as np

from trainer.objective.score import RowScore

RESAMPLES = 4000
LEVEL = 0.95
Z = NormalDist().inv_cdf((1 + LEVEL) / 2)
BLOCK = 2**22  # row numbers drawn at once, to bound memory


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"

    def widened(self, half_width: float) -> "Interval":
        """Add an independent error with this half-width: squares of half-widths add.

        This is the method of variance estimates recovery (Howe 1974; Zou & Donner 2008). It needs no common
        degrees of freedom, and keeps its level where one part has few of them.
        """
        return Interval(
            self.value,
            self.value - math.hypot(self.value - self.low, half_width),
            self.value + math.hypot(self.high - self.value, half_width),
        )


def score_interval(rows: Sequence[RowScore], minus: Sequence[RowScore] | None = None) -> Interval:
    """Return the weighted mean score, or its paired difference to another model on the same rows."""
    weights = np.array([r.weight for r in rows], float)
    totals = np.array([r.total for r in rows]) - (np.array([r.total for r in minus]) if minus else 0.0)
    value = float(totals.sum() / weights.sum())
    return interval_of(value, resampled_ratios(totals[None], weights)[0])


def hit_interval(rows: Sequence[RowScore], minus: Sequence[RowScore] | None = None) -> Interval:
    """Return the share of hits among rows, or its paired difference to another model on the same rows."""
    hits = [r.hit for r in rows]
    return share_difference(hits, [r.hit for r in minus]) if minus else share_interval(hits)


def resampled_ratios(numerators: Any, denominators: Any) -> Any:
    """Return (k, RESAMPLES) ratios of sums over rows drawn with replacement, the same rows at every call.

    numerators: (k, rows). denominators: (rows,).
    """
    random = np.random.default_rng(0)
    rows = len(denominators)
    columns = np.vstack([numerators, denominators]).T
    at_once = max(1, BLOCK // rows)
    sums = np.concatenate(
        [
            _times_drawn(random, min(at_once, RESAMPLES - start), rows) @ columns
            for start in range(0, RESAMPLES, at_once)
        ]
    ).T
    return sums[:-1] / sums[-1]


def _times_drawn(random: np.random.Generator, resamples: int, rows: int) -> Any:
    """Return how often each row was drawn in each resample: (resamples, rows)."""
    cells = random.integers(0, rows, (resamples, rows)) + rows * np.arange(resamples)[:, None]
    return np.bincount(cells.ravel(), minlength=resamples * rows).reshape(resamples, rows).astype(float)


def interval_of(value: float, resampled: Any) -> Interval:
    """Return the percentile interval of a value. resampled: (RESAMPLES,) values over resampled rows."""
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))


def share_interval(hits: Sequence[bool] | Any) -> Interval:
    """Return the share of hits with Wilson's score interval (Wilson 1927; Brown, Cai & DasGupta 2001)."""
    n = len(hits)
    share = float(sum(hits)) / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    half = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    return Interval(share, max(0.0, centre - half), min(1.0, centre + half))


def share_difference(hits: Sequence[bool] | Any, minus: Sequence[bool] | Any) -> Interval:
    """Return the paired difference of two shares on the same rows with Tango's score interval (Tango 1998).

    The interval holds the differences whose score statistic is within Z. Where both models agree on all n
    rows it is ± Z² / (n + Z²).
    """
    n = len(hits)
    pairs = list(zip(hits, minus, strict=True))
    gained = sum(1 for hit, other in pairs if hit and not other)
    lost = sum(1 for hit, other in pairs if other and not hit)
    value = (gained - lost) / n
    return Interval(value, _tango_end(gained, lost, n, -1.0), _tango_end(gained, lost, n, 1.0))


def _tango_end(gained: int, lost: int, n: int, outer: float) -> float:
    """Bisect between the difference, whose statistic is 0, and -1 or 1, whose statistic is beyond Z."""
    inner = (gained - lost) / n
    for _ in range(60):
        middle = (inner + outer) / 2
        inner, outer = (middle, outer) if _tango_score(gained, lost, n, middle) <= Z else (inner, middle)
    return (inner + outer) / 2


def _tango_score(gained: int, lost: int, n: int, difference: float) -> float:
    """Return |z| of this difference, with the variance at its constrained likelihood maximum."""
    b = (2 * n - gained + lost) * difference - gained - lost
    c = -lost * difference * (1 - difference)
    only_other = (math.sqrt(max(0.0, b * b - 8 * n * c)) - b) / (4 * n)
    variance = n * (2 * only_other + difference * (1 - difference))
    distance = abs(gained - lost - n * difference)
    return distance / math.sqrt(variance) if variance > 0 else math.inf if distance > 0 else 0.0
