from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.fit.choose.intervals import hit_interval, score_interval
from trainer.fit.choose.select import Choice, Standing, choose, scores, seed_noise, survivors
from trainer.fit.run.arm import Arm, Run, Setting
from trainer.objective.score import RowScore

ROWS = 200


def run(rank: int, losses: Any, rate: float = 1e-3, seed: int = 7, diverged: str | None = None) -> Run:
    rows = [] if diverged else [RowScore(float(loss) * 10, 10, False) for loss in losses]
    return Run(Arm(Setting(rank, rate), seed), Path("adapter"), rows, diverged, {})


def hard(seed: int = 1, spread: float = 0.5) -> Any:
    """Losses of rows of very different difficulty."""
    return 1.0 + np.random.default_rng(seed).normal(0, spread, ROWS)


def noise(seed: int, spread: float) -> Any:
    return np.random.default_rng(seed).normal(0, spread, ROWS)


def chosen(runs: list[Run]) -> Choice:
    return choose(Standing(runs))


def test_the_clearly_better_rank_wins_though_rows_differ_a_lot() -> None:
    choice = chosen([run(8, hard() + 0.05 + noise(2, 0.05)), run(32, hard())])
    assert choice.winner.rank == 32 and choice.separable and choice.power is None
    assert "r8-lr0.001, is worse by 0.0" in choice.reason


def test_a_tie_goes_to_the_smaller_rank_and_says_what_the_rows_could_have_shown() -> None:
    choice = chosen([run(8, hard() + 0.002 + noise(2, 0.1)), run(32, hard())])
    assert (choice.winner.rank, choice.best.rank, choice.separable) == (8, 32, False)
    assert "cannot tell r8-lr0.001 from it" in choice.reason and "200 rows and 1 seed" in choice.reason
    assert choice.power and choice.power.endswith("rows")


def test_the_rate_is_chosen_by_loss_within_the_rank() -> None:
    choice = chosen([run(8, hard() + 0.3, 1e-4), run(8, hard(), 1e-3), run(8, hard() + 0.3, 1e-2)])
    assert choice.winner == Setting(8, 1e-3)


def test_a_difference_within_the_luck_of_a_seed_is_no_difference() -> None:
    """Every row says that rank 32 is better by 0.01; its seeds say that this is nothing."""
    luck = {1: 0.02, 2: -0.02, 3: 0.0}
    runs = [run(8, hard() + 0.01, seed=seed) for seed in luck]
    runs += [run(32, hard() + shift, seed=seed) for seed, shift in luck.items()]
    alone = chosen([run(8, hard() + 0.01, seed=3), run(32, hard(), seed=3)])
    assert alone.separable
    choice = chosen(runs)
    assert choice.winner.rank == 8 and not choice.separable
    assert choice.power and "takes more seeds" in choice.power


def test_what_a_seed_does_to_every_setting_alike_is_no_noise() -> None:
    runs = [
        run(rank, hard() + shift + 0.1 * seed, seed=seed)
        for rank, shift in ((8, 0.01), (16, 0.02), (32, 0.0))
        for seed in (1, 2)
    ]
    found = seed_noise(scores(runs))
    assert found and found.degrees_of_freedom == 2
    assert found.standard_deviation == pytest.approx(0, abs=1e-9)


def test_seed_noise_is_found_again() -> None:
    random = np.random.default_rng(0)
    runs = [run(rank, hard() + random.normal(0, 0.03), seed=s) for rank in range(1, 13) for s in range(6)]
    found = seed_noise(scores(runs))
    assert found and found.degrees_of_freedom == 55
    assert found.standard_deviation == pytest.approx(0.03, rel=0.25)
    assert seed_noise(scores([r for r in runs if r.arm.seed == 0])) is None


def test_ranks_that_do_not_differ_are_seldom_told_apart() -> None:
    """200 rows, 2 ranks, 3 seeds, no difference: at 95% some 1 in 20 may be wrong, 4 in 40 are too many."""
    random = np.random.default_rng(5)
    wrong = 0
    for _ in range(40):
        runs = [
            run(rank, hard() + random.normal(0, 0.1, ROWS) + random.normal(0, 0.01), seed=seed)
            for rank in (8, 32)
            for seed in (1, 2, 3)
        ]
        wrong += chosen(runs).separable
    assert wrong <= 4


def test_half_of_the_settings_go_on_and_whatever_is_tied_with_the_best() -> None:
    clear = [run(rank, hard() + 0.1 * rank + noise(rank, 0.01)) for rank in (1, 2, 3, 4, 5)]
    assert [s.rank for s in survivors(Standing(clear))] == [1, 2, 3]
    tied = [run(rank, hard() + noise(rank, 0.2)) for rank in (1, 2, 3, 4)]
    assert len(survivors(Standing(tied))) == 4


def test_a_setting_that_diverged_at_one_seed_is_out() -> None:
    runs = [run(8, hard(), seed=1), run(8, [], seed=2, diverged="at step 3")]
    assert scores(runs) == []
    runs += [run(32, hard() + 1, seed=seed) for seed in (1, 2)]
    assert chosen(runs).winner.rank == 32


def test_interval_of_a_difference_holds_the_truth() -> None:
    a, b = run(1, hard(3) + 0.2).validation, run(1, hard(4)).validation
    interval = score_interval(a, minus=b)
    assert interval.low < 0.2 < interval.high
    assert interval.low < interval.value < interval.high
    assert hit_interval(a).value == 0


def test_the_best_differs_from_itself_by_nothing() -> None:
    standing = Standing([run(8, hard())])
    assert standing.difference(standing.best).as_dict() == {"value": 0, "low": 0, "high": 0}


def test_settings_of_one_rate_are_compared_by_the_noise_at_that_rate() -> None:
    """At the low rate seeds do nothing; at the high one they do: the pooled noise would hide the former."""
    calm = [run(rank, hard() + 0.002 * (rank == 8), 1e-4, seed) for rank in (8, 32) for seed in (1, 2)]
    luck = {(8, 1): 0.03, (8, 2): -0.03, (32, 1): -0.02, (32, 2): 0.02}
    wild = [run(rank, hard() + 0.5 + shift, 1e-2, seed) for (rank, seed), shift in luck.items()]
    standing = Standing(calm + wild)
    assert standing.best.setting == Setting(32, 1e-4)
    small, high = standing.scores[1], standing.scores[2]
    assert standing.noise_at[1e-4] and standing.noise_at[1e-4].standard_deviation == pytest.approx(0)
    assert standing.difference(small).low == pytest.approx(0.002)
    assert standing.noise and standing.noise.standard_deviation > 0.01
    assert standing.difference(high).low < 0.5 - 0.02
