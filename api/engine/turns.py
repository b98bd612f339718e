"""Give a conversation the order that strict chat templates insist on: questions and answers in turns.

Clients send two questions in a row, a greeting before the first question, or a system message in the middle.
Templates like Gemma's and Mistral's refuse that. Nothing is left out here; only the roles change.
"""

from collections.abc import Sequence
from typing import Any


def in_turns(turns: Sequence[dict[str, Any]], takes_system: bool) -> list[dict[str, Any]]:
    """Return a template's messages with alternating roles, or equal to `turns` if they alternate already.

    Successive messages of one role are joined by a blank line, as the trainer joins them. A system message
    after the first ones belongs to the question that follows. An answer without a question before it gets an
    empty one. takes_system: the template has a place for a system prompt.
    """
    ordered: list[dict[str, Any]] = []
    for turn in turns:
        last = ordered[-1]["role"] if ordered else None
        role = turn["role"]
        if role == "system" and not (takes_system and last in (None, "system")):
            role = "user"
        if role == last and role != "tool":
            ordered[-1] = _joined(ordered[-1], turn)
            continue
        if role == "assistant" and last in (None, "system"):
            ordered.append({"role": "user", "content": ""})
        ordered.append({**turn, "role": role})
    return ordered


def _joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return two messages of a role as one: texts with a blank line between them, calls one after another."""
    both = {**second, **first}
    for key in first.keys() & second.keys() - {"role", "name"}:
        if key == "tool_calls":
            both[key] = [*first[key], *second[key]]
        else:
            both[key] = "\n\n".join(part for part in (first[key], second[key]) if part and part.strip())
    if first.get("name") != second.get("name"):  # no single person said it
        both.pop("name", None)
    return both
