"""Write a sweep as a page that can be published: `index.html` next to `results.json`.

Everything on the page is computed from these results, the caveats included. The page names the sources of
the training data and contains none of its rows.
"""

import math
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.fit.arm import Setting
from trainer.pages.caveats import caveats, count, in_order, one_seed
from trainer.pages.charts import COLOURS, FAR, Bar, Line, Point, curves, forest, losses_scale
from trainer.pages.frame import Figure, document, table

BINS = 50
SETTINGS_BY_SOURCE = 5
SOURCES_SHOWN = 20
NONE = Figure("–")


def write_page(directory: Path, sweep: dict[str, Any]) -> None:
    """Write `index.html`. sweep: as in `results.json`, with the arms, the settings and the choice."""
    (directory / "index.html").write_text(page(sweep), encoding="utf-8")


def page(sweep: dict[str, Any]) -> str:
    """Return the whole page."""
    settings = in_order(sweep, _without_score(sweep))
    power = f"<p>{escape(_sentence(sweep['power']))}</p>" if sweep["power"] else ""
    body = f"""<h1>Which {"LoRA setting" if all(_ranks(sweep)) else "learning rate"} is worth shipping</h1>
<p><code>{escape(sweep["model"])}</code> tuned on <code>{escape(sweep["data"])}</code></p>
<p class=lead>{escape(_sentence(sweep["reason"]))}</p>
{power}
<p class=quiet>{escape(_size(sweep))}</p>
<h2>Difference to the best setting</h2>
{_differences(sweep, settings)}
<h2>Loss while training</h2>
{_curves(sweep)}
<h2>Settings</h2>
{_settings(sweep, settings)}
{_failed(sweep["failed"])}
<h2>{sweep["score"]["name"].capitalize()} by source</h2>
{_by_source(sweep, settings)}
<h2>What this sweep can and cannot show</h2>
<ul>{"".join(f"<li>{escape(caveat)}</li>" for caveat in caveats(sweep))}</ul>"""
    return document(f"Sweep: {sweep['model']} on {sweep['data']}", body, STYLE)


def _without_score(sweep: dict[str, Any]) -> list[dict[str, Any]]:
    """Return entries for the settings that have arms but no score, because one of their seeds diverged."""
    known = {(s["rank"], s["learning_rate"]) for s in sweep["settings"]}
    lost: dict[tuple[int | None, float], list[dict[str, Any]]] = {}
    for arm in sweep["arms"]:
        key = (arm["rank"], arm["learning_rate"])
        if key not in known:
            lost.setdefault(key, []).append(arm)
    empty = dict.fromkeys(("validation_score", "ci_low", "ci_high", "difference_to_best", "seed_spread"))
    return [
        {
            "name": Setting(rank, rate).name,
            "rank": rank,
            "learning_rate": rate,
            "seeds": [arm["seed"] for arm in arms],
            "steps": max(arm["steps"] for arm in arms),
            "compared_seeds": [],
            "tied": False,
            **empty,
        }
        for (rank, rate), arms in lost.items()
    ]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _size(sweep: dict[str, Any]) -> str:
    minutes = math.ceil(sum(arm["train_seconds"] or 0 for arm in sweep["arms"]) / 60)
    return (
        f"{count(len(sweep['settings']), 'setting')} in {count(len(sweep['arms']), 'arm')} of up to "
        f"{count(sweep['steps'], 'step')}, {count(minutes, 'minute')} of training in all; compared on "
        f"{count(sweep['rows'], 'validation row')}. The score is {sweep['metric']}."
    )


def _rates(sweep: dict[str, Any]) -> list[float]:
    return sorted({arm["learning_rate"] for arm in sweep["arms"]})


def _ranks(sweep: dict[str, Any]) -> list[int | None]:
    """Return the ranks that were tried; full fine-tuning has None alone."""
    ranks = {arm["rank"] for arm in sweep["arms"]}
    return sorted(ranks) if all(ranks) else [None]


def _legend(sweep: dict[str, Any]) -> str:
    keys = [
        f'<span class=keyed><span class="key c{i % COLOURS}"></span>{rate:g}</span> '
        for i, rate in enumerate(_rates(sweep))
    ]
    return f"<p class=quiet>Learning rate: {''.join(keys)}</p>"


