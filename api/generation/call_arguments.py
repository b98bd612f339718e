"""Read the arguments of a call: a JSON object as it comes, or whole calls in tags or in Python's notation.

Text in tags has no types. It is read by the type that the function's schema states: as it is for a string,
as JSON otherwise.
"""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import regex

from api.engine.template_form import Written

_NAMED = {"true": True, "false": False, "null": None}  # JSON's names within Python's notation


class Called(NamedTuple):
    """A call with its arguments as JSON text."""

    name: str
    arguments: str


class Malformed(Exception):
    """The text looked like a call and is not one."""


@dataclass(slots=True)
class JsonObject:
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


def read_tags(text: str, written: Written, name: str, schema: Mapping[str, Any]) -> tuple[Called, str] | None:
    """Return the call whose arguments `text` begins with, and what follows; None if it is not whole yet.

    schema: of the function's parameters. Raises: Malformed.
    """
    key, value, after = written.key.strip(), written.value.strip(), written.after.strip()
    closing = first_mark(written.tail)
    arguments: dict[str, Any] = {}
    rest = text.lstrip()
    while not rest.startswith(closing):
        if not rest.startswith(key):
            if key.startswith(rest) or closing.startswith(rest):
                return None
            raise Malformed
        named, found, rest = rest[len(key) :].partition(value)
        if not found:
            return None
        said, found, rest = rest.partition(after)
        if not found:
            return None
        # The template's own line breaks around a value are no part of it.
        said = said.removeprefix("\n") if "\n" in written.value else said
        said = said.removesuffix("\n") if written.after.startswith("\n") else said
        arguments[named.strip()] = _typed(said, _property(schema, named.strip()))
        rest = rest.lstrip()
    try:
        return Called(name, _json(arguments)), rest[len(closing) :]
    except ValueError:  # a number that JSON has not
        raise Malformed from None


def read_python(text: str, written: Written, names: Sequence[str]) -> tuple[list[Called], str] | None:
    """Return the calls of a list that `text` holds, and what follows; None if it is not whole yet.

    Raises: Malformed.
    """
    closing = first_mark(written.tail)
    listed, found, rest = text.partition(closing) if closing else (text, "", "")
    if not found:
        return None
    return python_calls(listed, names), rest


def python_calls(text: str, names: Sequence[str]) -> list[Called]:
    """Return the calls of known functions in a list of Python's. Raises: Malformed."""
    try:
        tree = ast.parse(text.strip(), mode="eval").body
        calls = tree.elts if isinstance(tree, ast.List) else []
        found = [_python_call(call) for call in calls]
    except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError):
        raise Malformed from None
    if not found or any(call.name not in names for call in found):
        raise Malformed
    return found


def first_mark(text: str) -> str:
    """Return the first mark <...> of a text, or all of it without the white space around it."""
    mark = regex.search(r"<[^<>\s]+>", text)
    return str(mark[0]) if mark else text.strip()


def _python_call(node: ast.expr) -> Called:
    if not isinstance(node, ast.Call) or node.args or not isinstance(node.func, ast.Name | ast.Attribute):
        raise ValueError
    arguments = {keyword.arg: _literal(keyword.value) for keyword in node.keywords}
    if None in arguments:
        raise ValueError
    return Called(ast.unparse(node.func), _json(arguments))


def _literal(node: ast.expr) -> Any:
    """Return the value of a literal. Raises: ValueError if it is none."""
    if isinstance(node, ast.Name) and node.id in _NAMED:
        return _NAMED[node.id]
    if isinstance(node, ast.List | ast.Tuple):
        return [_literal(item) for item in node.elts]
    if isinstance(node, ast.Dict):
        keys = [_literal(key) if key else None for key in node.keys]
        return {str(key): _literal(item) for key, item in zip(keys, node.values, strict=True)}
    value = ast.literal_eval(node)
    json.dumps(value)  # refuses what JSON has not, by a TypeError
    return value


def _property(schema: Mapping[str, Any], name: str) -> Any:
    properties = schema.get("properties")
    return properties.get(name) if isinstance(properties, Mapping) else None


def _typed(text: str, schema: Any) -> Any:
    """Return a text by its schema: as it is if it may be a string, or if it is no JSON."""
    types = schema.get("type") if isinstance(schema, Mapping) else None
    types = [types] if isinstance(types, str) else types if isinstance(types, list) else []
    options = schema.get("enum") if isinstance(schema, Mapping) else None
    if isinstance(options, list) and text in options:
        return text
    if "string" in types and not ("null" in types and text.strip() == "null"):
        return text
    try:
        value = json.loads({"True": "true", "False": "false", "None": "null"}.get(text.strip(), text))
    except (ValueError, RecursionError):
        return text
    return value if types or isinstance(value, dict | list) else text


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
