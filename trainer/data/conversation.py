"""Define the one form of a row, `Conversation`, and turn raw rows into it.

`shapes` finds the turns of a row. This module handles one row at a time; `clean` drops duplicates.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config import ColumnsConfig
from trainer.data.preferences import chosen_row, preference_columns, refusal
from trainer.data.shapes import RowError, given, is_nan, require_read, shape_of, turns_of
from trainer.data.template_traits import FIELDS
from trainer.errors import DataError

Role = Literal["system", "user", "assistant"]

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant",
}  # fmt: skip
MESSAGE_FIELDS = ("from", "role", "value", "content", "weight")

MERGED = "turns of the same role merged"
EMPTY = "turns from an empty one on cut"
BY_QUESTION = "question:"  # begins the group of rows that name none
NO_SYSTEM = "empty system prompt left out"


@dataclass(frozen=True, slots=True)
class Reading:
    """How raw rows are read: `data.columns`, `data.roles`, `data.ignore_columns` and `data.use`."""

    columns: ColumnsConfig | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    use: Literal["chosen"] | None = None


AS_IT_IS = Reading()


@dataclass(frozen=True, slots=True)
class Message:
    """trained: whether an answer has labels. reasoning: its thinking, from a field of its own."""

    role: Role
    content: str
    trained: bool = True
    reasoning: str = ""


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that ends with an answer.

    groups: labels shared by rows that share text. score: the quality that the data set states, or None.
    own: for each answer, the number of the base model's own answer that it is, or None; empty: none is.
    where: the place it was read from. joined: the places of the rows that `chats` joined to it.
    repaired: what was changed in the raw turns. shape: of the raw row, as `shapes` names it.
    """

    messages: tuple[Message, ...]
    source: str
    groups: tuple[str, ...] = ()
    score: float | None = None
    where: str = field(default="", compare=False)
    repaired: tuple[str, ...] = field(default=(), compare=False)
    own: tuple[int | None, ...] = ()
    joined: tuple[str, ...] = field(default=(), compare=False)
    shape: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the file, or the split of the Hub, of each row that the conversation is made of."""
        return tuple(file_of(where) for where in (self.where, *self.joined) if where)

    @property
    def row_id(self) -> str:
        """The SHA-256 of roles and texts: the same texts are the same row, wherever it was read."""
        digest = hashlib.sha256()
        for message in self.messages:
            digest.update(f"{message.role}\x00{message.content}\x01".encode())
            if message.reasoning:
                digest.update(f"{message.reasoning}\x02".encode())
        return digest.hexdigest()

    @property
    def first_question(self) -> str:
        """Return the SHA-256 of the first question."""
        asked = next(message.content for message in self.messages if message.role == "user")
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The contents and the thinking of all turns, without the roles."""
        return "\n".join(text for m in self.messages for text in (m.reasoning, m.content) if text)

    def with_groups(self, more: tuple[str, ...]) -> "Conversation":
        """Return the same row with these groups added."""
        return dataclasses.replace(self, groups=tuple(dict.fromkeys(self.groups + more)))

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the last answer."""
        return self.messages[:-1]


def file_of(where: str) -> str:
    """Return the file of a place, FILE:PLACE."""
    return where.rpartition(":")[0]


def parse_row(
    row: Any,
    default_source: str,
    where: str = "",
    reading: Reading = AS_IT_IS,
    unread: Counter[str] | None = None,
) -> Conversation:
    """Turn a raw row into a Conversation, repaired where that is safe (see `repair`).

    unread: receives the columns and fields of messages that were not used.
    Raises: RowError with the reason. DataError if a column that was not used changes what the row means.
    """
    if not isinstance(row, dict):
        raise RowError("not an object")
    columns = {name: value for name, value in given(row).items() if name not in reading.ignored}
    if preferred := preference_columns(columns, _mapped(reading)):
        if reading.use != "chosen":
            raise refusal(preferred, where)
        columns = chosen_row(columns, preferred)
    raw, used = turns_of(columns, reading.columns)
    left = require_read(columns, {*used, "source", "group", "score"}, reading.ignored, "", where)
    for turn in raw:
        if isinstance(turn, dict):
            read = {*MESSAGE_FIELDS, *(name for name in FIELDS if _is_thinking(turn, name, reading))}
            left += require_read(turn, read, reading.ignored, "messages.", where)
    messages, emptied = _without_empty([_message(turn, reading) for turn in raw])
    messages, repaired = repair(messages)
    if any(m.role == "system" for m in messages[1:]):
        raise RowError("system turn in the middle")
    if not any(m.trained for m in messages if m.role == "assistant"):
        raise RowError("every answer has weight 0")
    if unread is not None:
        unread.update(set(left))
    groups = columns.get("group", ())
    groups = tuple(map(str, groups)) if isinstance(groups, list | tuple) else (str(groups),)
    source = str(columns.get("source") or default_source)
    shape = "preferences" if preferred else shape_of(used, reading.columns is not None)
    return Conversation(
        tuple(messages), source, groups, _score(columns), where, (*emptied, *repaired), shape=shape
    )


def _mapped(reading: Reading) -> tuple[str, ...]:
    """Return the columns that `data.columns` names."""
    return tuple(reading.columns.model_dump(exclude_none=True).values()) if reading.columns else ()


def _without_empty(turns: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Leave out empty system prompts, and cut from the first other turn that is empty. Raises: RowError."""
    said = [m for m in turns if m.content.strip() or m.role != "system"]
    done = [NO_SYSTEM] if len(said) < len(turns) else []
    end = next((i for i, m in enumerate(said) if not m.content.strip()), len(said))
    if end < len(said):
        if not any(m.role == "assistant" for m in said[:end]):
            raise RowError("empty turn")
        done.append(EMPTY)
    return said[:end], tuple(done)


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
            last = merged[-1]
            text = f"{last.content}\n\n{message.content}"
            reasoning = "\n\n".join(part for part in (last.reasoning, message.reasoning) if part)
            merged[-1] = Message(message.role, text, last.trained and message.trained, reasoning)
            if done[-1:] != [MERGED]:
                done.append(MERGED)
        else:
            merged.append(message)
    return merged, tuple(done)


