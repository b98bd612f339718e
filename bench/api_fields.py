"""Write docs/api-fields.md, the table of all request fields: `python -m bench.api_fields`."""

from collections import Counter
from collections.abc import Iterator
from itertools import groupby
from pathlib import Path
from typing import Any

from api.app import DIALECTS
from api.dialects.json_route import JsonRoute
from api.dialects.rules import Ignored, Refused, Strict, parts_of

PAGE = Path(__file__).parents[1] / "docs" / "api-fields.md"
INTRODUCTION = """\
# Request fields

`python -m bench.api_fields` writes this page from the schemas. Tests hold it to them, and the schemas to the
openai, anthropic and vLLM packages that are installed.

- **honoured**: the field does what it says.
- **ignored**: leaving it out changes nothing that a client could notice. The answer names it in the header
  `x-ignored-fields`, and so does the log.
- **refused**: without it the client would get something else than it asked for. The answer is a 400 with the
  reason. Values that ask for nothing are ignored.

`null` means the same as no field. A field that is in no table is refused with the nearest known name.
"""
Row = tuple[str, str, str]  # name, word, why


def page() -> str:
    """Return the whole page."""
    sections = [INTRODUCTION]
    for dialect in DIALECTS:
        for route in dialect.router.routes:
            if isinstance(route, JsonRoute) and route.body_field is not None:
                model: Any = route.body_field.field_info.annotation
                sections.append(_section(route.path, list(_rows(model))))
    return "\n".join(sections)


def _section(path: str, rows: list[Row]) -> str:
    counts = Counter(word for _, word, _ in rows)
    told = ", ".join(f"{counts[word]} {word}" for word in ("honoured", "ignored", "refused"))
    lines = [f"| {name} | {word} | {why} |" for name, word, why in rows]
    return "\n".join(
        [f"## {path}", f"{told}.", "", "| field | what happens | why |", "|---|---|---|", *lines, ""]
    )


def _rows(model: type[Strict], prefix: str = "") -> Iterator[Row]:
    """Yield the fields of a class and of the objects inside it, by dotted names."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    for name, inside in parts_of(model).items():
        yield f"`{prefix}{name}`", "honoured", fields[name].description or ""
        for part in inside:
            yield from _rows(part, f"{prefix}{name}.")
    for name, rule in model.other_fields.items():
        yield f"`{prefix}{name}`", _word(rule), _why(rule)
    by_rule = groupby(sorted(model.other_types.items(), key=lambda item: item[1].why), lambda item: item[1])
    for rule, kinds in by_rule:
        names = ", ".join(f"`{name}`" for name, _ in kinds)
        yield f"`{prefix}type` of {names}", _word(rule), _why(rule)


def _word(rule: Ignored | Refused) -> str:
    return "ignored" if isinstance(rule, Ignored) else "refused"


def _why(rule: Ignored | Refused) -> str:
    """Return the reason as a sentence, with the values that a refused field may have."""
    why = rule.why[0].upper() + rule.why[1:]
    if isinstance(rule, Ignored) or not rule.unless:
        return why
    return f"{why} Ignored if {' or '.join(f'`{_json(value)}`' for value in rule.unless)}."


def _json(value: Any) -> str:
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else str(value).replace("'", '"')


if __name__ == "__main__":
    PAGE.write_text(page())
