"""Write `report.html`: how many rows each step kept, dropped or repaired, with a few of the rows.

The page needs no script and no other file, and follows light and dark. Everything that comes from the data is
escaped. The page contains rows of the training data, so it is as private as they are.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.data.layout import SIDES
from trainer.data.report import GIVEN, Example
from trainer.pages.charts import histogram
from trainer.pages.frame import BOXES, Figure, document, table

EXAMPLE_CHARACTERS = 2500
SOURCES_SHOWN = 20
DETAILS_SHOWN = 100
OTHER_COUNTS = (
    "<p>Sources count rows as they were read. Sides count the rows that became of them: joined by "
    "<code>data.chats</code>, one for each answer, or the base's own of <code>data.general</code>.</p>"
)
LEFT_OVER = (
    "<p>Rows that are left over are usable, and neither trained on nor measured. A lower "
    "<code>data.held_out_share</code> trains on those that the split made too many of.</p>"
)


def write_page(directory: Path, report: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the page next to `report.json`."""
    (directory / "report.html").write_text(page(report, examples), encoding="utf-8")


def page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """Return the whole page."""
    changes = [
        [what.capitalize(), reason, count, report[f"first_{what}"].get(reason, "")]
        for what in ("dropped", "repaired")
        for reason, count in report[what].items()
    ]
    changes += [["Left over", reason, count, ""] for reason, count in report["unused"].items()]
    split = [side for side, origin in report["held_out"].items() if origin != GIVEN]
    over = any(f"over data.{side}_rows" in reason for side in split for reason in report["unused"])
    unread = [[name, count] for name, count in report["unread"].items()]
    lengths = report["tokens_a_row"]
    body = f"""<h1>Data report</h1>
<p>Source <code>{escape(report["source"])}</code>, fingerprint <code>{report["fingerprint"][:16]}</code></p>
<h2>Sides</h2>
{table(["Side", "Rows", "Tokens of answers", "From"], _sides(report))}
<h2>Sources</h2>
{_sources(report["sources"])}
{OTHER_COUNTS if _counts_differ(report) else ""}
<h2>Dropped, repaired and left over</h2>
{table(["", "Reason", "Rows", "First at"], changes) if changes else "<p>Nothing.</p>"}
{LEFT_OVER if over else ""}
{"".join(f"<p>{escape(remark)}.</p>" for remark in report["remarks"])}
<h2>Columns that were not used</h2>
{table(["Column", "Rows"], unread) if unread else "<p>None.</p>"}
{_by_source(report["sources"])}
<h2>Tokens a row</h2>
<p>Median {lengths["median"]:,}, mean {lengths["mean"]:,}, longest {lengths["longest"]:,}.</p>
{histogram(lengths["counts"], lengths["bar_tokens"])}
{_origins(report)}
<h2>Examples from train</h2>
<p>The model is trained on the <mark>marked</mark> tokens.</p>
{_examples(report["shapes"], examples)}"""
    return document("Data report", body, STYLE)


def _sides(report: Mapping[str, Any]) -> list[list[Any]]:
    return [
        [side.capitalize(), count, report["target_tokens"][side], report["held_out"].get(side, "")]
        for side, count in report["rows"].items()
        if count or side in SIDES
    ]


def _sources(sources: Mapping[str, Any]) -> str:
    """Return a table of what became of the rows of each file, or of each split of the Hub."""
    weighted = any(source["weight"] != 1 for source in sources.values())
    rows = [
        [
            name,
            *([Figure(f"{source['weight']:g}")] if weighted else []),
            source["read"],
            sum(source["dropped"].values()),
            sum(source["unused"].values()),
            *(source["used"].get(side, 0) for side in SIDES),
            source["target_tokens"].get("train", 0),
        ]
        for name, source in sources.items()
    ]
    head = ["Source", *(["Weight"] if weighted else []), "Read", "Dropped", "Left over"]
    return table([*head, *map(str.capitalize, SIDES), "Trained tokens"], _folded(rows))


def _counts_differ(report: Mapping[str, Any]) -> bool:
    """Return whether a side has another number of rows than were read for it."""
    return any(
        report["rows"].get(side, 0)
        != sum(source["used"].get(side, 0) for source in report["sources"].values())
        for side in SIDES
    )


def _by_source(sources: Mapping[str, Any]) -> str:
    """Return what each source lost and did not use, if there are several."""
    if len(sources) < 2:
        return ""
    rows = [
        [name, what, reason, count]
        for name, source in sources.items()
        for key, what in (("dropped", "Dropped"), ("unused", "Left over"), ("unread", "Column not used"))
        for reason, count in source[key].items()
    ]
    found = (
        table(["Source", "", "Reason or column", "Rows"], rows[:DETAILS_SHOWN]) if rows else "<p>Nothing.</p>"
    )
    more = len(rows) - DETAILS_SHOWN
    return f"<h2>The same by source</h2>\n{found}" + (
        f"<p>{more:,} more in report.json.</p>" if more > 0 else ""
    )


def _origins(report: Mapping[str, Any]) -> str:
    """Return how many rows of each origin there are, where rows name one in their `source` column."""
    usable, by_side = report["usable_rows_by_source"], report["rows_by_source"]
    if set(usable) <= set(report["sources"]):
        return ""
    names = [*usable, *sorted({name for found in by_side.values() for name in found} - set(usable))]
    rows = [
        [name, usable.get(name, 0), *(found.get(name, 0) for found in by_side.values())] for name in names
    ]
    head = ["Source", "Usable", *map(str.capitalize, by_side)]
    return f"<h2>By the rows' own source</h2>\n{table(head, _folded(rows))}"


def _folded(rows: Sequence[list[Any]]) -> list[list[Any]]:
    """Return the first rows as they are, and the sums of all others."""
    shown, others = list(rows[:SOURCES_SHOWN]), rows[SOURCES_SHOWN:]
    if others:
        columns = list(zip(*others, strict=True))[1:]
        sums = [sum(c) if all(isinstance(v, int) for v in c) else Figure("") for c in columns]
        shown.append([f"{len(others)} others", *sums])
    return shown


def _examples(shapes: Mapping[str, int], examples: Sequence[Example]) -> str:
    """Return the examples of each shape under its name."""
    parts = []
    for shape, count in shapes.items():
        of_shape = [example for example in examples if example.shape == shape]
        if len(shapes) > 1 or shape:
            parts.append(f"<h3>{escape(shape or 'Others')}: {len(of_shape)} of {count:,} rows</h3>\n")
        parts += map(_example, of_shape)
    return "".join(parts)


def _example(example: Example) -> str:
    left, parts = EXAMPLE_CHARACTERS, []
    for text, trained in example.runs:
        shown = escape(text[:left])
        parts.append(f"<mark>{shown}</mark>" if trained and shown else shown)
        left = max(0, left - len(text))
    whole = sum(len(text) for text, _ in example.runs)
    cut = f"<p>{whole - EXAMPLE_CHARACTERS:,} more characters</p>" if whole > EXAMPLE_CHARACTERS else ""
    head = f"<figcaption>{escape(example.source)}</figcaption>"
    return f"<figure>{head}<pre>{''.join(parts)}</pre>{cut}</figure>\n"


STYLE = f"""{BOXES}
rect {{ fill: var(--bar); }}
mark {{ background: var(--mark); color: inherit; }}
"""
