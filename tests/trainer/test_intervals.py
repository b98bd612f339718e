"""Intervals of scores and shares, Student's quantile, and the difference that a comparison would find."""

import math

import numpy as np
import pytest

from tests.support.sweeps import run
from trainer.fit.choose.intervals import (
    Interval,
    Z,
    hit_interval,
    resampled_ratios,
    score_interval,
    share_difference,
    share_interval,
)
from trainer.fit.choose.student import detectable, student_quantile


def pairs(gained: int, lost: int, both: int, neither: int) -> tuple[list[bool], list[bool]]:
    tuned = [True] * gained + [False] * lost + [True] * both + [False] * neither
    base = [False] * gained + [True] * lost + [True] * both + [False] * neither
    return tuned, base


def test_interval_of_a_difference_holds_the_truth() -> None:
    a, b = (run(1, 1 + shift + np.random.default_rng(seed).normal(0, 0.5, 200)).validation
            for shift, seed in ((0.2, 3), (0.0, 4)))  # fmt: skip
    interval = score_interval(a, minus=b)
    assert interval.low < 0.2 < interval.high
    assert interval.low < interval.value < interval.high
    assert hit_interval(a).value == 0


def test_resampling_in_blocks_draws_the_same_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    numerators, denominators = np.arange(60.0).reshape(2, 30), np.arange(1.0, 31)
    whole = resampled_ratios(numerators, denominators)
    monkeypatch.setattr("trainer.fit.choose.intervals.BLOCK", 1000)
    assert whole == pytest.approx(resampled_ratios(numerators, denominators), rel=1e-12)


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    # Brown, Cai & DasGupta 2001: no hit of n: [0, z² / (n + z²)]. Newcombe 1998: 81 of 263, and 15 of 148.
    [(0, 20, 0.0, Z**2 / (20 + Z**2)), (20, 20, 20 / (20 + Z**2), 1.0), (81, 263, 0.2553, 0.3662),
     (15, 148, 0.0624, 0.1605)],
)  # fmt: skip
def test_a_share_has_wilsons_interval_also_without_a_hit(hits: int, n: int, low: float, high: float) -> None:
    found = share_interval([True] * hits + [False] * (n - hits))
    assert (found.low, found.high) == pytest.approx((low, high), abs=5e-5)
    assert 0 <= found.low <= found.value <= found.high <= 1


@pytest.mark.parametrize("both", [0, 25, 50])
def test_models_that_agree_on_every_row_may_still_differ(both: int) -> None:
    found = share_difference(*pairs(0, 0, both, 50 - both))
    assert found.value == 0
    assert found.high == pytest.approx(Z**2 / (50 + Z**2)) and found.low == pytest.approx(-found.high)


def test_a_paired_difference_has_tangos_interval() -> None:
    """Fagerland, Lydersen & Laake 2014: 1 and 7 discordant of 21 give -0.286 [-0.517, -0.026]."""
    found = share_difference(*pairs(1, 7, 1, 12))
    assert (found.value, found.low, found.high) == pytest.approx((-6 / 21, -0.517, -0.026), abs=5e-4)
    mirrored = share_difference(*reversed(pairs(1, 7, 1, 12)))
    assert (mirrored.low, mirrored.high) == pytest.approx((-found.high, -found.low))


@pytest.mark.parametrize("gained, lost, n", [(50, 0, 50), (0, 50, 50), (1, 0, 1), (3, 0, 200), (10, 12, 30)])
def test_a_paired_difference_stays_within_its_bounds(gained: int, lost: int, n: int) -> None:
    found = share_difference(*pairs(gained, lost, 0, n - gained - lost))
    assert -1 <= found.low <= found.value <= found.high <= 1
    assert found.low < found.high


def test_tangos_interval_covers_the_truth() -> None:
    """Its coverage over all outcomes of 40 pairs, exactly: at least 93%, and 95% on average."""
    n, covered = 40, []
    for gain, loss in ((0.01, 0.01), (0.05, 0.02), (0.1, 0.1), (0.3, 0.1)):
        total = 0.0
        for b in range(n + 1):
            for c in range(n + 1 - b):
                chance = math.exp(
                    math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(c + 1) - math.lgamma(n - b - c + 1)
                    + b * math.log(gain) + c * math.log(loss) + (n - b - c) * math.log(1 - gain - loss)
                )  # fmt: skip
                if chance > 1e-6:
                    found = share_difference(*pairs(b, c, 0, n - b - c))
                    total += chance * (found.low <= gain - loss <= found.high)
        covered.append(total)
    assert min(covered) > 0.93 and sum(covered) / len(covered) > 0.945


@pytest.mark.parametrize(
    ("freedom", "level", "quantile"),
    # Tables of Student's t, as in NIST's handbook, 1.3.6.7.2.
    [(1, 0.95, 12.706), (2, 0.95, 4.303), (3, 0.95, 3.182), (4, 0.95, 2.776), (7, 0.90, 1.895),
     (10, 0.99, 3.169), (11, 0.95, 2.201), (30, 0.95, 2.042), (100, 0.95, 1.984), (1999, 0.95, 1.961)],
)  # fmt: skip
def test_students_quantile(freedom: int, level: float, quantile: float) -> None:
    assert student_quantile(level, freedom) == pytest.approx(quantile, abs=6e-4)


@pytest.mark.parametrize(
    ("freedom", "found"),
    # scipy 1.17.1: the noncentrality at which nct.sf(t.ppf(0.975, freedom), freedom, noncentrality) = 0.8.
    [(1, 16.334009), (2, 5.653489), (3, 4.255899), (6, 3.366897), (30, 2.895362)],
)  # fmt: skip
def test_the_difference_that_is_found_four_times_in_five_is_right_at_few_degrees_of_freedom(
    freedom: int, found: float
) -> None:
    assert detectable(0.0, 1.0, freedom, 0.95) == pytest.approx(found, rel=5e-5)
    assert detectable(0.0, 0.01, freedom, 0.95) == pytest.approx(0.01 * found, rel=5e-5)


def test_rows_alone_find_what_the_normal_distribution_says() -> None:
    assert detectable(1.0, 0.0, 3, 0.95) == pytest.approx(1.95996 + 0.84162, abs=1e-4)
    assert detectable(0.0, 0.0, 3, 0.95) == 0


def test_squares_of_half_widths_add() -> None:
    assert Interval(1.0, 0.7, 1.4).widened(0.4) == Interval(1.0, 0.5, 1.0 + math.hypot(0.4, 0.4))
    assert Interval(1.0, 0.7, 1.4).widened(0.0).as_dict() == pytest.approx(
        {"value": 1, "low": 0.7, "high": 1.4}
    )
