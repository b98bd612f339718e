"""Write `report.html`: how many rows each step kept, dropped or repaired, with a few of the rows.

The page needs no script and no other file, and follows light and dark. Everything that comes from the data is
escaped. The page contains rows of the training data, so it is as private as they are.
"""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

from trainer.data.report import Example
from trainer.pages.charts import histogram
from trainer.pages.frame import BOXES, document, table

EXAMPLE_CHARACTERS = 2500
SOURCES_SHOWN = 20


def write_page(directory: Path, report: Mapping[str, Any], examples: Sequence[Example]) -> None:
    """Write the page next to `report.json`."""
    (directory / "report.html").write_text(page(report, examples), encoding="utf-8")


def page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """Return the whole page."""
    splits = list(report["rows"])
    totals = [[n, report["rows"][n], report["target_tokens"][n]] for n in splits]
    changes = [
        [what.capitalize(), reason, count, report[f"first_{what}"].get(reason, "")]
        for what in ("dropped", "repaired")
        for reason, count in report[what].items()
    ]
    unread = [[name, count] for name, count in report["unread"].items()]
    lengths = report["tokens_a_row"]
    body = f"""<h1>Data report</h1>
<p>Source <code>{escape(report["source"])}</code>, fingerprint <code>{report["fingerprint"][:16]}</code></p>
<h2>Rows</h2>
{table(["Side", "Rows", "Trained tokens"], totals)}
<h2>Dropped and repaired</h2>
{table(["", "Reason", "Rows", "First at"], changes) if changes else "<p>Nothing.</p>"}
{"".join(f"<p>{escape(remark)}.</p>" for remark in report["remarks"])}
<h2>Columns that were not used</h2>
{table(["Column", "Rows"], unread) if unread else "<p>None.</p>"}
<h2>Tokens a row</h2>
<p>Median {lengths["median"]:,}, mean {lengths["mean"]:,}, longest {lengths["longest"]:,}.</p>
{histogram(lengths["counts"], lengths["bar_tokens"])}
<h2>Sources</h2>
{table(["Source", "Usable", *map(str.capitalize, splits)], _source_rows(report, splits))}
<h2>Examples from train</h2>
<p>The model is trained on the <mark>marked</mark> tokens.</p>
{"".join(map(_example, examples))}"""
    return document("Data report", body, STYLE)


def _source_rows(report: Mapping[str, Any], splits: Sequence[str]) -> list[list[Any]]:
    """Return a row for each of the largest sources, and one for all others."""
    usable, by_split = report["usable_rows_by_source"], report["rows_by_source"]
    names = [*usable, *sorted({n for split in splits for n in by_split[split]} - set(usable))]
    rows = [[n, usable.get(n, 0), *(by_split[split].get(n, 0) for split in splits)] for n in names]
    shown, others = rows[:SOURCES_SHOWN], rows[SOURCES_SHOWN:]
    if others:
        sums = [sum(column) for column in list(zip(*others, strict=True))[1:]]
        shown.append([f"{len(others)} others", *sums])
    return shown


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
