"""Define the one form of a row, `Conversation`, and turn raw rows into it.

`shapes` finds the turns of a row. This module handles one row at a time; `clean` drops duplicates.
"""

import dataclasses
import hashlib
import math
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config import TRAINED, ColumnsConfig, Trained
from trainer.data import calls
from trainer.data.calls import Call, read_calls, read_tools, tool_name
from trainer.data.contents import result_text, text_of
from trainer.data.preferences import chosen_row, preference_columns, refusal
from trainer.data.shapes import RowError, given, printable, require_read, shape_of, turns_of
from trainer.data.template_traits import FIELDS

Role = Literal["system", "user", "assistant", "tool"]

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
CALL_ROLES = ("function_call", "tool_call")  # whose content is a call
MESSAGE_FIELDS = ("from", "role", "value", "content", "weight", "tool_call_id", *calls.FIELDS)

MERGED = "turns of the same role merged"
EMPTY = "turns from an empty one on cut"
BY_QUESTION = "question:"  # begins the group of rows that name none
NO_SYSTEM = "empty system prompt left out"


@dataclass(frozen=True, slots=True)
class Reading:
    """How raw rows are read: `columns`, `roles`, `ignore_columns`, `use` and `train_on` of `data`."""

    columns: ColumnsConfig | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    use: Literal["chosen"] | None = None
    train_on: tuple[Trained, ...] = TRAINED


AS_IT_IS = Reading()


