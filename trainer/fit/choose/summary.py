"""What a sweep found, as one JSON value: every arm, every setting, the choice, and its noise."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import RunConfig, public_source
from trainer.fit.choose.intervals import ratio_interval, score_interval
from trainer.fit.choose.select import Choice, Score, SeedNoise, Standing
from trainer.fit.run.arm import Run
from trainer.objective import objective_of
from trainer.objective.score import mean_score


def summarise(
    config: RunConfig,
    rungs: Sequence[Sequence[Run]],
    choice: Choice,
    failed: Mapping[str, str],
    sources: Sequence[str],
) -> dict[str, Any]:
    """What `results.json` holds. rungs: the runs of each, the last to the sweep's end.

    sources: of each validation row. Scores are the objective's, as `score` says. An arm that stopped early
    is given as it was when it stopped, and compared with the best of then.
    """
    measure = objective_of(config).SCORE
    standings = [Standing(runs, measure) for runs in rungs]
    steps = max(run.record["steps"] for run in rungs[-1])
    arms, settings = {}, {}
    for runs, standing in zip(rungs, standings, strict=True):
        for run in runs:
            stopped = runs is not rungs[-1]
            arms[run.arm.name] = _arm(run, steps if stopped else None, sources)
        for score in standing.scores:
            settings[score.setting.name] = _setting(standing, score, runs)
    last = standings[-1]
    return {
        "model": config.base.id,
        "data": public_source(config.data.source),
        "metric": f"{measure.meaning} on validation rows, {measure.unit}",
        "score": {
            "name": measure.name,
            "unit": measure.unit,
            "lower_is_better": measure.lower_is_better,
            "reading": measure.reading,
        },
        "rows": len(sources),
        "steps": steps,
        "winner": choice.winner.name,
        "separable": choice.separable,
        "reason": choice.reason,
        "power": choice.power,
        "seed_noise": last.noise and _noise(last.noise),
        "seed_noise_at": {f"{rate:g}": _noise(noise) for rate, noise in last.noise_at.items() if noise},
        "failed": dict(failed),
        "settings": list(settings.values()),
        "arms": list(arms.values()),
    }


def _noise(noise: SeedNoise) -> dict[str, Any]:
    return {
        "standard_deviation": noise.standard_deviation,
        "degrees_of_freedom": noise.degrees_of_freedom,
    }


def _arm(run: Run, of_steps: int | None, sources: Sequence[str]) -> dict[str, Any]:
    """of_steps: what it would have run, if it was stopped at a rung."""
    record = run.record
    interval = None if run.diverged else score_interval(run.validation)
    return {
        "name": run.arm.name,
        "rank": run.arm.setting.rank,
        "learning_rate": run.arm.setting.learning_rate,
        "seed": run.arm.seed,
        "steps": record["steps"],
        "validation_score": interval and interval.value,
        "ci_low": interval and interval.low,
        "ci_high": interval and interval.high,
        "by_source": {} if run.diverged else _by_source(run, sources),
        "train_curve": [[step, round(loss, 4)] for step, loss in record["train_curve"]],
        "validation_curve": [
            *record["validation_curve"],
            *([[record["steps"], interval.value]] if interval else []),
        ],
        "train_seconds": record["train_seconds"],
        "tokens_per_second": record["tokens_per_second"],
        "peak_memory_gib": record["peak_gpu_memory_gib"] or record["peak_memory_gib"],
        "stopped": f"out after {record['steps']} of {of_steps} steps" if of_steps else None,
        "diverged": run.diverged,
    }


def _by_source(run: Run, sources: Sequence[str]) -> dict[str, Any]:
    rows = defaultdict(list)
    for source, row in zip(sources, run.validation, strict=True):
        rows[source].append(row)
    return {source: {"score": mean_score(own), "rows": len(own)} for source, own in sorted(rows.items())}


def _setting(standing: Standing, score: Score, runs: Sequence[Run]) -> dict[str, Any]:
    interval = ratio_interval(standing.measure.sign * score.totals, score.weights)
    gap = standing.difference(score)
    return {
        "name": score.setting.name,
        "rank": score.setting.rank,
        "learning_rate": score.setting.learning_rate,
        "seeds": list(score.seeds),
        "steps": next(run.record["steps"] for run in runs if run.arm.setting == score.setting),
        "validation_score": interval.value,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "difference_to_best": gap.as_dict(),
        "seed_spread": float(score.costs.max() - score.costs.min()) if len(score.seeds) > 1 else None,
        "tied": gap.low <= 0,
    }
