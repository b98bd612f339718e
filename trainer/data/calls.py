"""Read functions and their calls from raw rows, in the spellings that data sets have.

Functions are OpenAI's `tools`, bare functions, or JSON text of either. Calls are `tool_calls`, the older
`function_call`, the JSON text of a ShareGPT turn, or an answer's text: in Hermes' tags, or nothing but JSON.
All become the form in which the API gives them to a chat template, so that training shows the model what
serving will show it.
"""

import ast
import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from trainer.data.shapes import RowError

COLUMNS = ("tools", "functions")
FIELDS = ("tool_calls", "function_call")
PASSED_ON = ("description", "parameters")  # of a function, next to its name; the API leaves out the others

OPEN = "<tool_call>"
_TAGGED = re.compile(r"<tool_call>\s*(.*?)\s*</tool_call>", re.DOTALL)
_RESULT = re.compile(r"\s*<tool_response>\s*(.*?)\s*</tool_response>\s*", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function. arguments: a JSON object, as text. id: joins it with its result; may be empty."""

    name: str
    arguments: str
    id: str = ""

    @property
    def text(self) -> str:
        return f"{self.name} {self.arguments}"


def read_tools(row: Mapping[str, Any]) -> tuple[tuple[str, ...], set[str]]:
    """Return a row's functions, each as JSON text in OpenAI's form, and the fields that are left out.

    Raises: RowError if they are not functions.
    """
    found: dict[str, str] = {}
    unread: set[str] = set()
    for item in [item for column in COLUMNS for item in _listed(row.get(column), "tools are not JSON")]:
        tool = _parsed(item, "tools are not JSON")
        function = tool.get("function", tool) if isinstance(tool, dict) else None
        name = function.get("name") if isinstance(function, dict) else None
        if not (isinstance(function, dict) and isinstance(name, str) and name):
            raise RowError("a tool is not a function with a name")
        if name in found:
            raise RowError("two tools have one name")
        described = {key: function[key] for key in PASSED_ON if function.get(key) is not None}
        unread |= {f"tools.{key}" for key in function if key not in ("name", "type", *PASSED_ON)}
        found[name] = _text({"type": "function", "function": {"name": name, **described}})
    return tuple(found.values()), unread


def tool_name(tool: str) -> str:
    """Return the name of a function of `read_tools`."""
    return str(json.loads(tool)["function"]["name"])


def read_calls(value: Any) -> tuple[Call, ...]:
    """Return the calls of one message: a call or a list of them, as objects or as JSON text.

    Raises: RowError if one has no name, or arguments that are no JSON object.
    """
    return tuple(map(_call, _listed(value, "a call is not JSON")))


def split_calls(text: str, names: Collection[str]) -> tuple[str, tuple[Call, ...]]:
    """Return an answer's text, and the calls of known functions that end it.

    They are in tags, or the whole text is the JSON of calls. Otherwise the text stays as it is.
    """
    before, tag, _ = text.partition(OPEN)
    written = _TAGGED.findall(text) if tag else [text]
    if tag and _TAGGED.sub("", text[len(before) :]).strip():
        return text, ()
    items = [item for part in written for item in _listed(_loaded(part), "")]
    named = all(
        isinstance(i, dict) and i.get("name") in names and ("arguments" in i or "parameters" in i)
        for i in items
    )
    try:
        found = tuple(map(_call, items)) if named else ()
    except RowError:
        found = ()
    return (before.rstrip() if tag else "", found) if found else (text, ())


def untagged(result: str) -> str:
    """Return a result without the tags that a template puts around it."""
    match = _RESULT.fullmatch(result) if "<tool_response>" in result else None
    return match[1] if match else result


def _loaded(text: str) -> Any:
    """Return what JSON, or Python's own notation, says; None if it is neither, or no object and no list."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        pass
    try:
        return ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def _call(item: Any) -> Call:
    call = _parsed(item, "a call is not JSON")
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not (isinstance(function, dict) and isinstance(name, str) and name):
        raise RowError("a call without the name of a function")
    given = function.get("arguments", function.get("parameters"))
    arguments = _parsed(given, "the arguments of a call are not JSON") if given not in (None, "") else {}
    if not isinstance(arguments, dict):
        raise RowError("the arguments of a call are not a JSON object")
    id = call.get("id")
    return Call(name, _text(arguments), id if isinstance(id, str) else "")


def _listed(value: Any, problem: str) -> list[Any]:
    value = _parsed(value, problem) if value not in (None, "") else []
    return value if isinstance(value, list) else [value]


def _parsed(value: Any, problem: str) -> Any:
    """Return what a JSON text holds, or the value itself if it is no text. Raises: RowError."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except (ValueError, RecursionError):
        raise RowError(problem) from None


def _text(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
