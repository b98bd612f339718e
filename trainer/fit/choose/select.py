"""Which setting is worth shipping: paired bootstrap over rows plus seed noise, ties to the smaller rank.

A setting's score is weighted over the validation rows (by target tokens, for `sft`) and averaged over its
seeds; the objective's `Measure` gives its name, its unit and its direction. Seeds change
the data order and the adapter's first weights, and every setting sees the same ones, so what a seed
does to all settings alike cancels in a difference; the rest, the residual of the two-way layout
setting × seed, is the seed noise (Montgomery, Design and Analysis of Experiments, randomised blocks).
Noise grows with the learning rate, so settings of one rate are compared by the noise at that rate.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from trainer.fit.choose.intervals import RESAMPLES, Interval, interval_of, resampled_ratios
from trainer.fit.run.arm import Run, Setting
from trainer.objective import sft
from trainer.objective.score import Measure, mean_score

# A difference of 1.43 half-widths of its 95% interval is seen four times in five: (1.96 + 0.84) / 1.96.
POWER_80 = 1.43


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A setting after some steps. totals: (rows,) mean over seeds. weights: (rows,). costs: (seeds,).

    totals and costs carry the measure's sign: less is better, whatever the objective.
    """

    setting: Setting
    seeds: tuple[int, ...]
    totals: Any
    weights: Any
    costs: Any

    @property
    def cost(self) -> float:
        return float(self.totals.sum() / self.weights.sum())


@dataclass(frozen=True, slots=True)
class SeedNoise:
    """Of one run's score, in its unit, beyond what a seed does to every setting."""

    standard_deviation: float
    degrees_of_freedom: int


@dataclass(frozen=True, slots=True)
class Choice:
    """separable: the best rank is measurably better than every other one. power: what the rows and
    seeds could have shown, if it is not.
    """

    winner: Setting
    best: Setting
    separable: bool
    reason: str
    power: str | None


def scores(runs: Sequence[Run], measure: Measure = sft.SCORE) -> list[Score]:
    """One for each setting that no seed diverged at, the best first."""
    by_setting: dict[Setting, list[Run]] = {}
    for run in runs:
        by_setting.setdefault(run.arm.setting, []).append(run)
    found = [
        _score(setting, own, measure.sign)
        for setting, own in by_setting.items()
        if not any(r.diverged for r in own)
    ]
    return sorted(found, key=lambda score: score.cost)


def _score(setting: Setting, runs: Sequence[Run], sign: int) -> Score:
    totals = sign * np.array([[row.total for row in run.validation] for run in runs])
    return Score(
        setting,
        tuple(run.arm.seed for run in runs),
        totals.mean(axis=0),
        np.array([row.weight for row in runs[0].validation], float),
        sign * np.array([mean_score(run.validation) for run in runs]),
    )


def seed_noise(found: Sequence[Score]) -> SeedNoise | None:
    """From the settings that have every seed; None with one seed or one such setting."""
    seeds = max((score.seeds for score in found), key=len, default=())
    whole = [score.costs for score in found if score.seeds == seeds]
    if len(whole) < 2 or len(seeds) < 2:
        return None
    freedom = (len(whole) - 1) * (len(seeds) - 1)
    layout = np.array(whole)
    residual = layout - layout.mean(axis=0) - layout.mean(axis=1, keepdims=True) + layout.mean()
    return SeedNoise(float(math.sqrt((residual**2).sum() / freedom)), freedom)


