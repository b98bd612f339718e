"""Which arm is worth shipping: paired bootstrap over validation rows, ties to the smaller rank.

An arm's loss is token-weighted over the rows. Differences are paired by row: the same resampled rows
for both arms, so that rows that are hard for both cancel (Efron & Tibshirani 1993, ch. 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.fit.arm import ArmResult
from trainer.fit.loss import RowLoss, mean_loss

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


def loss_interval(rows: Sequence[RowLoss], minus: Sequence[RowLoss] | None = None) -> Interval:
    """Token-weighted loss over rows, or its paired difference to another model on the same rows."""
    tokens = np.array([r.tokens for r in rows], float)
    nll = np.array([r.nll for r in rows]) - (np.array([r.nll for r in minus]) if minus else 0.0)
    return ratio_interval(nll, tokens)


def exact_interval(rows: Sequence[RowLoss], minus: Sequence[RowLoss] | None = None) -> Interval:
    """Share of exact rows, or its paired difference to another model on the same rows."""
    hits = np.array([r.exact for r in rows], float)
    if minus:
        hits = hits - np.array([r.exact for r in minus], float)
    return ratio_interval(hits, np.ones(len(rows)))


def ratio_interval(numerators: Any, denominators: Any) -> Interval:
    """sum(numerators) / sum(denominators) with a percentile bootstrap over rows, seeded."""
    random = np.random.default_rng(0)
    n = len(numerators)
    values = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        drawn = random.integers(0, n, n)
        values[i] = numerators[drawn].sum() / denominators[drawn].sum()
    low, high = np.quantile(values, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(numerators.sum() / denominators.sum()), float(low), float(high))


def select(results: Sequence[ArmResult]) -> tuple[ArmResult, dict[str, Any]]:
    """The winner, and the manifest's `selection` entry with every arm and the reason.

    The winner is the arm of the smallest rank among those whose paired difference to the best arm
    has an interval that holds zero; among arms of that rank, the one with the lowest loss.
    """
    best = min(results, key=lambda r: mean_loss(r.validation))
    entries, candidates = [], []
    for result in results:
        difference = loss_interval(result.validation, minus=best.validation)
        tied = result is best or difference.low <= 0
        entries.append(
            {
                "name": result.arm.name,
                "rank": result.arm.rank,
                "learning_rate": result.arm.learning_rate,
                "seed": result.arm.seed,
                "validation_loss": loss_interval(result.validation).as_dict(),
                "difference_to_best": difference.as_dict(),
                "steps": result.record["steps"],
                "train_seconds": result.record["train_seconds"],
                "peak_memory_gib": result.record["peak_memory_gib"],
            }
        )
        if tied:
            candidates.append(result)
    winner = min(candidates, key=lambda r: (r.arm.rank, mean_loss(r.validation)))
    return winner, {
        "metric": "token-weighted validation loss, nats a token",
        "winner": winner.arm.name,
        "reason": _reason(winner, best, results),
        "arms": entries,
    }


def _reason(winner: ArmResult, best: ArmResult, results: Sequence[ArmResult]) -> str:
    """A sentence that a person can quote."""
    if len(results) == 1:
        return f"{winner.arm.name} is the only arm"
    rows = len(best.validation)
    loss = f"{best.arm.name} has the lowest validation loss, {mean_loss(best.validation):.4f}"
    if winner is not best:
        difference = loss_interval(winner.validation, minus=best.validation)
        return (
            f"{loss}, but {rows} rows cannot tell {winner.arm.name} from it (difference {difference}), "
            "so the smaller rank wins"
        )
    runner_up = min((r for r in results if r is not best), key=lambda r: mean_loss(r.validation))
    difference = loss_interval(runner_up.validation, minus=best.validation)
    if difference.low <= 0:
        return f"{loss}, though {rows} rows cannot tell {runner_up.arm.name} from it ({difference})"
    return f"{loss}; {runner_up.arm.name} is worse by {difference} on {rows} rows"
