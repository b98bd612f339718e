"""Turn raw rows into conversations.

`shapes` finds the turns of a row, `calls` its functions, and `repair` mends the turns. This module handles
one row at a time; `clean` drops duplicates.
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from trainer.config_data import TRAINED, ColumnsConfig, Trained
from trainer.data import calls
from trainer.data.calls import read_calls, read_tools, tool_name
from trainer.data.contents import result_text, text_of
from trainer.data.conversation import Conversation, Message, Role
from trainer.data.preferences import chosen_row, preference_columns, refusal
from trainer.data.repair import calls_in_texts, repair, require_sound_calls, without_empty
from trainer.data.shapes import RowError, ShapeError, given, printable, require_read, shape_of, turns_of
from trainer.data.template_traits import FIELDS
from trainer.data.unusual import usual

ROLES: Mapping[str, Role] = {
    "system": "system", "developer": "system",
    "human": "user", "user": "user", "prompter": "user",
    "gpt": "assistant", "assistant": "assistant", "chatgpt": "assistant", "bing": "assistant",
    "bard": "assistant", "model": "assistant", "bot": "assistant", "chatbot": "assistant", "ai": "assistant",
    "function_call": "assistant", "tool_call": "assistant",
    "tool": "tool", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool",
}  # fmt: skip
OWN = ("source", "group", "score")  # columns that say something of a row
CALL_ROLES = ("function_call", "tool_call")  # whose content is a call
SPEAKERS = ("from", "role", "author", "speaker", "sender")
CONTENTS = ("value", "content", "text", "message", "parts")
MESSAGE_FIELDS = (*SPEAKERS, *CONTENTS, "weight", "tool_call_id", *calls.FIELDS)


@dataclass(frozen=True, slots=True)
class Reading:
    """How raw rows are read: `columns`, `roles`, `ignore_columns`, `use` and `train_on` of `data`."""

    columns: ColumnsConfig | None = None
    roles: Mapping[str, Role] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    use: Literal["chosen"] | None = None
    train_on: tuple[Trained, ...] = TRAINED


AS_IT_IS = Reading()


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
    if isinstance(row, list) and row:
        row = {"messages": row}
    if not isinstance(row, dict):
        raise RowError("not an object")
    columns = {name: value for name, value in given(row).items() if name not in reading.ignored}
    as_given = columns
    columns, written = (columns, "") if reading.columns else usual(columns)
    if preferred := preference_columns(columns, _mapped(reading)):
        if reading.use != "chosen":
            raise refusal(preferred, where)
        columns = chosen_row(columns, preferred)
    try:
        raw, used = turns_of(columns, reading.columns)
    except ShapeError:  # `data.columns` names columns as they are given
        raise ShapeError(as_given) from None
    tools, left = read_tools(columns)
    left |= _unread(columns, raw, {*used, *calls.COLUMNS, *OWN}, reading, where)
    messages, repairs = _messages(raw, {tool_name(tool) for tool in tools}, reading)
    if unread is not None:
        unread.update(set(map(printable, left)))
    groups = columns.get("group", ())
    groups = tuple(map(str, groups)) if isinstance(groups, list | tuple) else (str(groups),)
    source = str(columns.get("source") or default_source)
    "".join((source, *groups)).encode()  # half a surrogate pair could not be written
    shape = "preferences" if preferred else written or shape_of(used, reading.columns is not None)
    score = _score(columns)
    return Conversation(messages, source, groups, score, where, repairs, tools=tools, shape=shape)


def _unread(
    columns: Mapping[str, Any], turns: Sequence[Any], used: set[str], reading: Reading, where: str
) -> set[str]:
    """Return the columns and fields of messages that are not used. Raises: DataError."""
    left = require_read(columns, used, reading.ignored, "", where)
    for turn in turns:
        if isinstance(turn, dict):
            read = {*MESSAGE_FIELDS, *(name for name in FIELDS if _is_thinking(turn, name, reading))}
            left += require_read(turn, read, reading.ignored, "messages.", where)
    return set(left)


def _messages(
    turns: Sequence[Any], functions: set[str], reading: Reading
) -> tuple[tuple[Message, ...], tuple[str, ...]]:
    """Return the repaired messages of a row, and the repairs. functions: their names. Raises: RowError."""
    messages, written = calls_in_texts([_message(turn, reading) for turn in turns], functions)
    messages, emptied = without_empty(messages)
    messages, repaired = repair(messages)
    if any(m.role == "system" for m in messages[1:]):
        raise RowError("system turn in the middle")
    require_sound_calls(messages, functions)
    if not any(m.trained for m in messages if m.role == "assistant"):
        raise RowError("every answer has weight 0")
    labelled = tuple(_labelled(message, reading.train_on) for message in messages)
    if not any(m.trained for m in labelled if m.role == "assistant"):
        raise RowError(f"no answer of data.train_on {list(reading.train_on)}")
    return labelled, (*written, *emptied, *repaired)


def _mapped(reading: Reading) -> tuple[str, ...]:
    """Return the columns that `data.columns` names."""
    return tuple(reading.columns.model_dump(exclude_none=True).values()) if reading.columns else ()


def _labelled(message: Message, train_on: Sequence[Trained]) -> Message:
    """Return the message without labels if it is an answer of a kind that is not to be trained."""
    kind: Trained = "tool_calls" if message.calls else "assistant"
    if message.role != "assistant" or kind in train_on:
        return message
    return dataclasses.replace(message, trained=False)


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
        for names in (SPEAKERS, CONTENTS)
    )
    if isinstance(named, dict) and isinstance(named.get("role"), str):  # an author
        named = named["role"]
    role = named.strip().lower() if isinstance(named, str) else named
    known = reading.roles.get(str(named)) or ROLES.get(str(role))
    if named is None:
        raise RowError(f"a turn without a role, with {printable(', '.join(map(str, turn)))}")
    if known is None:
        known_as = printable(str(named)[:20])
        raise RowError(f"unknown role {known_as!r}, which data.roles={{{known_as}: user}} would read")
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
