"""Comparisons that may be voted on, and the votes that were stored."""

import json
from pathlib import Path
from typing import Any

from conversations import Chat, ask, new_chat, reply

SAMPLING = {"temperature": 1, "max_tokens": 64}


def compared(question: str = "Hi\u2028", left: str = "a", right: str = "b") -> Chat:
    chat = new_chat(reply(ask([], question), left, model="base"))
    chat["rival"] = reply(ask([], question), right, model="tuned")
    return chat


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n") if line]