def _score(row: Mapping[str, Any]) -> float | None:
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _message(turn: Any, reading: Reading) -> Message:
    if not isinstance(turn, dict):
        raise RowError("a turn is not an object")
    named, content = (
        next((turn[name] for name in names if turn.get(name) is not None), None)
        for names in (("from", "role"), ("value", "content"))
    )
    role = named.strip().lower() if isinstance(named, str) else named
    known = reading.roles.get(str(named)) or ROLES.get(str(role))
    if known is None:
        raise RowError(f"unknown role {str(role)[:20]!r}")
    thinking = (turn[name] for name in FIELDS if _is_thinking(turn, name, reading))
    reasoning = next(thinking, "") if known == "assistant" else ""
    return Message(known, _text(content), _is_trained(turn), reasoning)


def _is_thinking(turn: Mapping[str, Any], name: str, reading: Reading) -> bool:
    return isinstance(turn.get(name), str) and name not in reading.ignored


def _is_trained(turn: Mapping[str, Any]) -> bool:
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(f"weight {str(weight)[:20]} of a message, expected 0 or 1")
    return weight != 0


def _text(content: Any) -> str:
    """Return the text of a message's content; empty if there is none. Raises: RowError if it is no text."""
    if content is None or is_nan(content):
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        return "".join(map(_part, content))
    if isinstance(content, int | float) and not isinstance(content, bool):
        return str(content)
    raise RowError(f"content is {'an object' if isinstance(content, dict) else repr(content)[:20]}")


def _part(part: Any) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in ("text", "input_text", "output_text"):
        raise DataError(
            f"a message has a part of type {str(kind)[:30]!r}, which a model of texts cannot read: "
            "take such rows out"
        )
    return _text(part.get("text"))
