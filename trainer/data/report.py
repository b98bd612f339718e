"""What became of the data: `report.json` for programs, `report.html` for people.

The page stands alone: no script, nothing from outside, light and dark. All that comes from the data is
escaped. It shows rows of the training data, so it is as private as they are.
"""

import platform
import statistics
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from trainer.config import DataConfig
from trainer.data.clean import Cleaned
from trainer.data.row_file import RowFile, rows_fingerprint
from trainer.files import write_json
from trainer.pages.frame import BOXES, document, table

EXAMPLES = 10
EXAMPLE_CHARACTERS = 2500
SOURCES_SHOWN = 20
BARS = 24


@dataclass(frozen=True, slots=True)
class Example:
    """runs: the row's text in pieces, True where the model is trained on them."""

    source: str
    runs: Sequence[tuple[str, bool]]


def write_report(
    directory: Path,
    data: DataConfig,
    files: Mapping[str, RowFile],
    cleaned: Cleaned,
    examples: Sequence[Example],
) -> dict[str, Any]:
    """Write both files; return what report.json holds."""
    report = build_report(data, files, cleaned)
    write_json(directory / "report.json", report)
    (directory / "report.html").write_text(page(report, examples), encoding="utf-8")
    return report


def build_report(data: DataConfig, files: Mapping[str, RowFile], cleaned: Cleaned) -> dict[str, Any]:
    usable = Counter(c.source for c in cleaned.conversations)
    repaired, first_repaired = cleaned.repaired()
    return {
        "source": data.source,
        "fingerprint": rows_fingerprint(files),
        "rows": {name: len(file) for name, file in files.items()},
        "target_tokens": {name: file.target_tokens for name, file in files.items()},
        "usable_rows_by_source": dict(usable.most_common()),
        "rows_by_source": {name: dict(file.sources.most_common()) for name, file in files.items()},
        "tokens_a_row": _lengths([n for file in files.values() for n in file.lengths]),
        "dropped": dict(cleaned.dropped.most_common()),
        "first_dropped": cleaned.first_places,
        "repaired": dict(repaired.most_common()),
        "first_repaired": first_repaired,
        "python_version": platform.python_version(),
    }


def _lengths(lengths: Sequence[int]) -> dict[str, Any]:
    """counts[i]: rows of i * bar_tokens + 1 to (i + 1) * bar_tokens tokens."""
    bar = max(1, -(-max(lengths) // BARS))
    counts = Counter((n - 1) // bar for n in lengths)
    return {
        "median": statistics.median_low(lengths),
        "mean": round(statistics.fmean(lengths), 1),
        "longest": max(lengths),
        "bar_tokens": bar,
        "counts": [counts[i] for i in range(max(counts) + 1)],
    }


def page(report: Mapping[str, Any], examples: Sequence[Example]) -> str:
    """The whole report.html."""
    splits = list(report["rows"])
    totals = [[n, report["rows"][n], report["target_tokens"][n]] for n in splits]
    changes = [
        [what.capitalize(), reason, count, report[f"first_{what}"].get(reason, "")]
        for what in ("dropped", "repaired")
        for reason, count in report[what].items()
    ]
    lengths = report["tokens_a_row"]
    body = f"""<h1>Data report</h1>
<p>Source <code>{escape(report["source"])}</code>, fingerprint <code>{report["fingerprint"][:16]}</code></p>
<h2>Rows</h2>
{table(["Side", "Rows", "Trained tokens"], totals)}
<h2>Dropped and repaired</h2>
{table(["", "Reason", "Rows", "First at"], changes) if changes else "<p>Nothing.</p>"}
<h2>Tokens a row</h2>
<p>Median {lengths["median"]:,}, mean {lengths["mean"]:,}, longest {lengths["longest"]:,}.</p>
{_histogram(lengths["counts"], lengths["bar_tokens"])}
<h2>Sources</h2>
{table(["Source", "Usable", *map(str.capitalize, splits)], _source_rows(report, splits))}
<h2>Examples from train</h2>
<p>The model is trained on the <mark>marked</mark> tokens.</p>
{"".join(map(_example, examples))}"""
    return document("Data report", body, STYLE)


def _source_rows(report: Mapping[str, Any], splits: Sequence[str]) -> list[list[Any]]:
    """The largest sources, and the others as one."""
    usable, by_split = report["usable_rows_by_source"], report["rows_by_source"]
    names = [*usable, *sorted({n for split in splits for n in by_split[split]} - set(usable))]
    rows = [[n, usable.get(n, 0), *(by_split[split].get(n, 0) for split in splits)] for n in names]
    shown, others = rows[:SOURCES_SHOWN], rows[SOURCES_SHOWN:]
    if others:
        sums = [sum(column) for column in list(zip(*others, strict=True))[1:]]
        shown.append([f"{len(others)} others", *sums])
    return shown


def _histogram(counts: Sequence[int], bar_tokens: int) -> str:
    width, height, most = 28, 180, max(counts)
    bars = []
    for i, count in enumerate(counts):
        tall = round(height * count / most, 1)
        told = f"{i * bar_tokens + 1}–{(i + 1) * bar_tokens} tokens: {count:,} rows"
        bars.append(
            f'<rect x="{i * width + 2}" y="{height - tall + 20}" width="{width - 4}" height="{tall}">'
            f"<title>{told}</title></rect>"
        )
    marks = [
        f'<text x="{i * width}" y="{height + 38}">{i * bar_tokens:,}</text>'
        for i in range(0, len(counts) + 1, 6)
    ]
    box = f"-4 0 {max(len(counts), 6) * width + 60} {height + 46}"
    return (
        f'<svg role="img" aria-label="Rows by length in tokens" viewBox="{box}">'
        f'<text x="0" y="12">{most:,} rows</text>{"".join(bars)}{"".join(marks)}</svg>'
    )


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
