"""State what a sweep can and cannot show, in sentences that follow from its results."""

from collections.abc import Sequence
from typing import Any


def caveats(sweep: dict[str, Any]) -> list[str]:
    """Return what the figures of this sweep cover and what they do not."""
    return [
        _coverage(sweep),
        *_several(sweep),
        *_unequal_seeds(sweep),
        "Differences are paired: all settings are measured on the same rows, so rows that are hard for "
        "all of them cancel.",
        *_edges(sweep),
        "The best of several settings looks slightly better on these rows than it is. So the model card "
        "reports figures on test rows, which no choice was based on.",
        f"{sweep['score']['reading']} The score does not judge style, safety or knowledge, and it holds for "
        f"data like {sweep['data']} and {count(sweep['steps'], 'step')}.",
    ]


def _coverage(sweep: dict[str, Any]) -> str:
    if one_seed(sweep):
        return (
            f"The intervals cover the sampling of the {sweep['rows']:,} validation rows and nothing else. "
            "One seed does not measure the variation between seeds: it is not known whether settings differ."
        )
    measured = ", ".join(
        f"{noise['standard_deviation']:.4f} at {rate} "
        f"({count(noise['degrees_of_freedom'], 'degree')} of freedom)"
        for rate, noise in sweep["seed_noise_at"].items()
    )
    return (
        f"The intervals of differences cover two kinds of chance: which {sweep['rows']:,} rows were held "
        "out, and how a seed affects one setting more than another. Settings with the same learning rate "
        "share one estimate of this seed noise. Its standard deviation for one run, in "
        f"{sweep['score']['unit']}: {measured}. Settings with different learning rates are compared by their "
        "own seeds alone, so their intervals are wider."
    )


def one_seed(sweep: dict[str, Any]) -> bool:
    """Whether the best setting has one seed, so that every comparison is over one."""
    return max(len(setting["compared_seeds"]) for setting in sweep["settings"]) < 2


def _several(sweep: dict[str, Any]) -> list[str]:
    compared = sum(setting["difference_to_best"] is not None for setting in sweep["settings"]) - 1
    if compared < 2:
        return []
    return [
        f"Each interval covers one comparison at 95%, so one of these {compared} may exclude zero by chance. "
        "Ranks are called separable only if the best one is measurably better than every other."
    ]


def _unequal_seeds(sweep: dict[str, Any]) -> list[str]:
    """Explain how settings are compared if runs were lost."""
    seeds = {seed for setting in sweep["settings"] for seed in setting["seeds"]}
    if all(set(setting["seeds"]) == seeds for setting in sweep["settings"]):
        return []
    return [
        "Not every setting has a run at every seed. A setting is compared with the best over the seeds that "
        "both have. Settings are ordered by an estimate of their score over all seeds: a "
        "least-squares fit of setting + seed at each learning rate."
    ]


def in_order(sweep: dict[str, Any], more: Sequence[dict[str, Any]] = ()) -> list[dict[str, Any]]:
    """Return settings in the sweep's order, best first; those that stopped early or have no score go last."""
    return sorted([*sweep["settings"], *more], key=lambda s: (s["validation_score"] is None, -s["steps"]))


def _edges(sweep: dict[str, Any]) -> list[str]:
    """Report a best setting at the end of the grid, and a grid of one value."""
    best = in_order(sweep)[0]
    found = []
    for key, noun in (("learning_rate", "learning rate"), ("rank", "rank")):
        tried = sorted({arm[key] for arm in sweep["arms"] if arm[key] is not None})
        if not tried:  # full fine-tuning has no ranks
            continue
        if len(tried) == 1:
            found.append(f"Only one {noun} was tried, {tried[0]:g}, so nothing is known about others.")
        elif best[key] in (tried[0], tried[-1]):
            end = "lowest" if best[key] == tried[0] else "highest"
            found.append(
                f"The {_best(sweep)} was reached at the {end} {noun} that was tried, {best[key]:g}: a better "
                "one may lie beyond it."
            )
    return found


def _best(sweep: dict[str, Any]) -> str:
    """Return `lowest loss`."""
    return f"{'lowest' if sweep['score']['lower_is_better'] else 'highest'} {sweep['score']['name']}"


def count(number: int, noun: str) -> str:
    """Return `1 step`, `2,000 steps`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
