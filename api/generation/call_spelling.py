"""Recognise the head of a call: what a model writes up to the arguments, in one of several spellings.

Read are the spelling of the model's own template, and for any template Llama 3's and Hermes':
    {"name": "f", "parameters": {...}}
    <tool_call>{"name": "f", "arguments": {...}}</tool_call>
White space between the parts is free. Whether a text can still become a head is asked at every token, hence
`regex`, whose patterns can match a beginning.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import regex

from api.engine.template_form import Written
from api.engine.tool_prompt import HERMES

_MARK = r"<[^<>\s]+>|\[[A-Z_]+\]"
_FIRST_MARK = regex.compile(rf"\s*(?P<mark>{_MARK})")
_LAST_MARK = regex.compile(rf"(?P<mark>{_MARK}|\S+)\s*$")
_OBJECT = regex.compile(r'\s*\[?\s*\{[^{}<>]*(?:\{[^{}<>]*)?"$')  # a call as a JSON object, up to its name
_NAME = r"(?P<name>[\w.-]{1,128})"
_BARE = Written("json", '{"name": "', '", "parameters": ', "}", '{"name": "')


@dataclass(frozen=True, slots=True)
class Spelling:
    """opener: the mark before a call; "" if an answer begins with it. head: what follows, with the `name`.

    The match of `head` ends before the arguments.
    """

    opener: str
    head: Any
    written: Written


@lru_cache(maxsize=8)
def spellings(written: Written) -> tuple[Spelling, ...]:
    """Return how calls may be spelled. written: how the model's template writes them."""
    found = {
        (spelling.opener, spelling.head.pattern): spelling
        for form in (written, HERMES, _BARE)
        for spelling in _spellings(form)
    }
    return tuple(found.values())


def _spellings(written: Written) -> Iterator[Spelling]:
    for text in dict.fromkeys((written.begin, written.again)):
        start = _OBJECT.search(text) if written.style == "json" else None
        if start:
            lead = _LAST_MARK.search(text[: start.start()])
            if lead is None and text is not written.begin:
                continue  # a further call in a list
            yield Spelling(lead["mark"] if lead else "", _object(bool(lead) or "[" in start[0]), written)
        elif mark := _FIRST_MARK.match(text):
            between = _spaced(text[mark.end() :]) + _NAME + _spaced(written.middle)
            arguments = (
                r"(?=\{)" if written.style == "json" else "" if written.middle.strip() else r"(?=[\s<])"
            )
            yield Spelling(mark["mark"], regex.compile(rf"\s*{between}\s*{arguments}"), written)


def _object(may_be_listed: bool) -> Any:
    """Return the pattern of a call that is a JSON object, up to its arguments."""
    return regex.compile(
        (r"\s*(?:\[\s*)?" if may_be_listed else r"\s*")
        + r'\{\s*(?:"(?:type|id|tool_call_id)"\s*:\s*"[^"\\]*"\s*,\s*)*(?:"function"\s*:\s*\{\s*)?'
        + rf'"(?:name|tool_name)"\s*:\s*"{_NAME}"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{{)'
    )


def _spaced(text: str) -> str:
    """Return the pattern of a text with any white space where it has some."""
    parts = regex.split(r"\s+", text)
    return r"\s*".join(map(regex.escape, parts))
