"""The choice among settings: who ships, what is called separable, and what lost runs change."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tests.support.sweeps import run
from trainer.fit.arm import Run, Setting
from trainer.fit.choose.choice import Choice, choose, survivors
from trainer.fit.choose.comparison import Standing
from trainer.fit.choose.scores import layout, scores
from trainer.objective.score import Measure
from trainer.objective.sft import SCORE

ROWS = 200


def hard(seed: int = 1, spread: float = 0.5) -> Any:
    """Losses of rows of very different difficulty."""
    return 1.0 + np.random.default_rng(seed).normal(0, spread, ROWS)


def noise(seed: int, spread: float) -> Any:
    return np.random.default_rng(seed).normal(0, spread, ROWS)


def standing_of(runs: Sequence[Run], measure: Measure = SCORE) -> Standing:
    return Standing(scores(runs, measure), measure)


def chosen(runs: Sequence[Run], measure: Measure = SCORE) -> Choice:
    return choose(standing_of(runs, measure))


def at_seeds(rank: int, losses: Any, lucks: Sequence[float], rate: float = 1e-3) -> list[Run]:
    """Return a run for each seed, its luck added to every row."""
    return [run(rank, losses + luck, rate, seed) for seed, luck in enumerate(lucks)]


def test_the_clearly_better_rank_wins_though_rows_differ_a_lot() -> None:
    worse = hard() + 0.05 + noise(2, 0.05)
    choice = chosen([*at_seeds(8, worse, (0.001, 0, 0)), *at_seeds(32, hard(), (0, 0.001, 0))])
    assert choice.winner.rank == 32 and choice.separable and choice.power is None
    assert "r8-lr0.001, is worse by 0.0" in choice.reason


def test_a_tie_goes_to_the_smaller_rank_and_says_what_the_rows_could_have_shown() -> None:
    tied = hard() + 0.002 + noise(2, 0.1)
    choice = chosen([*at_seeds(8, tied, (0.00001, 0)), *at_seeds(32, hard(), (0, 0.00001))])
    assert (choice.winner.rank, choice.best.rank, choice.verdict) == (8, 32, "not separable")
    assert "200 rows and 2 seeds cannot tell r8-lr0.001 from it" in choice.reason
    assert choice.power and choice.power.endswith("rows")


@pytest.mark.parametrize("better", [8, 32])
def test_with_one_seed_nothing_is_separable_and_the_smaller_rank_ships(better: int) -> None:
    """Rows alone would call either rank better: what the quickstart did on two machines."""
    runs = [run(rank, hard() + (0.0 if rank == better else 0.02)) for rank in (8, 32)]
    choice = chosen(runs)
    assert standing_of(runs).difference(standing_of(runs).scores[1]).rows.low > 0
    assert choice.best.rank == better and choice.winner.rank == 8
    assert not choice.separable and choice.verdict == "not known: one seed"
    assert "not known: one seed" in choice.reason and choice.reason.endswith("so the smaller rank ships")
    assert choice.power is None


def test_with_one_seed_a_rank_that_is_worse_by_more_than_a_seed_explains_does_not_ship() -> None:
    runs = [run(8, hard() + 1.5), run(16, hard() + 0.05), run(32, hard())]
    choice = chosen(runs)
    assert (choice.winner.rank, choice.verdict) == (16, "not known: one seed")
    choice = chosen([runs[0], runs[2]])
    assert (choice.winner.rank, choice.verdict) == (32, "not known: one seed")
    assert "more than a seed explains" in choice.reason and "not known: one seed" in choice.reason


def test_with_one_seed_the_smallest_rank_ships_at_its_best_rate() -> None:
    runs = [run(rank, hard() + 0.3 * (rate != 1e-3), rate) for rank in (8, 32) for rate in (1e-4, 1e-3, 1e-2)]
    assert chosen(runs).winner == Setting(8, 1e-3)


def test_one_rank_is_chosen_without_a_claim() -> None:
    choice = chosen([run(8, hard() + 0.3, 1e-4), run(8, hard(), 1e-3), run(8, hard() + 0.3, 1e-2)])
    assert choice.winner == Setting(8, 1e-3)
    assert (choice.verdict, choice.separable) == ("one rank", False)
    assert "there is no other rank" in choice.reason


def test_a_difference_within_the_noise_of_a_seed_is_no_difference() -> None:
    """Every row says that rank 32 is better by 0.01; its seeds say that this is nothing."""
    choice = chosen([*at_seeds(8, hard() + 0.01, (0, 0, 0)), *at_seeds(32, hard(), (0.02, -0.02, 0))])
    assert choice.winner.rank == 8 and not choice.separable
    assert choice.power and "takes more seeds" in choice.power


def test_a_higher_score_can_be_the_better_one() -> None:
    measure = replace(SCORE, name="accuracy", lower_is_better=False)
    runs = [*at_seeds(8, hard(), (0, 0.001)), *at_seeds(32, hard() + 0.05, (0.001, 0))]
    choice = chosen(runs, measure)
    assert choice.best.rank == 32 and choice.separable
    best = standing_of(runs, measure).best
    value = float((hard() + 0.05 + 0.0005).mean())
    assert f"highest validation accuracy, {value:.4f}" in choice.reason
    assert best.interval(measure).value == pytest.approx(value)
    assert best.interval(measure).low < value < best.interval(measure).high


def test_what_a_seed_does_to_every_setting_alike_is_no_noise() -> None:
    runs = [
        run(rank, hard() + shift + 0.1 * seed, seed=seed)
        for rank, shift in ((8, 0.01), (16, 0.02), (32, 0.0))
        for seed in (1, 2)
    ]
    _, found = layout(scores(runs, SCORE))
    assert found and found.degrees_of_freedom == 2
    assert found.standard_deviation == pytest.approx(0, abs=1e-9)


def test_seed_noise_is_found_again_also_where_runs_are_lost() -> None:
    random = np.random.default_rng(0)
    runs = [run(rank, hard() + random.normal(0, 0.03), seed=s) for rank in range(1, 13) for s in range(6)]
    for lost, freedom in ((0, 55), (9, 46)):
        kept = [runs[i] for i in sorted(np.random.default_rng(1).permutation(72)[lost:])]
        _, found = layout(scores(kept, SCORE))
        assert found and found.degrees_of_freedom == freedom
        assert found.standard_deviation == pytest.approx(0.03, rel=0.25)
    assert layout(scores([r for r in runs if r.arm.seed == 0], SCORE))[1] is None


def test_half_of_the_settings_continue_and_all_that_are_tied_with_the_best() -> None:
    clear = [run(rank, hard() + 0.1 * rank + noise(rank, 0.01)) for rank in (1, 2, 3, 4, 5)]
    assert [s.rank for s in survivors(standing_of(clear))] == [1, 2, 3]
    tied = [run(rank, hard() + noise(rank, 0.2)) for rank in (1, 2, 3, 4)]
    assert len(survivors(standing_of(tied))) == 4


def test_two_seeds_halve_settings_of_other_rates_too() -> None:
    """Across rates two seeds leave one degree of freedom; Student's quantile of it would keep everything."""
    runs = [
        r
        for place, rate in enumerate((1e-4, 5e-4, 1e-3, 2e-3))
        for r in at_seeds(8, hard() + 0.2 * place, (0.05 * place, 0.0), rate)
    ]
    standing = standing_of(runs)
    assert [standing.difference(score).measurable for score in standing.scores[1:]].count(False) > 0
    assert len(survivors(standing)) == 2


