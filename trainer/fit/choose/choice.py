"""Choose the setting to ship: the smallest rank that is not measurably worse than the best.

A rank is judged by its best setting. Ranks are separable if the best is measurably better than every
other one. That needs every comparison to exclude zero, so it needs no correction for their number (an
intersection-union test, Berger 1982); tests/trainer/test_false_alarms.py measures how often it is wrong.

With one seed the noise of a seed is not known, so nothing is separable. The smallest rank then ships, unless
the rows alone show it to be worse by more than a seed could explain (`Measure.beyond_a_seed`).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from trainer.fit.arm import Setting
from trainer.fit.choose.comparison import Difference, Standing
from trainer.fit.choose.scores import Score
from trainer.objective.score import Measure

SEPARABLE = "separable"
TIED = "not separable"
ONE_SEED = "not known: one seed"
NO_SEED = "not known: no common seed"
ONE_RANK = "one rank"


@dataclass(frozen=True, slots=True)
class Choice:
    """Hold what ships and why. verdict: whether ranks differ, one of the constants above.

    power: what the rows and seeds could have detected, if they detect no difference.
    """

    winner: Setting
    best: Setting
    verdict: str
    reason: str
    power: str | None

    @property
    def separable(self) -> bool:
        return self.verdict == SEPARABLE


def survivors(standing: Standing) -> list[Setting]:
    """Return the settings that a halving keeps: the better half, and any within two errors of the best."""
    half = math.ceil(len(standing.scores) / 2)
    return [
        score.setting
        for place, score in enumerate(standing.scores)
        if place < half or standing.difference(score).within_two_errors
    ]


def choose(standing: Standing) -> Choice:
    """Return the smallest rank that is not worse than the best, by its best setting."""
    best = standing.best
    ranks: dict[int | None, Score] = {}  # the best setting of each
    for score in standing.scores:
        ranks.setdefault(score.setting.rank, score)
    differences = {score: standing.difference(score) for score in ranks.values()}
    staying = [score for score, gap in differences.items() if not _passed_over(gap, standing.measure)]
    winner = min(staying, key=lambda score: score.setting.size)
    rivals = [score for score in ranks.values() if score is not best]
    verdict = _verdict([differences[score] for score in rivals], standing)
    tied = [score for score in rivals if not differences[score].measurable]
    # A rank that shares one seed with the best cannot show why a verdict rests on the noise of seeds.
    telling = [score for score in tied if differences[score].noise]
    nearest = next(iter(telling or tied or rivals), None)
    reason = _reason(standing, winner, nearest if winner is best else winner, verdict)
    power = _power(standing, nearest) if nearest and verdict == TIED else None
    return Choice(winner.setting, best.setting, verdict, reason, power)


def _passed_over(difference: Difference, measure: Measure) -> bool:
    if difference.noise:
        return difference.measurable
    return difference.rows.low > measure.beyond_a_seed


def _verdict(rivals: Sequence[Difference], standing: Standing) -> str:
    compared = {score.setting.rank for score in standing.scores}
    lost = {score.setting.rank for score in standing.left_out} - compared
    if any(rival.noise and not rival.measurable for rival in rivals):
        return TIED
    if not all(rival.measurable for rival in rivals):
        return ONE_SEED
    if lost:
        return NO_SEED
    return SEPARABLE if rivals else ONE_RANK


def _reason(standing: Standing, winner: Score, other: Score | None, verdict: str) -> str:
    """Return a sentence to quote. other: the winner or, if that is the best, its nearest rival."""
    best, measure = standing.best, standing.measure
    value = f"{measure.sign * best.cost:.4f}"
    score = f"{best.setting.name} has the {measure.best} validation {measure.name}, {value}"
    if other is None:
        alone = (
            "there is no other rank"
            if best.setting.rank
            else "all weights were trained, so there are no ranks"
        )
        ends = alone if verdict == ONE_RANK else f"whether another rank differs is {verdict}"
        return f"{score}, on {_evidence(best, best.seeds)}; {ends}"
    gap = standing.difference(other)
    name, evidence = other.setting.name, _evidence(best, gap.seeds)
    if not gap.noise and _passed_over(gap, measure):
        return (
            f"{score}, on {evidence}; {name} is worse by {gap.interval} over the rows alone, more than a "
            f"seed explains; the noise of a seed is {ONE_SEED}"
        )
    if not gap.noise:
        ends = ", so the smaller rank ships" if winner.setting.size <= other.setting.size else ""
        return (
            f"{score}, on {evidence}; whether {name} is worse is {ONE_SEED} (difference over the rows alone "
            f"{gap.interval}){ends}"
        )
    if winner is not best:
        return (
            f"{score}, but {evidence} cannot tell {name} from it (difference {gap.interval}), so the smaller "
            "rank wins"
        )
    if not gap.measurable:
        return f"{score}, though {evidence} cannot tell {name} from it ({gap.interval})"
    return f"{score}; the best of another rank, {name}, is worse by {gap.interval} on {evidence}"


def _power(standing: Standing, other: Score) -> str | None:
    """Describe what these rows and seeds could detect, and what would detect the measured difference."""
    gap = standing.difference(other)
    if not gap.noise:
        return None
    best, value = standing.best, abs(gap.interval.value)
    seen = (
        f"{_evidence(best, gap.seeds)} would show a difference of {gap.detectable():.4f} "
        f"{standing.measure.unit} four times in five; {other.setting.name} and {best.setting.name} differ by "
        f"{value:.4f}"
    )
    by_seeds = gap.detectable(rows_error=0.0)
    if value <= by_seeds:
        return f"{seen}, which takes more seeds: the noise of a seed alone hides {by_seeds:.4f}"
    return f"{seen}, which takes about {float(f'{_rows_needed(gap, best.rows):.1g}'):,.0f} rows"


def _rows_needed(gap: Difference, rows: int) -> float:
    """Return the rows that would detect the measured difference, by bisection on their error."""
    low, high = 0.0, gap.rows_error
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (middle, high) if gap.detectable(middle) < abs(gap.interval.value) else (low, middle)
    return rows * (gap.rows_error / max(low, 1e-9)) ** 2


def _evidence(score: Score, seeds: Sequence[int]) -> str:
    return f"{score.rows:,} rows and {len(seeds)} seed{'s' if len(seeds) > 1 else ''}"
