"""Summarise a sweep as one JSON value: every arm, every setting, the choice, and the noise of a seed."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from trainer.config import RunConfig
from trainer.config_data import describe_sources
from trainer.fit.arm import Run
from trainer.fit.choose.choice import Choice
from trainer.fit.choose.comparison import Standing
from trainer.fit.choose.intervals import score_interval
from trainer.fit.choose.scores import Score, SeedNoise, scores
from trainer.objective import objective_of
from trainer.objective.score import mean_score


def summarise(
    config: RunConfig,
    rungs: Sequence[Sequence[Run]],
    choice: Choice,
    failed: Mapping[str, str],
    sources: Sequence[str],
) -> dict[str, Any]:
    """Return what `results.json` holds. rungs: the runs of each, the last to the sweep's end.

    sources: the source of each validation row. Scores are the objective's, as `score` says. An arm that
    stopped early is described as it was when it stopped, and compared with the best setting at that point.
    Settings are listed best first, those that stopped early after the others.
    """
    measure = objective_of(config).SCORE
    standings = [Standing(scores(runs, measure), measure) for runs in rungs]
    steps = max(run.record["steps"] for run in rungs[-1])
    arms: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    for runs in rungs:
        for run in runs:
            arms[run.arm.name] = _arm(run, None if runs is rungs[-1] else steps, sources)
    for runs, standing in reversed(list(zip(rungs, standings, strict=True))):
        for score in (*standing.scores, *standing.left_out):
            settings.setdefault(score.setting.name, _setting(standing, score, runs))
    return {
        "model": config.base.id,
        "data": describe_sources(config.data, public=True),
        "metric": f"{measure.meaning} on validation rows, {measure.unit}",
        "score": {
            "name": measure.name,
            "unit": measure.unit,
            "lower_is_better": measure.lower_is_better,
            "reading": measure.reading,
        },
        "rows": len(sources),
        "steps": steps,
        **describe_choice(standings[-1], choice),
        "failed": dict(failed),
        "settings": list(settings.values()),
        "arms": list(arms.values()),
    }


def describe_choice(standing: Standing, choice: Choice) -> dict[str, Any]:
    """Return the winner, the verdict on ranks, the reason, and the noise of a seed at each learning rate."""
    return {
        "winner": choice.winner.name,
        "separable": choice.separable,
        "verdict": choice.verdict,
        "reason": choice.reason,
        "power": choice.power,
        "seed_noise_at": {f"{rate:g}": _noise(noise) for rate, noise in standing.noise_at.items() if noise},
    }


def _noise(noise: SeedNoise) -> dict[str, Any]:
    return {
        "standard_deviation": noise.standard_deviation,
        "degrees_of_freedom": noise.degrees_of_freedom,
    }


def _arm(run: Run, of_steps: int | None, sources: Sequence[str]) -> dict[str, Any]:
    """of_steps: the steps that it would have run, if it was stopped at a rung."""
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
        **{
            name: [[step, round(loss, 4)] for step, loss in record.get(name, [])]  # older runs have no parts
            for name in ("train_curve", "task_curve", "general_curve")
        },
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
    """compared_seeds: those that the setting and the best both have, or none if it left the choice."""
    interval = score.interval(standing.measure)
    compared = {} if score in standing.left_out else compare_with_best(standing, score)
    return {
        "name": score.setting.name,
        "rank": score.setting.rank,
        "learning_rate": score.setting.learning_rate,
        "seeds": list(score.seeds),
        "steps": next(run.record["steps"] for run in runs if run.arm.setting == score.setting),
        "validation_score": interval.value,
        "ci_low": interval.low,
        "ci_high": interval.high,
        "difference_to_best": None,
        "compared_seeds": [],
        "seed_spread": max(score.costs) - min(score.costs) if len(score.seeds) > 1 else None,
        "tied": False,
        **compared,
    }


def compare_with_best(standing: Standing, score: Score) -> dict[str, Any]:
    """Return the part of a setting's entry that follows from its comparison with the best."""
    difference = standing.difference(score)
    return {
        "difference_to_best": difference.interval.as_dict(),
        "compared_seeds": list(difference.seeds),
        "tied": not difference.measurable,
    }
