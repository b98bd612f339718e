"""Write rows that people publish in less usual shapes in the usual ones, which `shapes` reads.

- Columns with other capitals, and chats under other names (`conversation`, `dialog`, Gemini's `contents`).
- Chats as JSON text, as texts that alternate, as pairs of role and text, as objects of a question and its
  answer, or as an object of columns.
- Logs of API calls and ChatGPT's export (`exports`).
- One `text` that holds a whole chat between the markers of a prompt format.
- A tree of answers (OASST's ready trees): its best-ranked path.
"""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from trainer.data.exports import exported
from trainer.data.shapes import CHATS, MORE, PAIRS, RowError

NAMES = {*CHATS, *MORE, *(name for pair in PAIRS for name in pair), "system", "history", "tools", "text"}
OTHER_CHATS = ("conversation", "dialog", "dialogue", "chat", "turns", "contents", "chat_messages", "data")
SYSTEMS = ("system_prompt", "systemInstruction", "system_instruction")
_ROLES = {
    "human": "user", "user": "user", "instruction": "user", "input": "user", "question": "user", "q": "user",
    "assistant": "assistant", "response": "assistant", "output": "assistant", "answer": "assistant",
    "a": "assistant", "gpt": "assistant", "bot": "assistant", "system": "system",
}  # fmt: skip
_CHATML = re.compile(r"<\|im_start\|>(\w+)\n(.*?)(?:<\|im_end\|>|\Z)", re.DOTALL)
_LLAMA_2 = re.compile(r"(?:<s>)?\s*\[INST\](.*?)\[/INST\](.*?)(?=(?:<s>)?\s*\[INST\]|\Z)", re.DOTALL)
_LLAMA_2_SYSTEM = re.compile(r"\s*<<SYS>>(.*?)<</SYS>>", re.DOTALL)
_HEADERS = (
    ("### headers", re.compile(r"^#{2,4} *(\w+) *:?[ \t]*", re.MULTILINE)),
    (
        "`Human:` and `Assistant:`",
        re.compile(r"^(Human|User|Assistant|System|Question|Answer|Q|A):[ \t]*", re.M),
    ),
)


