"""Find how the model of a chat template thinks: its markers, its switch, and the place of earlier thinking.

Such a model writes its thinking before its answer, between two markers. The opening one ends the prompt, or
the model writes it. No model's name decides: the template is tried.
"""

import re
import secrets
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

# The opening and the closing marker of a family's templates.
MARKERS = (
    ("<think>", "</think>"),
    ("<seed:think>", "</seed:think>"),
    ("<thought>", "</thought>"),
    ("[THINK]", "[/THINK]"),
    ("◁think▷", "◁/think▷"),
)
_SWITCHES = ("enable_thinking", "thinking")  # variables of templates that turn thinking on and off
_KEYS = ("reasoning_content", "reasoning", "thinking")  # their names for the thinking of an earlier message

# Rules of the grammar library: thinking up to the first closing marker, as text or as its token.
_WRITTEN = r"WRITTEN: /(?s:.*){0}/ & ~/(?s:.*){0}(?s:.+)/"
_UNWRITTEN = r"UNWRITTEN: /(?s:.*)/ & ~/(?s:.*){0}(?s:.*)/"
_LINES = r"/\n{0,2}/"  # that models write between the marker and the answer


@dataclass(frozen=True, slots=True)
class Marker:
    """id: of its one token, or None if it has several. special: answers leave the token out."""

    text: str
    id: int | None = None
    special: bool = False


@dataclass(frozen=True, slots=True)
class Thinking:
    """The markers of a template's thinking.

    switch: its variable that turns thinking on and off. key: the field of a message where it reads earlier
    thinking.
    """

    opening: Marker
    closing: Marker
    switch: str | None = None
    key: str | None = None

    @property
    def can_be_limited(self) -> bool:
        """Return whether the engine can end the thinking: it knows the markers by their token ids alone."""
        return self.opening.id is not None and self.closing.id is not None


@dataclass(frozen=True, slots=True)
class Thinks:
    """How an answer thinks. inside: the prompt ends with the opening marker; if not, the model may write it.

    `None` in its place means that an answer does not think.
    """

    opening: Marker
    closing: Marker
    inside: bool

    def limit(self, prompt_ids: Sequence[int], most: int | None) -> int | None:
        """Return vLLM's limit for `most` generated tokens of thinking; None for no limit.

        vLLM counts from the last opening marker, also what the template has written behind it. A marker that
        only a message contains would be taken for the beginning of the thinking, so then there is no limit.
        """
        opening, closing = self.opening.id, self.closing.id
        if most is None or opening is None or closing is None:
            return None
        places = (i for i in range(len(prompt_ids) - 1, -1, -1) if prompt_ids[i] in (opening, closing))
        last = next(places, None)
        is_open = last is not None and prompt_ids[last] == opening
        if is_open != self.inside:
            return None
        return most + (len(prompt_ids) - 1 - last if last is not None and is_open else 0)

    def grammar(self, answer: str) -> str:
        """Return the grammar of an answer that obeys the rules `answer` once the thinking has ended."""
        closing, close = re.escape(self.closing.text).replace("/", r"\/"), self.closing.id
        rules = [_WRITTEN.format(closing)]
        thinking = "WRITTEN"
        if close is not None:
            rules.append(_UNWRITTEN.format(closing))
            thinking = f"(WRITTEN | UNWRITTEN <[{close}]>)"
        if not self.inside:
            text, id = orjson.dumps(self.opening.text).decode(), self.opening.id
            opening = text if id is None else f"({text} | <[{id}]>)"
            thinking = f"{opening} {thinking}"
        begun = f"{thinking} {_LINES}" if self.inside else f"({thinking} {_LINES})?"
        return "\n".join([f"start: {begun} answer", *rules, answer])


def json_rules(schema: str, name: str = "answer") -> str:
    """Return the grammar's rule of this name for what obeys a JSON Schema, which is JSON text."""
    strict = orjson.loads(schema) | {"x-guidance": {"whitespace_flexible": False}}
    return f"{name}: %json {orjson.dumps(strict).decode()}"


def find(
    source: str,
    variables: Collection[str],
    marker: Callable[[str], Marker],
    end: Callable[[Mapping[str, Any]], str],
    reads: Callable[[str, str], bool],
) -> Thinking | None:
    """Return what a chat template knows of thinking, or None if its model does not think.

    marker: describes a marker. end: renders the beginning of an answer with these variables. reads: tells
    whether the template writes an earlier message's thinking that has this name and this text.
    """
    known = [pair for pair in MARKERS if any(text in source for text in pair)]
    if not known:
        return None
    opening, closing = next((pair for pair in known if end({}).endswith(pair)), known[0])

    switches = (name for name in _SWITCHES if name in variables and end({name: True}) != end({name: False}))
    mark = f"t{secrets.token_hex(16)}"
    return Thinking(
        marker(opening),
        marker(closing),
        next(switches, None),
        next((key for key in _KEYS if reads(key, mark)), None),
    )


def begins(thinking: Thinking, end: str, continued: str) -> Thinks | None:
    """Return how the answer to a prompt thinks, or None if the thinking is over.

    end: of the prompt. continued: the text that the answer continues, if it does.
    """
    opening, closing = thinking.opening, thinking.closing
    if continued.strip():
        thought = continued.rpartition(opening.text)
        inside = bool(thought[1]) and closing.text not in thought[2]
        return Thinks(opening, closing, inside=True) if inside else None
    end = end.rstrip()
    if end.endswith(closing.text):
        return None
    return Thinks(opening, closing, inside=end.endswith(opening.text))