def _differences(sweep: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    rates = _rates(sweep)
    bars = [
        Bar(
            s["name"], rates.index(s["learning_rate"]), d["value"], d["low"], d["high"], s["tied"],
            s["name"] == sweep["winner"],
        )
        for s in settings
        if (d := s["difference_to_best"]) is not None
    ]  # fmt: skip
    caption = (
        "Zero is the best setting, and further right is worse. Lines are 95% intervals. A full dot is "
        "measurably worse than the best setting, a ring is not. The chosen setting is in bold."
    )
    if one_seed(sweep):
        caption += " The lines cover rows only: with one seed it is not known which settings are worse."
    if any(s["validation_score"] is None for s in settings):
        caption += " Settings with a diverged arm are in the table only."
    if any(_left_out(s) for s in settings):
        caption += " Settings that share no seed with the best are in the table only."
    if any(s["steps"] < sweep["steps"] for s in sweep["settings"]):
        caption += " A setting that was stopped early is compared with the best after as many steps."
    score = sweep["score"]
    side = "above" if score["lower_is_better"] else "below"
    drawn = forest(bars, f"validation {score['name']} {side} the best, {score['unit']}")
    if 'class="arrow"' in drawn:
        caption += (
            f" An arrow lies beyond {FAR} times the median of the upper ends and is not drawn to scale."
        )
    return f"<p>{caption}</p>{_legend(sweep)}<div class=forest>{drawn}</div>"


def _curves(sweep: dict[str, Any]) -> str:
    rates, steps = _rates(sweep), sweep["steps"]
    panels: dict[int | None, list[Line]] = {rank: [] for rank in _ranks(sweep)}
    for arm in sweep["arms"]:
        panels[arm["rank"]].append(
            Line(
                arm["name"],
                rates.index(arm["learning_rate"]),
                _smooth(arm.get("task_curve") or arm["train_curve"], steps),
                _finite(arm["validation_curve"]),
                arm["diverged"] is not None,
                _smooth(arm.get("general_curve", ()), steps),
            )
        )
    y = losses_scale([line for lines in panels.values() for line in lines], steps)
    score = sweep["score"]
    measured = f"{score['name']}, {score['unit']}"
    drawn = "".join(
        f"<div>{curves(f'rank {rank}' if rank else 'all weights', lines, steps, y, measured)}</div>"
        for rank, lines in panels.items()
    )
    caption = (
        f"Lines are the training loss, one for each arm; each point is a mean over "
        f"{count(_bin(steps), 'step')}. Dots are the validation {score['name']}. A cross marks where an arm "
        "diverged. The scale fits the other arms after their first steps, so a line may begin above it."
    )
    if any(arm.get("general_curve") for arm in sweep["arms"]):
        caption += (
            " Training mixes two losses of different size, drawn apart: solid is the task's, dashed is the "
            "divergence from the base's own answers in general chat, in nats a token."
        )
    return f"<p>{caption}</p>{_legend(sweep)}<div class=panels>{drawn}</div>"


def _bin(steps: int) -> int:
    """Return the steps that one point of a smoothed curve averages."""
    return max(1, -(-steps // BINS))


def _finite(curve: Sequence[Sequence[float]]) -> list[Point]:
    return [(step, loss) for step, loss in curve if math.isfinite(loss)]


def _smooth(curve: Sequence[Sequence[float]], steps: int) -> list[Point]:
    """Return means over `_bin(steps)` steps, each at the mean of its steps."""
    bins: dict[int, list[Point]] = {}
    for step, loss in _finite(curve):
        bins.setdefault(int((step - 1) // _bin(steps)), []).append((step, loss))
    return [
        (sum(s for s, _ in points) / len(points), sum(v for _, v in points) / len(points))
        for points in bins.values()
    ]


def _arms_of(sweep: dict[str, Any], setting: dict[str, Any]) -> list[dict[str, Any]]:
    key = (setting["rank"], setting["learning_rate"])
    return [arm for arm in sweep["arms"] if (arm["rank"], arm["learning_rate"]) == key]


def _settings(sweep: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    head = [
        "Setting", "Rank", "Learning rate", "Seeds", "Steps", f"Validation {sweep['score']['name']} [95%]",
        "Difference to the best [95%]", "Spread over seeds", "Tokens per second", "",
    ]  # fmt: skip
    rows = [_setting_row(s, _arms_of(sweep, s), s["name"] == sweep["winner"]) for s in settings]
    return table(head, rows)


def _setting_row(setting: dict[str, Any], arms: Sequence[dict[str, Any]], winner: bool) -> list[Any]:
    difference, spread = setting["difference_to_best"], setting["seed_spread"]
    value, low, high = (setting[key] for key in ("validation_score", "ci_low", "ci_high"))
    speeds = [arm["tokens_per_second"] for arm in arms if arm["tokens_per_second"]]
    return [
        setting["name"],
        setting["rank"] or NONE,
        Figure(f"{setting['learning_rate']:g}"),
        Figure(", ".join(map(str, setting["seeds"]))),
        setting["steps"],
        NONE if value is None else Figure(f"{value:.4f} [{low:.4f}, {high:.4f}]"),
        _difference(difference),
        NONE if spread is None else Figure(f"{spread:.4f}"),
        round(sum(speeds) / len(speeds)) if speeds else NONE,
        "; ".join(_notes(setting, arms, winner)),
    ]


def _notes(setting: dict[str, Any], arms: Sequence[dict[str, Any]], winner: bool) -> list[str]:
    """Return what the figures of a row leave out: its place, the seeds compared, and how arms ended."""
    ended: dict[str, list[str]] = {}
    for arm in arms:
        if end := arm["stopped"] or (arm["diverged"] and f"diverged: {arm['diverged']}"):
            ended.setdefault(end, []).append(str(arm["seed"]))
    notes = ["chosen"] if winner else []
    compared = setting["compared_seeds"]
    if _left_out(setting):
        notes.append("left out: no seed in common with the best")
    elif setting["tied"] and any(setting["difference_to_best"].values()):
        if len(compared) < 2:
            notes.append("not known: one seed")
        elif not winner:
            notes.append("not measurably worse than the best")
    if compared and compared != setting["seeds"]:
        notes.append(f"compared over seed {', '.join(map(str, compared))}")
    return notes + [f"seed {', '.join(seeds)} {end}" for end, seeds in ended.items()]


def _left_out(setting: dict[str, Any]) -> bool:
    """Whether the setting has a score, but no seed in common with the best."""
    return setting["validation_score"] is not None and setting["difference_to_best"] is None


def _difference(difference: dict[str, float] | None) -> Figure:
    if difference is None:
        return NONE
    text = "{value:+.4f} [{low:+.4f}, {high:+.4f}]".format(**difference)
    return Figure(text if any(difference.values()) else "the best")


def _failed(failed: dict[str, str]) -> str:
    if not failed:
        return ""
    return "<p>These arms failed and are left out:</p>" + table(["Arm", "Why"], failed.items())


def _by_source(sweep: dict[str, Any], settings: Sequence[dict[str, Any]]) -> str:
    shown = [s for s in settings if s["validation_score"] is not None][:SETTINGS_BY_SOURCE]
    by_setting = [[a["by_source"] for a in _arms_of(sweep, s) if a["by_source"]] for s in shown]
    counts = {name: entry["rows"] for arms in by_setting for arm in arms for name, entry in arm.items()}
    names = sorted(counts, key=lambda name: (-counts[name], name))
    if not names:
        return "<p>Not measured.</p>"
    rows = [
        [
            name,
            counts[name],
            *(_mean([arm[name]["score"] for arm in arms if name in arm]) for arms in by_setting),
        ]
        for name in names[:SOURCES_SHOWN]
    ]
    unit, order = sweep["score"]["unit"], f"by validation {sweep['score']['name']}"
    caption = (
        f"Sources: {_few(len(names), SOURCES_SHOWN, 'by rows')}. Settings: "
        f"{_few(len(settings), len(shown), order)}. {unit[:1].upper() + unit[1:]}, averaged over seeds "
        "where there are several. These means have no intervals: read nothing into a source with few rows."
    )
    return f"<p>{caption}</p>" + table(["Source", "Rows", *(s["name"] for s in shown)], rows)


def _few(total: int, shown: int, order: str) -> str:
    return "all" if total <= shown else f"the first {shown} of {total:,} {order}"


def _mean(values: Sequence[float]) -> Figure:
    return Figure(f"{sum(values) / len(values):.4f}") if values else NONE


STYLE = """
body { max-width: 70rem; }
p, ul { max-width: 52rem; }
table { font-size: .875rem; }
td:first-child, td.n, .keyed { white-space: nowrap; }
.keyed { margin-right: .8rem; }
td { vertical-align: top; }
td.n + td:not(.n) { min-width: 12rem; }
.lead { font-size: 1.25rem; }
.quiet { color: var(--quiet); }
.forest { max-width: 34rem; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(26rem, 100%), 1fr)); gap: 1rem; }
.panels > div { max-width: 40rem; }
.title { fill: var(--ink); font-weight: 600; }
.mid { text-anchor: middle; }
.end { text-anchor: end; }
.grid { stroke: var(--line); stroke-width: 1; }
.zero { stroke: var(--quiet); stroke-width: 1.5; }
.panels polyline, .panels path { fill: none; stroke: currentColor; stroke-width: 1.2; }
.panels .general { stroke-dasharray: 4 3; }
.panels circle { fill: var(--paper); stroke: currentColor; stroke-width: 1.5; }
.panels g:hover polyline { stroke-width: 3; }
.forest g line { stroke: currentColor; stroke-width: 2; }
.solid, .arrow { fill: currentColor; }
.hollow { fill: var(--paper); stroke: currentColor; stroke-width: 2; }
.key { display: inline-block; width: 1.4em; height: .35em; margin: 0 .4em .2em .2em;
  background: currentColor; }
.c0 { color: #0072b2; } .c1 { color: #c75500; } .c2 { color: #00855f; }
.c3 { color: #a8447f; } .c4 { color: #7a6a00; } .c5 { color: #444c56; }
@media (prefers-color-scheme: dark) {
  .c0 { color: #56b4e9; } .c1 { color: #f28e2b; } .c2 { color: #3fc79a; }
  .c3 { color: #e08fc0; } .c4 { color: #f0e442; } .c5 { color: #c0c6ce; }
}
"""
