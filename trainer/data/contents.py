"""Read the text of a message's content: a text, a number, parts of text, or the result of a function."""

import json
from typing import Any

from trainer.data.shapes import RowError, is_nan
from trainer.errors import DataError

TEXTS = ("text", "input_text", "output_text")  # the types of parts


def text_of(content: Any) -> str:
    """Return the text of a message's content; empty if there is none. Raises: RowError if it is no text."""
    if content is None or is_nan(content):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_part, content))
    if isinstance(content, int | float) and not isinstance(content, bool):
        return str(content)
    if isinstance(content, dict) and isinstance(content.get("parts"), list):  # Gemini's system instruction
        return text_of(content["parts"])
    if isinstance(content, dict) and content.get("type") in TEXTS:  # one part, and no list
        return _part(content)
    raise RowError(f"content is {'an object' if isinstance(content, dict) else repr(content)[:20]}")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if isinstance(part, dict) and "type" not in part and set(part) == {"text"}:  # Gemini's and Bedrock's
        kind = TEXTS[0]
    if kind not in TEXTS:
        raise DataError(
            f"a message has a part of type {str(kind)[:30]!r}, which a model of texts cannot read: "
            "take such rows out"
        )
    return text_of(part.get("text"))


def result_text(content: Any) -> Any:
    """Return the result of a function as JSON text, unless it is a text, a number or a list of parts."""
    if not isinstance(content, dict | list):
        return content
    parts = isinstance(content, list) and all(isinstance(p, dict) and p.get("type") in TEXTS for p in content)
    return content if parts else json.dumps(content, ensure_ascii=False)
