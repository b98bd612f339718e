"""Build `report.json`: counts of rows and tokens, and what cleaning dropped and repaired."""

import math
import platform
import statistics
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config_data import DataConfig, describe_sources
from trainer.data.clean import Account, repairs
from trainer.data.layout import HELD_OUT
from trainer.data.row_file import RowFile, rows_fingerprint
from trainer.data.select import Selected
from trainer.data.split import Split

BARS = 24
FEW = 10  # held-out rows; what fewer can tell is said
Z = 1.96
GIVEN = "rows of its own"  # of a held-out side that the split makes nothing of


@dataclass(frozen=True, slots=True)
class Example:
    """runs: the row's text in pieces, True where the model is trained on them."""

    source: str
    runs: Sequence[tuple[str, bool]]
    shape: str = ""


def told(files: Mapping[str, RowFile], selected: Selected) -> list[str]:
    """Return the lines that the console has of the rows."""
    cleaned = selected.cleaned
    lines = [f"{', '.join(f'{len(f):,} {name}' for name, f in files.items())} rows; {cleaned.summary()}"]
    if unused := cleaned.unused:
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in unused.most_common())
        lines.append(f"{unused.total():,} usable rows are neither trained on nor measured: {reasons}")
    if unread := cleaned.unread_columns():
        lines.append(f"columns not used: {unread}")
    lines += [f"{source} is at commit {commit}" for source, commit in selected.commits.items()]
    return lines


def build_report(
    data: DataConfig, files: Mapping[str, RowFile], selected: Selected, parts: Split
) -> dict[str, Any]:
    """Return the content of `report.json`."""
    cleaned, usable_rows = selected.cleaned, selected.all_rows()
    usable = Counter(c.source for c in usable_rows)
    repaired, first_repaired = repairs(usable_rows)
    return {
        "source": describe_sources(data, commits=selected.commits),
        "commits": selected.commits,
        "sources": {
            file: {"weight": selected.weight(file), **_account(account)}
            for file, account in sorted(cleaned.accounts.items(), key=lambda a: a[0] not in selected.sources)
        },
        "held_out": {side: _origin(selected, parts, side) for side in HELD_OUT},
        "shapes": dict(Counter(c.shape for c in parts.train).most_common()),
        "fingerprint": rows_fingerprint(files),
        "rows": {name: len(file) for name, file in files.items()},
        "bytes": {name: file.path.stat().st_size for name, file in files.items()},
        "target_tokens": {name: file.target_tokens for name, file in files.items()},
        "usable_rows_by_source": dict(usable.most_common()),
        "rows_by_source": {name: dict(file.sources.most_common()) for name, file in files.items()},
        "tokens_a_row": _lengths([n for file in files.values() for n in file.lengths]),
        "unused": dict(cleaned.unused.most_common()),
        "dropped": dict(cleaned.dropped.most_common()),
        "first_dropped": cleaned.first_places,
        "unread": dict(cleaned.unread.most_common()),
        "repaired": dict(repaired.most_common()),
        "first_repaired": first_repaired,
        "python_version": platform.python_version(),
    }


def _origin(selected: Selected, parts: Split, side: str) -> str:
    """Return where a held-out side's rows come from."""
    own = len(selected.own.get(side, ()))
    if not own:
        return "split from train"
    return GIVEN if own == len(getattr(parts, side)) else f"{GIVEN}, and split from train"


def _account(account: Account) -> dict[str, Any]:
    return {
        "read": account.read,
        **{
            name: dict(getattr(account, name).most_common())
            for name in ("used", "target_tokens", "dropped", "unused", "unread")
        },
    }


def few_rows(files: Mapping[str, RowFile]) -> Iterator[str]:
    """Yield what a held-out side of few rows can tell: half of Wilson's interval (95%) around a half."""
    for name in ("validation", "test"):
        rows = len(files[name])
        if rows < FEW:
            half = Z / (2 * math.sqrt(rows + Z**2))
            counted = "1 row" if rows == 1 else f"{rows} rows"
            yield f"{name} has only {counted}: a share of answers measured there is known to ±{half:.2f}"


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
