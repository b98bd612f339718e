"""Write the frame of a page that needs no script and no other file, in light and dark.

`document` gives every page of the trainer its frame and style; `table` escapes its cells. Each page's own
module writes its content.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

STYLE = """
:root { color-scheme: light dark; --ink: #1c2024; --paper: #fff; --quiet: #5b6470; --line: #d9dde2;
  --bar: #3563c9; --mark: #fff0b3; --panel: #f5f6f8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e6e8eb; --paper: #15181c; --quiet: #9aa4b0; --line: #333a42; --bar: #7aa2f7;
    --mark: #57470c; --panel: #1d2126; }
}
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h2 { margin-top: 2.5rem; font-size: 1.2rem; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; }
th, td { padding: .25rem 1rem .25rem 0; border-bottom: 1px solid var(--line); text-align: left; }
th { color: var(--quiet); font-weight: 500; }
.n { text-align: right; font-variant-numeric: tabular-nums; }
svg { width: 100%; height: auto; }
text { fill: var(--quiet); font-size: 12px; }
"""
# For pages with texts: each in a box, its title above it.
BOXES = """
figure { margin: 1rem 0; border: 1px solid var(--line); border-radius: 6px; overflow: hidden; }
figcaption, figure p { padding: .4rem .8rem; margin: 0; color: var(--quiet); background: var(--panel); }
pre { padding: .8rem; margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-size: .85rem; }
"""


class Figure(str):
    """A formatted number; `table` aligns it to the right, like an int."""


def document(title: str, body: str, style: str) -> str:
    """Return the whole HTML file. title: plain text. body: markup. style: added to `STYLE`."""
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
{body}
</body>
</html>
"""


def table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    """Return a table that scrolls sideways on a narrow screen, with figures aligned to the right."""
    kept = [list(row) for row in rows]
    right = [bool(kept) and all(_is_figure(row[i]) for row in kept) for i in range(len(head))]
    heads = "".join(
        f"<th{' class=n' if figures else ''}>{escape(name)}</th>"
        for name, figures in zip(head, right, strict=True)
    )
    body = "\n".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in kept)
    return f"<div class=wide><table><thead><tr>{heads}</tr></thead><tbody>\n{body}\n</tbody></table></div>"


def _is_figure(value: Any) -> bool:
    return isinstance(value, int | Figure)


def _cell(value: Any) -> str:
    text = f"{value:,}" if isinstance(value, int) else escape(str(value))
    return f"<td class=n>{text}</td>" if _is_figure(value) else f"<td>{text}</td>"