def test_a_setting_that_diverged_at_one_seed_is_out() -> None:
    runs = [run(8, hard(), seed=1), run(8, [], seed=2, diverged="at step 3")]
    assert scores(runs, SCORE) == []
    runs += [run(32, hard() + 1, seed=seed) for seed in (1, 2)]
    assert chosen(runs).winner.rank == 32


def test_settings_are_compared_over_the_seeds_that_both_have() -> None:
    """Seed 1 is bad for every setting; rank 8, the best, lost its run at the good seed 0."""
    runs = [*at_seeds(32, hard(), (0, 0.3, 0)), *at_seeds(16, hard() + 0.01, (0.001, 0.3, 0))]
    runs += at_seeds(8, hard() - 0.05, (0, 0.301, 0.001))[1:]
    standing = standing_of(runs)
    best, second, _ = standing.scores
    assert (best.setting.rank, second.setting.rank) == (8, 32)
    assert best.cost > second.cost, "the means over their own seeds would mislead"
    assert standing.difference(second).seeds == (1, 2)
    assert standing.difference(second).interval.value == pytest.approx(0.049, abs=1e-6)


def test_a_setting_without_a_common_seed_leaves_the_choice() -> None:
    runs = [run(8, hard(), seed=1), run(16, hard() + 0.01, seed=1), run(32, hard() - 1, seed=2)]
    standing = standing_of(runs)
    assert [s.setting.rank for s in standing.left_out] == [32]
    choice = choose(standing)
    assert (choice.winner.rank, choice.verdict) == (8, "not known: one seed")
    choice = chosen([runs[0], runs[2]])
    assert (choice.winner.rank, choice.verdict) == (8, "not known: no common seed")
    assert "whether another rank differs is not known: no common seed" in choice.reason


