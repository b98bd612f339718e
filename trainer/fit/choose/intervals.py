"""Bootstrap intervals of token-weighted losses and of shares, and of their paired differences.

Differences are paired by row: the same resampled rows for both models, so that rows that are hard for
both cancel (Efron & Tibshirani 1993, ch. 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.objective.score import RowScore

RESAMPLES = 4000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A value with its 95% bootstrap interval."""

    value: float
    low: float
    high: float

    def as_dict(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.4f} [{self.low:.4f}, {self.high:.4f}]"


def score_interval(rows: Sequence[RowScore], minus: Sequence[RowScore] | None = None) -> Interval:
    """Weighted mean score over rows, or its paired difference to another model on the same rows."""
    weights = np.array([r.weight for r in rows], float)
    totals = np.array([r.total for r in rows]) - (np.array([r.total for r in minus]) if minus else 0.0)
    return ratio_interval(totals, weights)


def hit_interval(rows: Sequence[RowScore], minus: Sequence[RowScore] | None = None) -> Interval:
    """Share of hits among rows, or its paired difference to another model on the same rows."""
    hits = np.array([r.hit for r in rows], float)
    if minus:
        hits = hits - np.array([r.hit for r in minus], float)
    return ratio_interval(hits, np.ones(len(rows)))


def ratio_interval(numerators: Any, denominators: Any) -> Interval:
    """sum(numerators) / sum(denominators) with a percentile bootstrap over rows, seeded."""
    value = float(numerators.sum() / denominators.sum())
    return interval_of(value, resampled_ratios(numerators, denominators))


def resampled_ratios(numerators: Any, denominators: Any) -> Any:
    """(RESAMPLES,) ratios of sums over rows drawn with replacement; the same rows at every call."""
    random = np.random.default_rng(0)
    n = len(numerators)
    values = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = random.integers(0, n, n)
        values[i] = numerators[drawn].sum() / denominators[drawn].sum()
    return values


def interval_of(value: float, resampled: Any) -> Interval:
    low, high = np.quantile(resampled, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(value, float(low), float(high))
