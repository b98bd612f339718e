"""Score settings by row and by seed, and estimate the noise of a seed.

A seed changes the data order and the adapter's first weights, in the same way for every setting. An effect
that it has on all settings of one learning rate cancels in a difference. The residual of the two-way layout
setting × seed remains; it is the seed noise (Montgomery, Design and Analysis of Experiments, randomised
blocks).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.fit.arm import Run, Setting
from trainer.fit.choose.intervals import Interval, interval_of, resampled_ratios
from trainer.objective.score import Measure


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """Hold what a setting reached after some steps: a cost for each of `seeds`.

    A cost is the score times its measure's sign: less is better, whatever the objective. resampled:
    (seeds, RESAMPLES), the costs over resampled rows, the same rows for every run.
    """

    setting: Setting
    seeds: tuple[int, ...]
    costs: tuple[float, ...]
    resampled: Any
    rows: int

    @property
    def cost(self) -> float:
        return sum(self.costs) / len(self.costs)

    def interval(self, measure: Measure) -> Interval:
        """Return the score, a mean over seeds, with its interval over rows."""
        return interval_of(measure.sign * self.cost, measure.sign * self.resampled.mean(axis=0))

    def only(self, seeds: Sequence[int]) -> "Score":
        """Return the score over these seeds alone."""
        places = [self.seeds.index(seed) for seed in seeds]
        costs = tuple(self.costs[place] for place in places)
        return Score(self.setting, tuple(seeds), costs, self.resampled[places], self.rows)


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """The noise of one run's score, in its unit, beyond what a seed does to every setting."""

    standard_deviation: float
    degrees_of_freedom: int


def scores(runs: Sequence[Run], measure: Measure) -> list[Score]:
    """Return a score for each setting, in the runs' order, over the seeds that finished.

    A setting that diverged at any seed has no score, because it may diverge when it is trained again. A lost
    run says nothing about its setting, so the setting's other seeds count.
    """
    diverged = {run.arm.setting for run in runs if run.diverged}
    by_setting: dict[Setting, list[Run]] = {}
    for run in runs:
        if run.arm.setting not in diverged:
            by_setting.setdefault(run.arm.setting, []).append(run)
    kept = [run for own in by_setting.values() for run in own]
    if not kept:
        return []
    weights = np.array([row.weight for row in kept[0].validation], float)
    totals = measure.sign * np.array([[row.total for row in run.validation] for run in kept])
    costs, resampled = totals.sum(axis=1) / weights.sum(), resampled_ratios(totals, weights)
    found, start = [], 0
    for setting, own in by_setting.items():
        places = slice(start, start := start + len(own))
        seeds = tuple(run.arm.seed for run in own)
        found.append(Score(setting, seeds, tuple(costs[places].tolist()), resampled[places], len(weights)))
    return found


def layout(found: Sequence[Score]) -> tuple[dict[Setting, float], SeedNoise | None]:
    """Fit setting + seed to the costs by least squares.

    Returns the cost that each setting would have over all seeds, even those that it lacks, and the noise of
    the residual, or None if no degree of freedom is left for it.
    """
    seeds = sorted({seed for score in found for seed in score.seeds})
    cells = [
        (place, len(found) + seeds.index(seed), cost)
        for place, score in enumerate(found)
        for seed, cost in zip(score.seeds, score.costs, strict=True)
    ]
    design = np.zeros((len(cells), len(found) + len(seeds)))
    for row, (setting_column, seed_column, _) in enumerate(cells):
        design[row, [setting_column, seed_column]] = 1
    costs = np.array([cost for *_, cost in cells])
    effects, _, rank, _ = np.linalg.lstsq(design, costs)
    freedom = len(cells) - int(rank)
    of_seeds = effects[len(found) :].mean()
    adjusted = {score.setting: float(effects[i] + of_seeds) for i, score in enumerate(found)}
    if not freedom:
        return adjusted, None
    residual = float(((costs - design @ effects) ** 2).sum())
    return adjusted, SeedNoise(math.sqrt(residual / freedom), freedom)


def central(found: Sequence[Score]) -> list[Score]:
    """Return the settings that share a seed with the most others; any of these may be the best.

    If they form groups without a common seed, return the group that has the smallest rank.
    """
    partners = {score: sum(share(score, other) for other in found) for score in found}
    most = [score for score in found if partners[score] == max(partners.values())]
    smallest = min(most, key=lambda score: score.setting.size, default=None)
    return [score for score in most if smallest and share(score, smallest)]


def share(one: Score, other: Score) -> bool:
    """Return whether the two settings have a seed in common."""
    return bool(set(one.seeds) & set(other.seeds))
