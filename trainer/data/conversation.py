"""Define the one form of a row, `Conversation`, and turn raw rows into it.

Three shapes are read: ShareGPT (`conversations` of from/value), OpenAI (`messages` of role/content) and
alpaca (`instruction`, `input`, `output`). This module handles one row at a time; `clean` drops duplicates.
"""

import dataclasses
import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system", "human": "user", "user": "user", "gpt": "assistant",
    "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant",
}  # fmt: skip


MERGED = "turns of the same role merged"


class RowError(ValueError):
    """State why a row cannot be used. The text is a short reason, which the report counts."""


@dataclass(frozen=True, slots=True)
class Message:
    role: Role
    content: str


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that ends with an answer.

    groups: labels shared by rows that share text. score: the quality that the data set states, or None.
    own: for each answer, the number of the base model's own answer that it is, or None; empty: none is.
    where: the place it was read from. repaired: what was changed in the raw turns.
    """

    messages: tuple[Message, ...]
    source: str
    groups: tuple[str, ...] = ()
    score: float | None = None
    where: str = field(default="", compare=False)
    repaired: tuple[str, ...] = field(default=(), compare=False)
    own: tuple[int | None, ...] = ()

    @property
    def row_id(self) -> str:
        """The SHA-256 of roles and contents: the same text is the same row, wherever it was read."""
        digest = hashlib.sha256()
        for message in self.messages:
            digest.update(f"{message.role}\x00{message.content}\x01".encode())
        return digest.hexdigest()

    @property
    def text(self) -> str:
        """The contents of all turns, without the roles."""
        return "\n".join(message.content for message in self.messages)

    def with_groups(self, more: tuple[str, ...]) -> "Conversation":
        """Return the same row with these groups added."""
        return dataclasses.replace(self, groups=tuple(dict.fromkeys(self.groups + more)))

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the last answer."""
        return self.messages[:-1]


def parse_row(row: Any, default_source: str, where: str = "") -> Conversation:
    """Turn a raw row into a Conversation, repaired where that is safe (see `repair`).

    Raises: RowError with the reason.
    """
    if not isinstance(row, dict):
        raise RowError("not an object")
    messages, repaired = repair([_message(turn) for turn in _turns(row)])
    if any(m.role == "system" for m in messages[1:]):
        raise RowError("system turn in the middle")
    groups = row.get("group") or ()
    groups = (groups,) if isinstance(groups, str) else tuple(map(str, groups))
    return Conversation(
        tuple(messages), str(row.get("source") or default_source), groups, _score(row), where, repaired
    )


def repair(messages: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Return the turns from the first question to the last answer with alternating roles, and the repairs.

    Answers before the first question and turns after the last answer are cut. Consecutive turns of one role
    are merged, with a blank line between them.
    Raises: RowError if no question is followed by an answer.
    """
    done: list[str] = []
    end = max((i + 1 for i, m in enumerate(messages) if m.role == "assistant"), default=0)
    if not end:
        raise RowError("no answer")
    if end < len(messages):
        done.append("turns after the last answer cut")
    start = next((i for i, m in enumerate(messages[:end]) if m.role == "user"), None)
    if start is None:
        raise RowError("no question before an answer")
    before = [m for m in messages[:start] if m.role != "assistant"]
    if len(before) < start:
        done.append("answers before the first question cut")
    merged: list[Message] = []
    for message in [*before, *messages[start:end]]:
        if merged and merged[-1].role == message.role:
            merged[-1] = Message(message.role, f"{merged[-1].content}\n\n{message.content}")
            if done[-1:] != [MERGED]:
                done.append(MERGED)
        else:
            merged.append(message)
    return merged, tuple(done)


def _score(row: dict[str, Any]) -> float | None:
    score = row.get("score")
    return float(score) if isinstance(score, int | float) and math.isfinite(score) else None


def _turns(row: dict[str, Any]) -> list[Any]:
    for key in ("conversations", "messages"):
        if key in row:
            turns = row[key]
            if not isinstance(turns, list):
                raise RowError(f"{key} is not a list")
            return turns
    if "instruction" in row and "output" in row:
        question = "\n\n".join(str(row[k]) for k in ("instruction", "input") if row.get(k))
        return [
            {"role": "user", "content": question},
            {"role": "assistant", "content": row["output"]},
        ]
    raise RowError("no conversations, messages or instruction/output")


def _message(turn: Any) -> Message:
    if not isinstance(turn, dict):
        raise RowError("a turn is not an object")
    role = turn.get("from", turn.get("role"))
    content = turn.get("value", turn.get("content"))
    if not isinstance(role, str) or role not in ROLES:
        raise RowError(f"unknown role {str(role)[:20]!r}")
    if not isinstance(content, str) or not content.strip():
        raise RowError("empty turn")
    return Message(ROLES[role], content)
