"""Write `evaluation.html`: the measurements of an evaluation, its gates, and answers side by side.

The manifest holds the same figures for programs. The page needs no script and no other file, follows light
and dark, and escapes all text. It contains test rows, so it is as private as they are.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.judge.gates import failed_gates
from trainer.judge.measures import measures, title
from trainer.judge.turns import Turns, caveat, name_of, turns_of
from trainer.objective import Objective
from trainer.objective.score import Measure
from trainer.pages.charts import Pair, pairs_chart
from trainer.pages.frame import BOXES, document, table
from trainer.ship.card_parts import benchmark_note, by_turn_note, interval


def write_page(
    file: Path,
    identifier: str,
    evaluation: Mapping[str, Any],
    objective: Objective,
    samples: Sequence[Mapping[str, Any]],
    side_by_side: Sequence[Mapping[str, Any]],
) -> None:
    """Write the page. evaluation: the manifest's, or the one on which shipping is decided."""
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(page(identifier, evaluation, objective, samples, side_by_side), encoding="utf-8")


def page(
    identifier: str,
    evaluation: Mapping[str, Any],
    objective: Objective,
    samples: Sequence[Mapping[str, Any]],
    side_by_side: Sequence[Mapping[str, Any]],
) -> str:
    """Return the whole page."""
    metrics = [metric for metric in evaluation["metrics"] if not turns_of(metric)]
    known = measures(objective)
    body = f"""<h1>Evaluation</h1>
<p><code>{escape(identifier)}</code> compared with its base model, on rows that this training did not use.</p>
{_verdict(evaluation)}
<h2>Gates</h2>
{table(["Gate", "", "Measured"], [_gate(gate) for gate in evaluation["gates"]])}
<h2>Measures</h2>
<p>Dots are values and bars are 95% intervals. The base is hollow, the tuned model is full.</p>
{_charts(metrics, known)}
{table(["Measure", "Rows", "Base", "Tuned", "Difference, paired"], [_metric(m, known) for m in metrics])}
{_benchmarks(metrics)}
<h2>By turn of the conversation</h2>
{_by_turn(evaluation, known)}
<h2>Test prompts</h2>
{"".join(_answers(sample, ("reference", "base", "tuned")) for sample in samples)}
<h2>General prompts</h2>
<p>Every model gets the same list and answers it greedily. Long answers are cut. A follow-up is asked in the
same chat, after the model's own answer.</p>
{"".join(_answers(answers, ("base", "tuned")) for answers in side_by_side)}"""
    return document(f"Evaluation of {identifier}", body, STYLE)


def _verdict(evaluation: Mapping[str, Any]) -> str:
    failed = failed_gates(evaluation)
    if not failed:
        return "<p class=verdict>The model passed every gate.</p>"
    count = f"{len(failed)} of {len(evaluation['gates'])} gates failed"
    if override := evaluation.get("override"):
        verdict = f"{count}, and the model was shipped anyway, with {override}."
    else:
        verdict = f"{count}: the model may not be shipped."
    return f'<p class="verdict bad" role="alert">{escape(verdict)}</p>'


def _gate(gate: Mapping[str, Any]) -> list[str]:
    return [gate["name"], "passed" if gate["passed"] else "FAILED", gate["detail"]]


def _metric(metric: Mapping[str, Any], known: Mapping[str, Measure]) -> list[Any]:
    sides = [_value(metric["base"]), _value(metric["tuned"]), interval(metric["difference"])]
    return [title(metric, known), metric["n"], *sides]


def _value(side: Mapping[str, float]) -> str:
    return f"{side['value']:.3f} [{side['low']:.3f}, {side['high']:.3f}]"


def _by_turn(evaluation: Mapping[str, Any], known: Mapping[str, Measure]) -> str:
    """Return the measures of each turn, or that only first turns were measured."""
    if note := caveat(evaluation):
        return f"<p>{escape(note)}</p>"
    metrics = [metric for metric in evaluation["metrics"] if turns_of(metric)]
    names = list(dict.fromkeys(metric["name"] for metric in metrics))
    rows: dict[Turns, list[Any]] = {}
    for metric in metrics:
        row = rows.setdefault(turns, [turns.name, metric["n"]]) if (turns := turns_of(metric)) else []
        row += [_value(metric["base"]), _value(metric["tuned"])]
    head = ["", "Rows", *(f"{_words(name)}, {side}" for name in names for side in ("base", "tuned"))]
    note = escape(by_turn_note(evaluation))
    return f"<p>{note}</p>\n{_charts(metrics, known)}\n{table(head, rows.values())}"