class Standing:
    """Settings after as many steps, best first, and how far they can be told apart."""

    def __init__(self, runs: Sequence[Run], measure: Measure = sft.SCORE) -> None:
        self.measure = measure
        self.scores = scores(runs, measure)
        self.noise = seed_noise(self.scores)
        self.noise_at = {
            rate: seed_noise([s for s in self.scores if s.setting.learning_rate == rate])
            for rate in sorted({s.setting.learning_rate for s in self.scores})
        }

    @property
    def best(self) -> Score:
        return self.scores[0]

    def difference(self, score: Score) -> Interval:
        """To the best: 95% interval over rows and, where their noise is known, over seeds."""
        if score is self.best:
            return Interval(0.0, 0.0, 0.0)
        by_rows, by_seeds = self.draws(score)
        return interval_of(score.cost - self.best.cost, by_rows + by_seeds)

    def draws(self, score: Score) -> tuple[Any, Any]:
        """(RESAMPLES,) differences to the best over resampled rows, and as many of noise around zero."""
        by_rows = resampled_ratios(score.totals - self.best.totals, self.best.weights)
        noise = self.noise
        if score.setting.learning_rate == self.best.setting.learning_rate:
            noise = self.noise_at[score.setting.learning_rate] or noise
        if noise is None:
            return by_rows, np.zeros(RESAMPLES)
        scale = noise.standard_deviation * math.sqrt(1 / len(score.seeds) + 1 / len(self.best.seeds))
        return by_rows, np.random.default_rng(1).standard_t(noise.degrees_of_freedom, RESAMPLES) * scale


def survivors(standing: Standing) -> list[Setting]:
    """The better half, and whatever cannot be told from the best."""
    half = math.ceil(len(standing.scores) / 2)
    return [
        score.setting
        for place, score in enumerate(standing.scores)
        if place < half or standing.difference(score).low <= 0
    ]


def choose(standing: Standing) -> Choice:
    """The smallest rank that cannot be told from the best setting; of that rank, the best score."""
    best = standing.best
    differences = {score.setting: standing.difference(score) for score in standing.scores}
    tied = [score for score in standing.scores if differences[score.setting].low <= 0]
    winner = min(tied, key=lambda score: (score.setting.rank, score.cost))
    rivals: dict[int, Score] = {}  # the best of each other rank
    for score in standing.scores:
        if score.setting.rank != best.setting.rank:
            rivals.setdefault(score.setting.rank, score)
    nearest = min(rivals.values(), key=lambda score: score.cost, default=None)
    separable = all(differences[rival.setting].low > 0 for rival in rivals.values())
    return Choice(
        winner.setting,
        best.setting,
        separable,
        _reason(standing, winner, nearest),
        None if separable or nearest is None else _power(standing, nearest),
    )


def _reason(standing: Standing, winner: Score, nearest: Score | None) -> str:
    """A sentence that a person can quote."""
    best = standing.best
    measure = standing.measure
    value = f"{measure.sign * best.cost:.4f}"
    score = f"{best.setting.name} has the {measure.best} validation {measure.name}, {value}"
    evidence = _evidence(best)
    if winner is not best:
        return (
            f"{score}, but {evidence} cannot tell {winner.setting.name} from it (difference "
            f"{standing.difference(winner)}), so the smaller rank wins"
        )
    if nearest is None:
        return f"{score}, on {evidence}; there is no other rank"
    gap = standing.difference(nearest)
    if gap.low <= 0:
        return f"{score}, though {evidence} cannot tell {nearest.setting.name} from it ({gap})"
    return f"{score}; the best of another rank, {nearest.setting.name}, is worse by {gap} on {evidence}"


def _power(standing: Standing, other: Score) -> str:
    """What these rows and seeds could have shown, and what it would take to show what is there."""
    best, value = standing.best, other.cost - standing.best.cost
    by_rows, by_seeds = standing.draws(other)
    rows_only, seeds_only, both = (
        POWER_80 * (interval_of(0, draws).high - interval_of(0, draws).low) / 2
        for draws in (by_rows, by_seeds, by_rows + by_seeds)
    )
    seen = (
        f"{_evidence(best)} would show a difference of {both:.4f} {standing.measure.unit} four times in "
        "five; "
        f"{other.setting.name} and {best.setting.name} differ by {value:.4f}"
    )
    if value <= seeds_only:
        return f"{seen}, which takes more seeds: the luck of a seed alone hides {seeds_only:.4f}"
    rows = len(best.weights) * rows_only**2 / (value**2 - seeds_only**2)
    return f"{seen}, which takes about {float(f'{rows:.1g}'):,.0f} rows"


def _evidence(score: Score) -> str:
    seeds = len(score.seeds)
    return f"{len(score.weights):,} rows and {seeds} seed{'s' if seeds > 1 else ''}"
