"""Interpret the part of Go's text/template that Modelfiles use. What is not known here is an error.

Known: text, trim markers, if / else if / else / end, range over a list (with $i, $m := too), declaring and
setting variables, fields, $, texts, whole numbers, parentheses, and eq, ne, and, or, not, len, slice.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

_ACTION = re.compile(r"\{\{(-\s)?\s*(.*?)\s*(\s-)?\}\}", re.DOTALL)
_TOKEN = re.compile(r'\s*("(?:[^"\\]|\\.)*"|\$\w*(?:\.\w+)*|(?:\.\w+)+|-?\d+|\w+|:=|=|[(),])')
_FUNCTIONS: dict[str, Callable[..., Any]] = {
    "eq": lambda a, *others: any(a == other for other in others), "ne": lambda a, b: a != b,
    "not": lambda a: not a, "len": len, "slice": lambda a, begin: a[begin:],
}  # fmt: skip


class GoError(Exception):
    """The template is not one that this interpreter knows."""


@dataclass
class _Block:
    """A part of a template: text, or an action with the parts inside of it and after its else."""

    text: str = ""
    action: str = ""
    inside: list["_Block"] = field(default_factory=list)
    otherwise: list["_Block"] = field(default_factory=list)


def render(template: str, values: dict[str, Any]) -> str:
    """Return what the template writes. Raises: GoError."""
    parts = _split(template)
    blocks, end = _parse(parts)
    if end != "":
        raise GoError(f"{end!r} without a beginning")
    scope: list[dict[str, Any]] = [{"$": values}]
    return "".join(_run(blocks, values, scope))


def ollama_values(messages: list[dict[str, str]]) -> dict[str, Any]:
    """Return what Ollama gives a template: messages of one role in a row are one; system also apart."""
    together: list[dict[str, str]] = []
    for message in messages:
        if together and together[-1]["Role"] == message["role"]:
            together[-1]["Content"] += "\n\n" + message["content"]
        else:
            together.append({"Role": message["role"], "Content": message["content"]})
    system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
    return {"System": system, "Messages": together, "Prompt": "", "Response": "", "Tools": None}


def _split(template: str) -> Iterator[tuple[str, str]]:
    """Yield texts and actions in turn."""
    place, trim = 0, False
    for found in _ACTION.finditer(template):
        text = template[place : found.start()]
        text = text.lstrip() if trim else text
        yield "text", text.rstrip() if found[1] else text
        yield "action", found[2]
        place, trim = found.end(), bool(found[3])
    rest = template[place:]
    if "{{" in rest or "}}" in rest:
        raise GoError(f"an action does not end: {rest[:40]!r}")
    yield "text", rest.lstrip() if trim else rest


def _parse(parts: Iterator[tuple[str, str]]) -> tuple[list[_Block], str]:
    """Return the blocks up to an `end` or `else`, and that; an empty text at the end of the template."""
    blocks: list[_Block] = []
    for kind, content in parts:
        if kind == "text":
            blocks.append(_Block(text=content))
            continue
        word = content.split(" ", 1)[0]
        if word in ("end", "else"):
            return blocks, content
        block = _Block(action=content)
        blocks.append(block)
        if word in ("if", "range"):
            block.inside, end = _parse(parts)
            if end.startswith("else if "):
                nested = _Block(action=end.removeprefix("else "))
                nested.inside, end = _parse(parts)
                block.otherwise = [nested]
                if end == "else":
                    nested.otherwise, end = _parse(parts)
            elif end == "else":
                block.otherwise, end = _parse(parts)
            if end != "end":
                raise GoError(f"{content!r} ends with {end!r}")
    return blocks, ""


def _run(blocks: list[_Block], dot: Any, scope: list[dict[str, Any]]) -> Iterator[str]:
    for block in blocks:
        word, _, rest = block.action.partition(" ")
        if not block.action:
            yield block.text
        elif word == "if":
            yield from _run(block.inside if _value(rest, dot, scope) else block.otherwise, dot, [*scope, {}])
        elif word == "range":
            names = re.fullmatch(r"(\$\w+), (\$\w+) := (.*)", rest)
            items = _value(names[3] if names else rest, dot, scope)
            for number, item in enumerate(items):
                own = {names[1]: number, names[2]: item} if names else {}
                yield from _run(block.inside, item, [*scope, own])
            if not items:
                yield from _run(block.otherwise, dot, [*scope, {}])
        elif setting := re.fullmatch(r"(\$\w+) (:?=) (.*)", block.action):
            value = _value(setting[3], dot, scope)
            if setting[2] == ":=":
                scope[-1][setting[1]] = value
            else:
                holder = next((s for s in reversed(scope) if setting[1] in s), None)
                if holder is None:
                    raise GoError(f"{setting[1]} was not declared")
                holder[setting[1]] = value
        else:
            value = _value(block.action, dot, scope)
            if not isinstance(value, str):
                raise GoError(f"{block.action!r} writes {value!r}, which is no text")
            yield value


def _value(text: str, dot: Any, scope: list[dict[str, Any]]) -> Any:
    tokens = _TOKEN.findall(text)
    if "".join(tokens) != re.sub(r'\s+(?=(?:[^"]*"[^"]*")*[^"]*$)', "", text):
        raise GoError(f"unknown words in {text!r}")
    value, rest = _call(tokens, dot, scope)
    if rest:
        raise GoError(f"{rest} is left of {text!r}")
    return value


def _call(tokens: list[str], dot: Any, scope: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    name, operands, rest = tokens[0], [], tokens
    if is_function := name in _FUNCTIONS or name in ("and", "or"):
        rest = tokens[1:]
    while rest and rest[0] != ")":
        operand, rest = _operand(rest, dot, scope)
        operands.append(operand)
    if not is_function:
        if len(operands) != 1:
            raise GoError(f"{name} is no function")
        return operands[0], rest
    if name in ("and", "or"):  # the first that decides, or the last
        return next((o for o in operands[:-1] if bool(o) == (name == "or")), operands[-1]), rest
    return _FUNCTIONS[name](*operands), rest


def _operand(tokens: list[str], dot: Any, scope: list[dict[str, Any]]) -> tuple[Any, list[str]]:
    token, rest = tokens[0], tokens[1:]
    if token == "(":
        value, rest = _call(rest, dot, scope)
        if rest[:1] != [")"]:
            raise GoError("a parenthesis does not close")
        return value, rest[1:]
    if token.startswith('"'):
        return json.loads(token), rest
    if token.lstrip("-").isdigit():
        return int(token), rest
    if not token.startswith((".", "$")):
        raise GoError(f"unknown word {token!r}")
    name, *fields = token.split(".")
    value = dot
    if name:
        value = next((s[name] for s in reversed(scope) if name in s), None)
        if value is None:
            raise GoError(f"{name} was not declared")
    for key in filter(None, fields):
        if key not in value:
            raise GoError(f"there is no {key} in {sorted(value)}")
        value = value[key]
    return value, rest
