"""Calls of functions in what a model writes, found while it writes.

Two spellings are read, whatever the template: Llama 3's, where the answer is the call, and Hermes' tags:
    {"name": "f", "parameters": {...}}
    <tool_call>{"name": "f", "arguments": {...}}</tool_call>
Text that is no call of a known function stays text. What follows the first call is dropped, except further
calls in tags: small models continue with an invented result.
"""

import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

OPEN = "<tool_call>"
MAX_HEAD_CHARS = 512  # with the white space in it


@dataclass(slots=True)
class Piece:
    """A piece of an answer's text, or of the call with this number. id and name: on a call's first piece."""

    text: str
    call: int | None = None
    id: str | None = None
    name: str | None = None


@dataclass(slots=True)
class CallParser:
    """Reads one answer. names: functions that may be called; parallel: more than one call may be made.

    Text is held back only while it can still be the head of a call: up to `{"name": "f", "arguments": {`.
    """

    names: Iterable[str]
    parallel: bool = True
    calls: int = 0
    _held: str = ""
    _state: str = "head"  # then text or arguments; after arguments: text, or done
    _in_tag: bool = False
    _json: "_Object" = field(default_factory=lambda: _Object())
    _heads: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._heads = {
            f'{{{kind}"name":"{name}","{key}":{{': name
            for name in self.names
            for key in ("arguments", "parameters")
            for kind in ("", '"type":"function",')
        }

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that are certain once `text` has come."""
        self._held += text
        found: list[Piece] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[Piece]:
        """Return what was held back and has become no call, at the end of the answer."""
        rest, self._held = self._held, ""
        if self._state == "head" and self._in_tag:
            rest = OPEN + rest
        return [Piece(rest)] if rest and not self.calls else []

    def _step(self, found: list[Piece]) -> bool:
        """Read on in what is held; return whether there may be more to read in it."""
        if self._state == "head":
            return self._head(found)
        if self._state == "text":
            return self._text(found)
        if self._state == "arguments":
            return self._arguments(found)
        self._held = ""
        return False

    def _head(self, found: list[Piece]) -> bool:
        squeezed = "".join(self._held[:MAX_HEAD_CHARS].split())
        for head, name in self._heads.items():
            if squeezed.startswith(head):
                self._held = "{" + _after(self._held, len(head))
                self._json = _Object()
                self._state = "arguments"
                found.append(Piece("", self.calls, f"call_{secrets.token_hex(12)}", name))
                self.calls += 1
                return True
        if len(self._held) < MAX_HEAD_CHARS and any(head.startswith(squeezed) for head in self._heads):
            return False
        if self._in_tag:
            self._in_tag = False
            self._pass_on(OPEN, found)
        self._state = "text"
        return True

    def _text(self, found: list[Piece]) -> bool:
        before, tag, after = self._held.partition(OPEN)
        if tag:
            self._held, self._state, self._in_tag = after, "head", True
            self._pass_on(before, found)
            return True
        kept = next((n for n in range(len(OPEN) - 1, 0, -1) if before.endswith(OPEN[:n])), 0)
        self._held = before[len(before) - kept :]
        self._pass_on(before[: len(before) - kept], found)
        return False

    def _arguments(self, found: list[Piece]) -> bool:
        end = self._json.end(self._held)
        if self._held[:end]:
            found.append(Piece(self._held[:end], self.calls - 1))
        self._held = self._held[end:]
        if self._json.depth:
            return False
        more = self._in_tag and self.parallel
        self._state, self._in_tag = "text" if more else "done", False
        return True

    def _pass_on(self, text: str, found: list[Piece]) -> None:
        if text and not self.calls:
            found.append(Piece(text))


@dataclass(slots=True)
class _Object:
    """How deep a text is inside a JSON object."""

    depth: int = 0
    _in_string: bool = False
    _escaped: bool = False

    def end(self, text: str) -> int:
        """Return where in `text` the object ends, or the length of `text`. Continues the text before."""
        for position, character in enumerate(text):
            if self._escaped:
                self._escaped = False
            elif self._in_string:
                self._escaped = character == "\\"
                self._in_string = character != '"'
            elif character == '"':
                self._in_string = True
            elif character in "{[":
                self.depth += 1
            elif character in "}]":
                self.depth -= 1
                if self.depth == 0:
                    return position + 1
        return len(text)


def _after(text: str, count: int) -> str:
    """Return the text after its first `count` characters that are not white space."""
    for position, character in enumerate(text):
        count -= not character.isspace()
        if count == 0:
            return text[position + 1 :]
    return ""