def test_a_comparison_over_one_seed_claims_nothing() -> None:
    """The other ranks show how little a seed does, but rank 8 has one seed in common with the best."""
    runs = [*at_seeds(32, hard(), (0, 0.001, 0)), *at_seeds(16, hard() + 0.02, (0.001, 0, 0))]
    choice = chosen([*runs, *at_seeds(8, hard() + 0.02, (0, 0, 0))[:1]])
    assert choice.winner.rank == 8 and choice.verdict == "not known: one seed"


def test_a_tie_is_explained_by_a_rank_whose_seeds_can_show_it() -> None:
    """Rank 16 is nearest and has one seed in common with the best; the verdict rests on rank 32's noise."""
    runs = [*at_seeds(8, hard(), (0, 0.02, 0.01)), *at_seeds(32, hard() + 0.003, (0, 0, 0.03))]
    runs += at_seeds(16, hard() + 0.001, (0,))
    standing, choice = standing_of(runs), chosen(runs)
    assert [score.setting.rank for score in standing.scores] == [8, 16, 32]
    assert (choice.winner.rank, choice.verdict) == (8, "not separable")
    assert "3 seeds cannot tell r32-lr0.001 from it" in choice.reason
    assert choice.power and "r32-lr0.001" in choice.power


def test_the_best_differs_from_itself_by_nothing() -> None:
    standing = standing_of([run(8, hard())])
    assert standing.difference(standing.best).interval.as_dict() == {"value": 0, "low": 0, "high": 0}


def test_settings_of_one_rate_are_compared_by_the_noise_at_that_rate() -> None:
    """At the low rate seeds do nothing; at the high one they do, and pooled noise would hide the former."""
    calm = [r for rank in (8, 32) for r in at_seeds(rank, hard() + 0.002 * (rank == 8), (0, 0), 1e-4)]
    wild = [*at_seeds(8, hard() + 0.5, (0.03, -0.03), 1e-2), *at_seeds(32, hard() + 0.5, (-0.02, 0.02), 1e-2)]
    standing = standing_of(calm + wild)
    assert standing.best.setting == Setting(32, 1e-4)
    small, high = standing.scores[1], standing.scores[2]
    assert standing.noise_at[1e-4] and standing.noise_at[1e-4].standard_deviation == pytest.approx(0)
    assert standing.difference(small).interval.low == pytest.approx(0.002)
    assert standing.difference(high).interval.low < 0.5 - 0.02


def test_across_rates_what_a_seed_does_to_a_rate_does_not_cancel() -> None:
    """All ranks of the high rate move together by seed: noise across rates, none within the rate."""
    runs = [r for rank in (8, 32) for r in at_seeds(rank, hard() + 0.001 * rank, (0.02, -0.02), 1e-2)]
    runs += [r for rank in (8, 32) for r in at_seeds(rank, hard() + 0.05 + 0.001 * rank, (0, 0), 1e-4)]
    standing = standing_of(runs)
    inside, across = standing.difference(standing.scores[1]), standing.difference(standing.scores[2])
    assert inside.measurable and inside.interval.low == pytest.approx(inside.interval.value)
    assert across.noise and across.noise.degrees_of_freedom == 1 and not across.measurable