def usual(row: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """Return the row in a usual shape, and the name of the shape that it had; `` if it was usual.

    Raises: RowError if it is an unusual shape and cannot be read.
    """
    row = _spelled(row)
    if written := exported(row):
        return written
    name = next((name for name in CHATS if name in row), None)
    other = next((name for name in OTHER_CHATS if _is_chat(row.get(name))), None)
    if name is None and other:
        row, name = {"messages": row[other], **{k: v for k, v in row.items() if k != other}}, "messages"
    found = f"chat in `{other}`" if other and name == "messages" else ""
    if name:
        chat, as_written = _chat(row[name])
        return {**row, name: chat}, as_written or found
    if any(question in row and answer in row for question, answer in PAIRS):
        return row, ""
    if isinstance(row.get("prompt"), dict) and "replies" in row["prompt"]:
        left = {name: value for name, value in row.items() if name != "prompt"}
        return {"messages": list(_best_path(row["prompt"])), **left}, "tree"
    if isinstance(row.get("text"), str) and (split := _split(row["text"])):
        left = {name: value for name, value in row.items() if name != "text"}
        return {"messages": split[0], **left}, f"text with {split[1]}"
    return row, ""


def _spelled(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row with known names in small letters, and one name for a system prompt."""
    named = {}
    for name, value in row.items():
        small = name.strip().lower() if isinstance(name, str) else name  # other formats have other names
        known = small if small in NAMES else "system" if name in SYSTEMS else name
        named[name if known in row or known in named else known] = value
    return named


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and len(value) > 1 and isinstance(value[0], dict | str | list)


def _chat(value: Any) -> tuple[Any, str]:
    """Return a chat as a list of messages, and the name of its form if that is unusual."""
    form = ""
    if isinstance(value, str):
        try:
            value, form = json.loads(value), "chat as JSON text"
        except (ValueError, RecursionError):
            return value, ""
    if isinstance(value, dict) and (columns := _columns(value)):
        return columns, "chat in columns"
    if not isinstance(value, list) or not value:
        return value, form
    if all(isinstance(turn, str) for turn in value):
        roles = ("user", "assistant")
        return [{"role": roles[i % 2], "content": turn} for i, turn in enumerate(value)], "texts in turn"
    if all(isinstance(turn, list | tuple) and len(turn) == 2 for turn in value):
        return [{"role": role, "content": text} for role, text in value], "pairs of role and text"
    if pair := _pair_of(value):
        return list(_asked_and_answered(value, *pair)), "turns of question and answer"
    return value, form


def _columns(value: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the messages of an object of lists, as tables keep them; none if it is something else."""
    if not value or not all(isinstance(items, list) for items in value.values()):
        return []
    if len({len(items) for items in value.values()}) > 1:
        raise RowError("a chat in columns of different lengths")
    return [dict(zip(value, items, strict=True)) for items in zip(*value.values(), strict=True)]


def _pair_of(turns: list[Any]) -> tuple[str, str] | None:
    """Return the names of question and answer that every turn has."""
    if not all(isinstance(turn, dict) and not {"role", "from"} & set(turn) for turn in turns):
        return None
    return next((pair for pair in PAIRS if all(set(pair) <= set(turn) for turn in turns)), None)


def _asked_and_answered(turns: list[Any], question: str, answer: str) -> Iterator[dict[str, Any]]:
    for turn in turns:
        left = {name: value for name, value in turn.items() if name not in (question, answer, "system")}
        if turn.get("system"):
            yield {"role": "system", "content": turn["system"]}
        yield {"role": "user", "content": turn[question], **left}
        yield {"role": "assistant", "content": turn[answer]}


def _split(text: str) -> tuple[list[dict[str, str]], str] | None:
    """Return the turns of a formatted text and the name of its markers, or None if it has none."""
    if turns := list(_by_chatml(text)):
        return turns, "ChatML"
    if turns := list(_by_llama_2(text)):
        return turns, "[INST]"
    for name, headers in _HEADERS:
        turns = list(_by_headers(text, headers))
        if {"user", "assistant"} <= {turn["role"] for turn in turns}:
            return turns, name
    return None


def _by_chatml(text: str) -> Iterator[dict[str, str]]:
    for match in _CHATML.finditer(text):
        yield {"role": match[1], "content": match[2]}


def _by_llama_2(text: str) -> Iterator[dict[str, str]]:
    for match in _LLAMA_2.finditer(text):
        asked = match[1]
        if system := _LLAMA_2_SYSTEM.match(asked):
            yield {"role": "system", "content": system[1].strip()}
            asked = asked[system.end() :]
        yield {"role": "user", "content": asked.strip()}
        yield {"role": "assistant", "content": match[2].replace("</s>", "").strip()}


def _by_headers(text: str, headers: re.Pattern[str]) -> Iterator[dict[str, str]]:
    """Yield what stands under each header that names a role, and what stands before the first as a system
    prompt. A header that names none is part of the text.
    """
    found = [match for match in headers.finditer(text) if match[1].lower() in _ROLES]
    if not found:
        return
    if before := text[: found[0].start()].strip():
        yield {"role": "system", "content": before}
    ends = [match.start() for match in found[1:]] + [len(text)]
    for match, end in zip(found, ends, strict=True):
        yield {"role": _ROLES[match[1].lower()], "content": text[match.end() : end].strip()}


def _best_path(node: Any) -> Iterator[dict[str, Any]]:
    """Yield the messages from a question along the best-ranked answers. Raises: RowError."""
    while node is not None:
        if not isinstance(node, Mapping):
            raise RowError("a reply is not an object")
        replies = node.get("replies") or []
        yield {name: value for name, value in node.items() if name != "replies"}
        node = min(replies, key=rank_of, default=None)


def rank_of(message: Any) -> float:
    """Return the rank that people gave an answer, the best first; those without one come last."""
    rank = message.get("rank") if isinstance(message, Mapping) else None
    return float(rank) if isinstance(rank, int | float) else float("inf")
