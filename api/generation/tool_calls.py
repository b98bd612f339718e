"""Find calls of functions in what a model writes, while it writes.

call_spelling.py knows how a call begins, call_arguments.py what its arguments are. Text that is no call of a
known function stays text. What follows the first call is dropped, except further calls: small models continue
with an invented result.
"""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from api.engine.template_form import Written
from api.engine.tool_prompt import HERMES
from api.generation.call_arguments import (
    Called,
    JsonObject,
    Malformed,
    first_mark,
    python_calls,
    read_python,
    read_tags,
)
from api.generation.call_spelling import Spelling, spellings

MAX_HEAD_CHARS = 512  # with the white space in it

Schemas = Mapping[str, Mapping[str, Any]]  # the parameters of functions, by their names


@dataclass(slots=True)
class Piece:
    """A piece of an answer's text, or of the call with this number. id and name: on a call's first piece."""

    text: str
    call: int | None = None
    id: str | None = None
    name: str | None = None


class CallParser:
    """Read one answer. calls: how many have begun.

    Text is held back only while it can be the head of a call; calls that are no JSON, until they are whole.
    """

    def __init__(self, tools: Schemas, written: Written = HERMES, parallel: bool = True) -> None:
        """tools: functions that may be called. written: how the model's template writes a call.

        parallel: more than one call may be made.
        """
        self.calls = 0
        self._tools = tools
        self._parallel = parallel
        self._spellings = spellings(written)
        self._openers = {each.opener for each in self._spellings if each.opener}
        self._state: Literal["head", "text", "arguments", "whole", "list", "done"] = "head"
        self._opener = ""  # behind which a head is looked for
        self._held = ""
        self._begun = ""  # the head of a call that is not whole
        self._spelling: Spelling | None = None
        self._name = ""
        self._listed = False
        self._json = JsonObject()

    def feed(self, text: str) -> list[Piece]:
        """Return the pieces that are certain once `text` has come."""
        self._held += text
        found: list[Piece] = []
        while self._step(found):
            pass
        return found

    def end(self) -> list[Piece]:
        """Return what is left at the end of the answer: a call that lacks its last mark, or text."""
        found: list[Piece] = []
        if self._state == "whole":
            self._end_whole(found)
        rest = self._opener * (self._state == "head") + self._held
        self._held = ""
        if rest and not self.calls:
            found.append(Piece(rest))
        return found

    def _step(self, found: list[Piece]) -> bool:
        """Read on in what is held; return whether there may be more to read in it."""
        match self._state:
            case "head":
                return self._head(found)
            case "text":
                return self._text(found)
            case "arguments":
                return self._arguments(found)
            case "whole":
                return self._whole(found)
            case "list":
                return self._list()
        self._held = ""
        return False

    def _head(self, found: list[Piece]) -> bool:
        held = self._held[:MAX_HEAD_CHARS]
        matches = [
            (match, spelling)
            for spelling in self._spellings
            if spelling.opener == self._opener
            and (match := spelling.head.match(held, partial=True))
            and (match.partial or match["name"] in self._tools)
        ]
        if begun := next((pair for pair in matches if not pair[0].partial), None):
            self._begin(*begun, found)
            return True
        if matches and len(self._held) < MAX_HEAD_CHARS:
            return False
        if self._listed:
            self._held, self._state = self._held[1:], "list"
            return True
        self._pass_on(self._opener, found)
        self._state, self._opener = "text", ""
        return True

    def _begin(self, match: Any, spelling: Spelling, found: list[Piece]) -> None:
        self._spelling, self._name = spelling, match["name"]
        if spelling.written.style == "json":
            self._held = self._held[match.end() :]
            self._listed = self._listed or match[0].lstrip().startswith("[")
            self._json, self._state = JsonObject(), "arguments"
            found.append(self._first_piece(self._name))
            return
        # Python's calls are read as a list, from the bracket before the name.
        start = match.start("name") - 1 if spelling.written.style == "python" else match.end()
        self._begun, self._held = self._opener + self._held[:start], self._held[start:]
        self._state = "whole"

    def _text(self, found: list[Piece]) -> bool:
        places = [(place, mark) for mark in self._openers if (place := self._held.find(mark)) >= 0]
        if places:
            place, self._opener = min(places, key=lambda pair: (pair[0], -len(pair[1])))
            before, self._held = self._held[:place], self._held[place + len(self._opener) :]
            self._state = "head"
            self._pass_on(before, found)
            return True
        kept = max((_begun_mark(self._held, mark) for mark in self._openers), default=0)
        before, self._held = self._held[: len(self._held) - kept], self._held[len(self._held) - kept :]
        self._pass_on(before, found)
        return False

    def _arguments(self, found: list[Piece]) -> bool:
        end = self._json.end(self._held)
        if self._held[:end]:
            found.append(Piece(self._held[:end], self.calls - 1))
        self._held = self._held[end:]
        if self._json.depth:
            return False
        self._after_call()
        return True

    def _whole(self, found: list[Piece]) -> bool:
        try:
            called = self._read()
        except Malformed:
            self._fall_back(found)
            return True
        if called is None:
            return False
        calls, self._held = called
        found += self._pieces(calls)
        return True

    def _read(self) -> tuple[list[Called], str] | None:
        """Return the calls that are held, and what follows; None if they are not whole. Raises: Malformed."""
        assert self._spelling is not None
        written = self._spelling.written
        if written.style == "python":
            return read_python(self._held, written, list(self._tools))
        read = read_tags(self._held, written, self._name, self._tools[self._name])
        return ([read[0]], read[1]) if read else None

    def _end_whole(self, found: list[Piece]) -> None:
        """Read what is held as if its last mark had come: it may be the token that ended the answer."""
        assert self._spelling is not None
        written = self._spelling.written
        try:
            if written.style == "python":
                calls = python_calls(self._held, list(self._tools))
            else:
                whole = self._held + first_mark(written.tail)
                read = read_tags(whole, written, self._name, self._tools[self._name])
                calls = [read[0]] if read else []
        except Malformed:
            calls = []
        if calls:
            found += self._pieces(calls)
            self._held = ""
        else:
            self._fall_back(found)

    def _pieces(self, calls: list[Called]) -> Iterator[Piece]:
        for call in calls if self._parallel else calls[: 1 - self.calls]:
            yield self._first_piece(call.name)
            yield Piece(call.arguments, self.calls - 1)
        self._after_call()

    def _first_piece(self, name: str) -> Piece:
        self.calls += 1
        return Piece("", self.calls - 1, f"call_{secrets.token_hex(12)}", name)

    def _after_call(self) -> None:
        more = self._parallel and (self._listed or bool(self._opener))
        self._state = ("list" if self._listed else "text") if more else "done"

    def _list(self) -> bool:
        """Look for another call in a list of JSON objects, or for its end."""
        for place, character in enumerate(self._held):
            if character == "{":
                self._held, self._state = self._held[place:], "head"
                return True
            if character == "]":
                self._held, self._state, self._listed = self._held[place + 1 :], "text", False
                return True
        self._held = ""
        return False

    def _fall_back(self, found: list[Piece]) -> None:
        self._pass_on(self._begun, found)
        self._state, self._begun = "text", ""

    def _pass_on(self, text: str, found: list[Piece]) -> None:
        if text and not self.calls:
            found.append(Piece(text))


def _begun_mark(text: str, mark: str) -> int:
    """Return how many characters at the end of a text may begin a mark."""
    return next((n for n in range(len(mark) - 1, 0, -1) if text.endswith(mark[:n])), 0)
