"""Find out, by trying it, what a chat template does with system prompts and with thinking."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.shapes import RowError

FIELDS = ("reasoning_content", "reasoning", "thinking")  # of a message, in which data sets put thinking
# The markers around thinking in the templates of families, and between them what a text begins with.
MARKERS = {
    "<think>": "</think>", "[THINK]": "[/THINK]", "<thought>": "</thought>", "<seed:think>": "</seed:think>",
    "◁think▷": "◁/think▷",
}  # fmt: skip
_THOUGHTS = {
    begin: re.compile(rf"\s*{re.escape(begin)}\s*(.*?)\s*{re.escape(end)}\s*", re.DOTALL)
    for begin, end in MARKERS.items()
}
_MARK = "finechat-mark"

Render = Callable[[Sequence[dict[str, Any]], bool], str]  # turns, and whether the prompt of an answer follows


@dataclass(frozen=True, slots=True)
class Traits:
    """system: why the template has no place for a system prompt; empty if it has one.

    field: the field of a message from which it writes thinking. in_text: it keeps a block of thinking that an
    answer's text begins with. opens: with which marker its prompt begins such a block, where its answers lack
    it. closes: its prompt ends the thinking. keeps: it writes the thinking of earlier answers too.
    """

    system: str
    field: str | None
    in_text: bool
    opens: str
    closes: bool
    keeps: bool

    @property
    def has_thinking(self) -> bool:
        """Whether the thinking of a message reaches the model."""
        return (self.field is not None or bool(self.opens)) and not self.closes


def traits_of(render: Render) -> Traits:
    """Return the traits of the template that `render` renders with. It raises RowError where that refuses."""
    user, more = {"role": "user", "content": "x"}, {"role": "user", "content": "y"}
    plain = {"role": "assistant", "content": "z"}
    fields = {name: {**plain, name: _MARK} for name in FIELDS}
    field = next((name for name, said in fields.items() if _MARK in _tried(render, [user, said])), None)
    text = {**plain, "content": thought(_MARK, "z")}
    said = fields[field] if field else text
    prompt, written = _tried(render, [user], prompt=True), _tried(render, [user, said])
    begun = opening(prompt, _tried(render, [user, plain]))
    return Traits(
        system=_system(render),
        field=field,
        in_text=_MARK in _tried(render, [user, text]),
        opens=begun if begun in MARKERS else "",
        closes=_MARK in written and opening(prompt, written) not in ("", *MARKERS),
        keeps=_MARK in _tried(render, [user, said, more], prompt=True),
    )


def opening(prompt: str, written: str) -> str:
    """Return what a prompt has beyond the text in which its answer is written, without blanks around it."""
    return prompt[shared(prompt, written) :].strip()


def shared(one: str, other: str) -> int:
    """Return how many characters two texts begin with in common."""
    differ = (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b)
    return next(differ, min(len(one), len(other)))


def thought(thinking: str, answer: str, marker: str = "<think>") -> str:
    """Return an answer's text with its thinking in front. marker: with which the thinking begins."""
    return f"{marker}\n{thinking}\n{MARKERS[marker]}\n\n{answer}"


def split_thought(text: str) -> tuple[str, str]:
    """Return the thinking that an answer's text begins with, and the rest; no thinking if nothing is left."""
    begin = next((marker for marker in MARKERS if text.lstrip().startswith(marker)), "")
    match = _THOUGHTS[begin].match(text) if begin else None
    rest = text[match.end() :] if match else ""
    return (match[1], rest) if match and rest else ("", text)


def _system(render: Render) -> str:
    turns = [{"role": "system", "content": _MARK}, {"role": "user", "content": "x"}]
    try:
        return "" if _MARK in render(turns, True) else "the chat template leaves it out"
    except RowError as reason:
        return str(reason)


def _tried(render: Render, turns: Sequence[dict[str, Any]], prompt: bool = False) -> str:
    try:
        return render(turns, prompt)
    except RowError:
        return ""
