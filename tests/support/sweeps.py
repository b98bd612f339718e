"""Made runs of a sweep: scores of validation rows without a model."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.fit.arm import Arm, Run, Setting
from trainer.objective.score import RowScore

# Three learning rates and the noise of a seed at each, as in docs/sweep.
RATES = (1e-4, 5e-4, 2.5e-3)
NOISE = (0.0007, 0.0013, 0.007)


def run(rank: int, losses: Any, rate: float = 1e-3, seed: int = 7, diverged: str | None = None) -> Run:
    """Return a run with these losses of its rows, or one that diverged."""
    rows = [] if diverged else [RowScore(float(loss) * 10, 10, False) for loss in losses]
    return Run(Arm(Setting(rank, rate), seed), Path("adapter"), rows, diverged, {})


def random_sweep(
    random: np.random.Generator,
    truth: Any,
    seeds: int,
    noise: Sequence[float] = NOISE,
    row_noise: float = 0.02,
    rows: int = 30,
) -> list[Run]:
    """Draw a sweep. truth: (ranks, rates), the true loss of each setting. noise: a seed's, at each rate.

    Rows differ in difficulty by far more than anything else. Each setting has rows of its own that suit it,
    each seed moves all ranks of a rate alike, and each run has its own normal noise, of one size at a rate.
    """
    ranks, rates = truth.shape
    hard = 1 + random.normal(0, 0.5, rows)
    of_seeds = random.normal(0, 1, (rates, seeds)) * np.array(noise)[:rates, None]
    runs = []
    for rank in range(ranks):
        for rate in range(rates):
            suits = random.normal(0, row_noise, rows)
            for seed in range(seeds):
                luck = of_seeds[rate, seed] + random.normal(0, noise[rate])
                runs.append(run(2 ** (3 + rank), hard + suits + truth[rank, rate] + luck, RATES[rate], seed))
    return runs
