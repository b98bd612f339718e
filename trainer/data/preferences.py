"""Read the better answers of preference data: of two the one that people chose, or those that they praised.

Two answers are `chosen` and `rejected` (TRL, LLaMA-Factory), `preferred_output` and `non_preferred_output`
(OpenAI), or a vote of our page. Each is a text, a message or messages, after a prompt or alone. An answer
with a verdict (KTO) has `label`. The other answers stay out: they would need an objective of their own.
"""

import re
from collections.abc import Collection, Mapping
from typing import Any

from trainer.data.shapes import CHATS, MORE, QUESTIONS, RowError, joined
from trainer.errors import DataError

BETTER = ("chosen", "preferred_output")
WORSE = ("rejected", "non_preferred_output")
VERDICTS = ("label", "kto_tag")
VOTE = ("prompts", "answers", "verdict")
SIDES = ("left", "right")  # of a vote that prefers one
ANSWERERS = ("assistant", "gpt", "model", "chatgpt")
KNOWN = ("messages", "tools")  # of OpenAI's `input`
_SPEAKER = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def preference_columns(row: Mapping[str, Any], mapped: Collection[str]) -> list[str]:
    """Return the columns that say which answers people prefer. mapped: those that `data.columns` names.

    Where columns are mapped, the answer is known, and only a verdict on it says more.
    """
    if not mapped and all(name in row for name in VOTE):
        return list(VOTE)
    pairs = [name for name in (*BETTER, *WORSE) if name in row] if not mapped else []
    return pairs + [name for name in VERDICTS if name not in mapped and _verdict(row.get(name)) is not None]


def refusal(columns: list[str], where: str) -> DataError:
    """Return the error for rows that hold preferences where nothing says how to read them."""
    named = " and ".join(map(repr, columns))
    return DataError(
        f"{where}: {named} {'say' if len(columns) > 1 else 'says'} which answers people prefer, and `sft` "
        "would train good and bad ones alike. Train the good ones with data.use=chosen, or leave this out "
        f"with data.ignore_columns=[{', '.join(columns)}]"
    )


def chosen_row(row: Mapping[str, Any], columns: Collection[str]) -> dict[str, Any]:
    """Return the row with the better answer alone, in a shape of `shapes`.

    columns: its `preference_columns`. Raises: RowError if no answer is the better one.
    """
    if list(columns) == list(VOTE):
        return _vote(row)
    if any(_verdict(row[name]) is False for name in columns if name in VERDICTS):
        raise RowError("an answer that people rejected")
    better = next((name for name in BETTER if name in columns), None)
    left = {name: value for name, value in row.items() if name not in (better, *VERDICTS)}
    if better is None:
        if any(name in WORSE for name in columns):
            raise RowError("no chosen answer")
        return left
    if isinstance(left.get("input"), dict):  # OpenAI's form
        left |= {name if name in KNOWN else f"input.{name}": v for name, v in left.pop("input").items()}
    answer = _turns(row[better], "assistant")
    prompt, asked = _prompt(left)
    whole = isinstance(answer[0], dict) and _speaker(answer[0]) not in ANSWERERS
    others = {name: value for name, value in left.items() if name not in asked}
    return {**others, "messages": answer if whole else [*prompt, *answer]}


def _vote(row: Mapping[str, Any]) -> dict[str, Any]:
    """Return the conversation of a line of the page's file of votes. Raises: RowError."""
    if row["verdict"] not in SIDES:
        raise RowError("a vote that prefers neither answer")
    side = SIDES.index(row["verdict"])
    try:
        messages = [*row["prompts"][side], {"role": "assistant", "content": row["answers"][side]}]
    except (TypeError, IndexError, KeyError):
        raise RowError("a vote without two answers") from None
    return {**{name: v for name, v in row.items() if name not in VOTE}, "messages": messages}


def _prompt(row: Mapping[str, Any]) -> tuple[list[Any], set[str]]:
    """Return the turns before the answer, and the columns that hold them; a chat ends before its answer."""
    for name in CHATS:
        if isinstance(row.get(name), list):
            answered = bool(row[name]) and _speaker(row[name][-1]) in ANSWERERS
            return row[name][: -1 if answered else None], {name, "prompt"}
    asked = next((name for name in (*QUESTIONS, *MORE) if name in row), None)
    if asked is None:
        return [], set()
    if asked != "instruction":
        return _turns(row[asked], "user"), {asked}
    question = joined([row[asked], *(row.get(name, "") for name in MORE)])
    return [{"role": "user", "content": question}], {asked, *MORE}


def _speaker(turn: Any) -> str:
    role = (turn.get("role") or turn.get("from")) if isinstance(turn, dict) else ""
    return str(role).strip().lower()


def _turns(value: Any, role: str) -> list[Any]:
    """Return a text as a turn of `role`, or as the turns that `Human:` and `Assistant:` begin in it."""
    if isinstance(value, list):
        if not value:
            raise RowError("no chosen answer")
        return value
    if isinstance(value, dict):
        return [value]
    parts = _SPEAKER.split(str(value))
    if len(parts) == 1:
        return [{"role": role, "content": value}]
    return [
        {"from": who.lower(), "value": said.strip()}
        for who, said in zip(parts[1::2], parts[2::2], strict=True)
    ]


def _verdict(value: Any) -> bool | None:
    """Return whether a verdict is good; None if the value is none."""
    if isinstance(value, str) and value.lower() in ("true", "false"):
        return value.lower() == "true"
    if isinstance(value, bool) or (isinstance(value, int | float) and value in (-1, 0, 1)):
        return value > 0
    return None
