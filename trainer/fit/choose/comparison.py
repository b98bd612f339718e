"""Compare settings after the same number of steps with the best, over the seeds that both have.

A difference carries two errors: which rows were held out (paired bootstrap), and the noise of the seeds
(Student's quantile on its standard error). Squares of the two half-widths add (`Interval.widened`).

The noise grows with the learning rate (ten times from 1e-4 to 2.5e-3 in docs/sweep). So settings of one rate
share one estimate, from all settings of that rate. Across rates a seed's own effect differs too and does not
cancel; there the noise comes from the two settings alone. Two settings with one common seed are compared
over rows only, and whether they differ is not known.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.fit.choose.intervals import LEVEL, Interval, Z, interval_of
from trainer.fit.choose.scores import Score, SeedNoise, central, layout, share
from trainer.fit.choose.student import detectable, student_quantile
from trainer.objective.score import Measure


@dataclass(frozen=True, slots=True)
class Difference:
    """Hold how much worse a setting is than the best. rows: over rows alone. noise: None with one seed."""

    seeds: tuple[int, ...]
    rows: Interval
    noise: SeedNoise | None

    @property
    def seeds_error(self) -> float:
        """Return the standard error that the seeds add: two settings, each a mean over `seeds`."""
        return self.noise.standard_deviation * math.sqrt(2 / len(self.seeds)) if self.noise else 0.0

    @property
    def interval(self) -> Interval:
        """Return the 95% interval over rows and, with two seeds or more, over seeds."""
        if not self.noise:
            return self.rows
        return self.rows.widened(student_quantile(LEVEL, self.noise.degrees_of_freedom) * self.seeds_error)

    @property
    def measurable(self) -> bool:
        """Return whether the setting is measurably worse than the best; never with one seed."""
        return self.noise is not None and self.interval.low > 0

    @property
    def within_two_errors(self) -> bool:
        """Return whether the setting may still be the best. A halving needs this; it claims nothing.

        It uses the normal quantile for the seeds too. Student's is 12.7 at two seeds and would stop no
        setting.
        """
        return self.rows.widened(Z * self.seeds_error).low <= 0

    def detectable(self, rows_error: float | None = None) -> float:
        """Return the true difference that is found four times in five. rows_error: None: as measured."""
        if not self.noise:
            return math.nan
        if rows_error is None:
            rows_error = self.rows_error
        return detectable(rows_error, self.seeds_error, self.noise.degrees_of_freedom, LEVEL)

    @property
    def rows_error(self) -> float:
        return (self.rows.high - self.rows.low) / (2 * Z)


class Standing:
    """Order the settings, best first, and separate those that share no seed with the best (`left_out`)."""

    def __init__(self, found: Sequence[Score], measure: Measure) -> None:
        self.measure = measure
        rates = sorted({score.setting.learning_rate for score in found})
        at_rate = {rate: [s for s in found if s.setting.learning_rate == rate] for rate in rates}
        layouts = {rate: layout(own) for rate, own in at_rate.items()}
        self.noise_at: dict[float, SeedNoise | None] = {rate: noise for rate, (_, noise) in layouts.items()}
        # A setting must not be best because only its lucky seed is left: order by the cost over all seeds.
        costs = {setting: cost for adjusted, _ in layouts.values() for setting, cost in adjusted.items()}
        best = min(central(found), key=lambda score: costs[score.setting], default=None)
        ordered = sorted(found, key=lambda score: (score is not best, costs[score.setting]))
        self.scores = [score for score in ordered if best and share(score, best)]
        self.left_out = [score for score in ordered if score not in self.scores]

    @property
    def best(self) -> Score:
        return self.scores[0]

    def difference(self, score: Score) -> Difference:
        """Compare a setting with the best over the seeds that both have."""
        seeds = tuple(seed for seed in score.seeds if seed in self.best.seeds)
        if score is self.best:
            return Difference(seeds, Interval(0.0, 0.0, 0.0), None)
        own, best = score.only(seeds), self.best.only(seeds)
        resampled = own.resampled.mean(axis=0) - best.resampled.mean(axis=0)
        return Difference(seeds, interval_of(own.cost - best.cost, resampled), self._noise(own, best))

    def _noise(self, own: Score, best: Score) -> SeedNoise | None:
        if len(own.seeds) < 2:
            return None
        rate = own.setting.learning_rate
        return self.noise_at[rate] if rate == best.setting.learning_rate else layout([own, best])[1]
