"""Export and import a chat: as JSON, which the trainer reads as a row, or as Markdown for people."""

import json
import re

from conversations import (
    Chat,
    Conversation,
    Entry,
    encodable,
    new_chat,
    restore_entries,
    title_of,
    with_thinking,
)

MARK = re.compile(r"^(\\*)<!-- (user|assistant) -->$", re.MULTILINE)
OTHER_NAMES = {"human": "user", "gpt": "assistant"}


class FileError(ValueError):
    """The file holds no chat. The message is for the reader."""


def to_json(chat: Chat) -> str:
    """Return an object with `messages` in OpenAI's format, and `rival` if two models were compared."""
    row = {"title": title_of(chat), "messages": chat["entries"]}
    if chat["rival"]:
        row["rival"] = chat["rival"]
    return json.dumps(row, ensure_ascii=False, indent=2) + "\n"


def to_markdown(chat: Chat) -> str:
    """Return Markdown: headings for people, comments for `from_text`. Thoughts are quoted.

    It leaves out the rival's answers.
    """
    parts = [f"# {title_of(chat)}"]
    for entry in chat["entries"]:
        heading = "You" if entry["role"] == "user" else entry.get("model") or "Assistant"
        # Escape a line that looks like a mark with a backslash, and one that has backslashes with one more.
        content = MARK.sub(r"\\\g<0>", entry["content"])
        lines = [f"## {heading}", *_quoted(entry.get("reasoning_content", ""))]
        parts.append("\n".join([*lines, f"<!-- {entry['role']} -->", content]))
    return "\n\n".join(parts) + "\n"


def _quoted(thinking: str) -> list[str]:
    """Return the thinking as a quotation, with an empty line after it."""
    return [*(f"> {line}" for line in thinking.split("\n")), ""] if thinking else []


def from_text(text: str) -> Chat:
    """Read a chat from either format, or from a training row with `conversations` or `messages`.

    Raises: FileError
    """
    text = encodable(text)
    chat = _from_json(text) if text.lstrip()[:1] in ("{", "[") else new_chat(_from_markdown(text))
    if not any(entry["role"] == "user" for entry in chat["entries"]):
        raise FileError(
            "There is no chat in this file. This page imports JSON or Markdown that it has exported."
        )
    return chat


def _from_json(text: str) -> Chat:
    try:
        row = json.loads(text)
    except ValueError as error:
        raise FileError(f"This file is not complete JSON: {error}.") from error
    turns = row if isinstance(row, list) else row.get("messages") or row.get("conversations")
    turns = turns if isinstance(turns, list) else []
    chat = new_chat(restore_entries([_plain(turn) for turn in turns if isinstance(turn, dict)]))
    if isinstance(row, dict):
        chat["rival"] = restore_entries(row.get("rival"))
    return chat


def _plain(turn: dict[str, object]) -> dict[str, object]:
    role = str(turn.get("role") or turn.get("from"))
    return {**turn, "role": OTHER_NAMES.get(role, role), "content": turn.get("content") or turn.get("value")}


def _from_markdown(text: str) -> Conversation:
    marks = [mark for mark in MARK.finditer(text) if not mark[1]]
    ends = [mark.start() for mark in marks[1:]]
    entries: Conversation = []
    quoted = ""
    for place, mark in enumerate(marks):
        thinking = "\n".join(line[2:] for line in quoted.split("\n") if line.startswith("> "))
        if place < len(ends):  # up to the heading of the next turn, which may have thoughts below it
            content = text[mark.end() + 1 : ends[place]]
            heading = content.rfind("\n\n## ")
            content, quoted = (content[:heading], content[heading:]) if heading >= 0 else (content, "")
        else:
            content = text[mark.end() + 1 :].removesuffix("\n")
        content = MARK.sub(lambda found: found[0][1:], content)
        entry = Entry(role="user" if mark[2] == "user" else "assistant", content=content)
        entries.append(with_thinking(entry, thinking))
    return entries