def _words(name: str) -> str:
    return name.replace("_", " ").capitalize()


def _benchmarks(metrics: Sequence[Mapping[str, Any]]) -> str:
    notes = [escape(benchmark_note(metric)) for metric in metrics if "benchmark" in metric]
    if not notes:
        return "<p>The profile names no public benchmark.</p>"
    return "<ul>" + "".join(f"<li>{note}</li>" for note in notes) + "</ul>"


def _charts(metrics: Sequence[Mapping[str, Any]], known: Mapping[str, Measure]) -> str:
    shares = [metric for metric in metrics if metric["unit"].startswith("share")]
    less, more = (
        [m for m in metrics if m not in shares and known[m["name"]].lower_is_better is lower]
        for lower in (True, False)
    )
    return "\n".join(
        (
            _chart("Shares: higher is better", shares, 1.0),
            _chart("Losses: lower is better", less, None),
            _chart("Scores: higher is better", more, None),
        )
    )


def _chart(heading: str, metrics: Sequence[Mapping[str, Any]], top: float | None) -> str:
    pairs = [
        Pair(
            name_of(metric).replace("_", " "),
            metric["base"],
            metric["tuned"],
            metric["benchmark"]["floor"]["value"] if "benchmark" in metric else None,
        )
        for metric in metrics
    ]
    return pairs_chart(heading, pairs, top) if pairs else ""


def _answers(texts: Mapping[str, Any], columns: Sequence[str]) -> str:
    """Return one prompt with the answer of each column, after the turns before it."""
    cells = "".join(
        f"<div><h3>{column.capitalize()}</h3><pre>{escape(texts[column])}</pre></div>" for column in columns
    )
    earlier = "".join(
        f"<pre class={message['role']}>{escape(message['content'])}</pre>"
        for message in texts.get("earlier", ())
    )
    later = texts.get("turn", 1) > 1
    prompt = f"<figcaption>{earlier}<pre>{'↳ ' if later else ''}{escape(texts['prompt'])}</pre></figcaption>"
    return f"<figure{' class=later' if later else ''}>{prompt}<div class=answers>{cells}</div></figure>\n"


STYLE = f"""{BOXES}
:root {{ --bad: #b3261e; --base: #6b7480; }}
@media (prefers-color-scheme: dark) {{ :root {{ --bad: #ff8a80; --base: #aab4c0; }} }}
.verdict {{ padding: .6rem .8rem; border: 1px solid var(--line); border-radius: 6px; }}
.bad {{ color: var(--bad); font-weight: 600; }}
p.bad {{ border: 2px solid var(--bad); }}
td {{ vertical-align: top; font-variant-numeric: tabular-nums; }}
.chart {{ border: 0; max-width: 44rem; }}
.chart figcaption {{ background: none; padding: 0; }}
.chart .name {{ fill: var(--ink); }}
.base line, .tuned line {{ stroke-width: 3; stroke-linecap: round; }}
.base line {{ stroke: var(--base); }}
.base circle {{ fill: var(--paper); stroke: var(--base); stroke-width: 2; }}
.tuned line {{ stroke: var(--bar); }}
.tuned circle {{ fill: var(--bar); }}
.axis {{ stroke: var(--line); }}
.floor {{ stroke: var(--quiet); stroke-dasharray: 3 3; }}
.answers {{ display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); }}
.answers > div + div {{ border-left: 1px solid var(--line); }}
.answers h3 {{ margin: 0; padding: .5rem .8rem 0; color: var(--quiet); font-size: .85rem; }}
figcaption pre {{ padding: 0; color: var(--ink); font-family: inherit; }}
figcaption pre + pre {{ margin-top: .6rem; }}
figcaption .user {{ color: var(--quiet); }}
figcaption .assistant {{ color: var(--quiet); padding-left: 1rem; border-left: 3px solid var(--line); }}
.later {{ margin: -1rem 0 1rem 2rem; border-top: 0; border-radius: 0 0 6px 6px; }}
"""
