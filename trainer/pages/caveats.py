"""What a sweep can and cannot tell, as sentences that follow from its own numbers."""

from collections.abc import Sequence
from typing import Any


def limits(sweep: dict[str, Any]) -> list[str]:
    """What the numbers hold and what they do not, for this sweep."""
    seeds = max(len(setting["seeds"]) for setting in sweep["settings"])
    noise = sweep["seed_noise"]
    if noise:
        held = (
            f"The intervals of differences hold two kinds of luck: which {sweep['rows']:,} rows were held "
            "out, and what a seed does to one setting and not to all, a standard deviation of "
            f"{noise['standard_deviation']:.4f} {sweep['score']['unit']} estimated from "
            f"{count(noise['degrees_of_freedom'], 'degree')} of freedom.{_by_rate(sweep['seed_noise_at'])}"
        )
    else:
        held = (
            f"The intervals hold the choice of the {sweep['rows']:,} validation rows and nothing else: "
            f"with {count(seeds, 'seed')} a setting the luck of a seed is not measured."
        )
    return [
        held,
        "Differences are paired: every setting is measured on the same rows, so rows that are hard for "
        "all of them cancel.",
        *_edges(sweep),
        "The best of several settings looks a little better on these rows than it is; the figures of the "
        "model card are measured on test rows that nothing was chosen on.",
        f"{sweep['score']['reading']} It is no judgement of style, safety or knowledge, and it holds for "
        f"data like {sweep['data']} and {count(sweep['steps'], 'step')}.",
    ]


def _by_rate(noises: dict[str, Any]) -> str:
    if len(noises) < 2:
        return ""
    listed = ", ".join(f"{noise['standard_deviation']:.4f} at {rate}" for rate, noise in noises.items())
    return f" Settings of one learning rate are compared by the noise at that rate: {listed}."


def in_order(sweep: dict[str, Any], more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """The best score first; after them the settings that were stopped early, and those without a score."""
    sign = 1 if sweep["score"]["lower_is_better"] else -1
    return sorted(
        [*sweep["settings"], *more],
        key=lambda s: (s["validation_score"] is None, -s["steps"], sign * (s["validation_score"] or 0.0)),
    )


def _edges(sweep: dict[str, Any]) -> list[str]:
    """Where the lowest loss lies at the end of the grid, or the grid had one value only."""
    best = in_order(sweep)[0]
    told = []
    for key, noun in (("learning_rate", "learning rate"), ("rank", "rank")):
        tried = sorted({arm[key] for arm in sweep["arms"]})
        if len(tried) == 1:
            told.append(f"Only one {noun} was tried, {tried[0]:g}; what others would do is not known.")
        elif best[key] in (tried[0], tried[-1]):
            end = "lowest" if best[key] == tried[0] else "highest"
            told.append(
                f"The {_best(sweep)} is at the {end} {noun} that was tried, {best[key]:g}: a better one may "
                "lie beyond it."
            )
    return told


def _best(sweep: dict[str, Any]) -> str:
    """`lowest loss`"""
    return f"{'lowest' if sweep['score']['lower_is_better'] else 'highest'} {sweep['score']['name']}"


def count(number: int, noun: str) -> str:
    """`1 step`, `2,000 steps`"""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
