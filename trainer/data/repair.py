"""Repair the turns of a row where that is safe, and refuse what is not.

Every function takes the turns of one row and returns them repaired, with the names of the repairs, which
reports count.
"""

import dataclasses
from collections.abc import Collection, Sequence

from trainer.data.calls import Call, split_calls, untagged
from trainer.data.conversation import Message
from trainer.data.shapes import RowError

MERGED = "turns of the same role merged"
EMPTY = "turns from an empty one on cut"
WRITTEN = "calls and results in texts read as such"
NO_SYSTEM = "empty system prompt left out"


def calls_in_texts(messages: list[Message], names: Collection[str]) -> tuple[list[Message], tuple[str, ...]]:
    """Return the messages with the calls and results that their texts write, if the row has tools.

    names: of the functions that may be called.
    """
    if not names:
        return messages, ()
    found = []
    for message in messages:
        text, calls = message.content, message.calls
        if message.role == "assistant" and not calls:
            text, calls = split_calls(text, names)
        elif message.role == "tool":
            text = untagged(text)
        found.append(dataclasses.replace(message, content=text, calls=calls))
    return found, (WRITTEN,) if found != messages else ()


def without_empty(turns: list[Message]) -> tuple[list[Message], tuple[str, ...]]:
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


def require_sound_calls(messages: Sequence[Message], tools: Collection[str]) -> None:
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