@dataclass(frozen=True, slots=True)
class Message:
    """trained: whether an answer has labels. reasoning: its thinking, from a field of its own.

    calls: of functions, by an answer. call_id: of the call whose result a message holds.
    """

    role: Role
    content: str
    trained: bool = True
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""

    @property
    def said(self) -> str:
        """The content and the calls, as people read them."""
        return "\n".join([self.content, *(call.text for call in self.calls)]) if self.calls else self.content


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that ends with an answer.

    groups: labels shared by rows that share text. score: the quality that the data set states, or None.
    tools: functions that may be called, each as JSON text.
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
    tools: tuple[str, ...] = ()
    joined: tuple[str, ...] = field(default=(), compare=False)
    shape: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the file, or the split of the Hub, of each row that the conversation is made of."""
        return tuple(file_of(where) for where in (self.where, *self.joined) if where)

    @property
    def row_id(self) -> str:
        """The SHA-256 of roles, texts and tools: the same are the same row, wherever it was read."""
        digest = hashlib.sha256()
        for message in self.messages:
            digest.update(f"{message.role}\x00{message.content}\x01".encode())
            if message.reasoning:
                digest.update(f"{message.reasoning}\x02".encode())
            for call in message.calls:
                digest.update(f"{call.text}\x03".encode())
        for tool in self.tools:
            digest.update(f"{tool}\x04".encode())
        return digest.hexdigest()

    @property
    def first_question(self) -> str:
        """Return the SHA-256 of the first question."""
        asked = next(message.content for message in self.messages if message.role == "user")
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The texts and the thinking of all turns, without the roles."""
        return "\n".join(text for m in self.messages for text in (m.reasoning, m.said) if text)

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
    Raises: RowError with the reason, UnicodeEncodeError for half a surrogate pair. DataError if a column that
    was not used changes what the row means.
    """
    if not isinstance(row, dict):
        raise RowError("not an object")
    columns = {name: value for name, value in given(row).items() if name not in reading.ignored}
    if preferred := preference_columns(columns, _mapped(reading)):
        if reading.use != "chosen":
            raise refusal(preferred, where)
        columns = chosen_row(columns, preferred)
    raw, used = turns_of(columns, reading.columns)
    tools, left_of_tools = read_tools(columns)
    left = require_read(
        columns, {*used, *calls.COLUMNS, "source", "group", "score"}, reading.ignored, "", where
    )
    for turn in raw:
        if isinstance(turn, dict):
            read = {*MESSAGE_FIELDS, *(name for name in FIELDS if _is_thinking(turn, name, reading))}
            left += require_read(turn, read, reading.ignored, "messages.", where)
    messages, emptied = _without_empty([_message(turn, reading) for turn in raw])
    messages, repaired = repair(messages)
    if any(m.role == "system" for m in messages[1:]):
        raise RowError("system turn in the middle")
    _require_sound_calls(messages, {tool_name(tool) for tool in tools})
    if not any(m.trained for m in messages if m.role == "assistant"):
        raise RowError("every answer has weight 0")
    messages = [_labelled(message, reading.train_on) for message in messages]
    if not any(m.trained for m in messages if m.role == "assistant"):
        raise RowError(f"no answer of data.train_on {list(reading.train_on)}")
    if unread is not None:
        unread.update(set(map(printable, (*left, *left_of_tools))))
    groups = columns.get("group", ())
    groups = tuple(map(str, groups)) if isinstance(groups, list | tuple) else (str(groups),)
    source = str(columns.get("source") or default_source)
    "".join((source, *groups)).encode()  # half a surrogate pair could not be written
    shape = "preferences" if preferred else shape_of(used, reading.columns is not None)
    return Conversation(
        tuple(messages),
        source,
        groups,
        _score(columns),
        where,
        (*emptied, *repaired),
        tools=tools,
        shape=shape,
    )


def _mapped(reading: Reading) -> tuple[str, ...]:
    """Return the columns that `data.columns` names."""
    return tuple(reading.columns.model_dump(exclude_none=True).values()) if reading.columns else ()


def _without_empty(turns: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
    """Leave out empty system prompts, and cut from the first other turn that is empty. Raises: RowError."""
    said = [m for m in turns if m.content.strip() or m.role != "system"]
    done = [NO_SYSTEM] if len(said) < len(turns) else []
    end = next((i for i, m in enumerate(said) if _is_empty(m)), len(said))
    if end < len(said):
        if not any(m.role == "assistant" for m in said[:end]):
            raise RowError("empty turn")
        done.append(EMPTY)
    return said[:end], tuple(done)


def _is_empty(message: Message) -> bool:
    """Return whether a turn says nothing; the result of a call may."""
    return not (message.content.strip() or message.calls or message.role == "tool")


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
    before = [m for m in messages[:start] if m.role == "system"]
    if len(before) < start:
        done.append("answers before the first question cut")
    merged: list[Message] = []
    for message in [*before, *messages[start:end]]:
        if merged and merged[-1].role == message.role != "tool":
            merged[-1] = _merged(merged[-1], message)
            if done[-1:] != [MERGED]:
                done.append(MERGED)
        else:
            merged.append(message)
    return merged, tuple(done)


def _merged(first: Message, second: Message) -> Message:
    """Return two turns of one role as one, with a blank line between their texts. Raises: RowError."""
    if first.calls and second.content.strip():
        raise RowError("an answer after a call without its result")
    content, reasoning = (
        "\n\n".join(part for part in parts if part.strip())
        for parts in ((first.content, second.content), (first.reasoning, second.reasoning))
    )
    trained = first.trained and second.trained
    return Message(first.role, content, trained, reasoning, first.calls + second.calls)


def _labelled(message: Message, train_on: Sequence[Trained]) -> Message:
    """Return the message without labels if it is an answer of a kind that is not to be trained."""
    kind: Trained = "tool_calls" if message.calls else "assistant"
    if message.role != "assistant" or kind in train_on:
        return message
    return dataclasses.replace(message, trained=False)


def _require_sound_calls(messages: Sequence[Message], tools: Collection[str]) -> None:
    """Check that every call is of a known function and every result of a call. Raises: RowError."""
    waiting: list[Call] = []
    for message in messages:
        if message.role != "tool":
            waiting = list(message.calls)
            if any(call.name not in tools for call in message.calls):
                raise RowError(
                    "a call of a function that is not among the tools" if tools else "a call, and no tools"
                )
            continue
        fits = (i for i, call in enumerate(waiting) if message.call_id in ("", call.id) or not call.id)
        place = next(fits, None)
        if place is None:
            raise RowError("a result without a call")
        del waiting[place]


def _score(row: Mapping[str, Any]) -> float | None:
    try:
        score = float(row["score"])
    except (KeyError, TypeError, ValueError, OverflowError):
        return None
    return score if math.isfinite(score) else None


def _message(turn: Any, reading: Reading) -> Message:
    if not isinstance(turn, dict):
        raise RowError("a turn is not an object")
    turn = {name: value for name, value in turn.items() if name not in reading.ignored}
    named, content = (
        next((turn[name] for name in names if turn.get(name) is not None), None)
        for names in (("from", "role"), ("value", "content"))
    )
    role = named.strip().lower() if isinstance(named, str) else named
    known = reading.roles.get(str(named)) or ROLES.get(str(role))
    if known is None:
        raise RowError(f"unknown role {str(role)[:20]!r}")
    if known == "tool":
        id = turn.get("tool_call_id")
        return Message(known, text_of(result_text(content)), False, call_id=id if isinstance(id, str) else "")
    called = [content] if known == "assistant" and role in CALL_ROLES else []
    found = tuple(call for value in (*called, *map(turn.get, calls.FIELDS)) for call in read_calls(value))
    if found and known != "assistant":
        raise RowError(f"a call by the {known}")
    thinking = (turn[name] for name in FIELDS if _is_thinking(turn, name, reading))
    reasoning = next(thinking, "") if known == "assistant" else ""
    return Message(known, "" if called else text_of(content), _is_trained(turn), reasoning, found)


def _is_thinking(turn: Mapping[str, Any], name: str, reading: Reading) -> bool:
    return isinstance(turn.get(name), str) and name not in reading.ignored


def _is_trained(turn: Mapping[str, Any]) -> bool:
    weight = turn.get("weight")
    if weight not in (None, 0, 1):
        raise RowError(f"weight {printable(str(weight)[:20])} of a message, expected 0 or 1")
    return weight != 0
