"""The functions that an answer may call, and the one JSON Schema that it must obey.

A schema that is not strict is enforced as far as the grammar library can, and the answer is checked against
all of it once it is complete.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import orjson

from api.engine.json_schema import enforceable, require_bounded
from api.engine.messages import Tool
from api.errors import InvalidRequest

_FORMAT = "the.format"  # no function can have this name: theirs contain no point


class AnswerSchema(NamedTuple):
    """The schema that the grammar library enforces, as JSON. param: the field that it comes from.

    check: the client's own, as JSON, if `text` says less; otherwise "".
    """

    text: str
    param: str
    check: str = ""


class Format(NamedTuple):
    """A JSON Schema for the text of an answer. strict: what cannot be enforced is refused, not left out."""

    schema: dict[str, Any]
    strict: bool = True


class Offer:
    """The functions that an answer may call: none, any, or one that it has to call."""

    def __init__(
        self,
        tools: Sequence[Tool] = (),
        choice: Literal["none", "auto", "required"] | None = None,
        only: str | None = None,
        parallel: bool | None = None,
    ) -> None:
        """choice: None for auto. only: the function that must be called.

        Raises: InvalidRequest.
        """
        _require_sound(tools)
        names = {tool.name for tool in tools}
        if only is not None and only not in names:
            raise InvalidRequest(f"tool_choice: there is no function {only!r} in tools.", param="tool_choice")
        if choice == "required" and not names:
            raise InvalidRequest("tool_choice: there are no tools to choose from.", param="tool_choice")
        self.tools = () if choice == "none" and only is None else tuple(tools)
        self.names = [only] if only is not None else [tool.name for tool in self.tools]
        self.parallel = parallel is not False
        self._required = choice == "required" or only is not None

    def answer_schema(
        self, format: Format | None, format_param: str, arguments_key: str
    ) -> AnswerSchema | None:
        """Return the schema of the answer, or None if it may be any text.

        A required call is one call, whatever the format. If the answer may be a call or in the format, it is
        one of the two. arguments_key: the model's own name for a call's arguments.
        Raises: InvalidRequest if a strict schema cannot be enforced.
        """
        if self._required:
            either = _Either()
            self._add_calls(either, arguments_key)
            return either.answer_schema("tools")
        if format is None:
            return None
        if not self.tools:
            found = enforceable(format.schema, format_param, strict=format.strict)
            check = "" if found.whole else _json(format.schema)
            return AnswerSchema(_json(found.schema), format_param, check)
        either = _Either()
        self._add_calls(either, arguments_key)
        either.add(_FORMAT, format.schema, format.strict, format_param)
        return either.answer_schema(format_param)

    def _add_calls(self, either: "_Either", arguments_key: str) -> None:
        """Add one call of each function that may be called, as tool_calls.py reads it."""
        for tool in self.tools:
            if tool.name in self.names:
                parameters = {"type": "object", **(tool.parameters or {"properties": {}})}
                either.add(tool.name, parameters, tool.strict, "tools", arguments_key)


class _Either:
    """A schema of several, one of which an answer must obey: as it is enforced, and as it is checked."""

    def __init__(self) -> None:
        self._whole = True
        self._enforced: dict[str, Any] = {"anyOf": [], "$defs": {}}
        self._checked: dict[str, Any] = {"anyOf": [], "$defs": {}}

    def add(
        self, name: str, schema: dict[str, Any], strict: bool, param: str, arguments_key: str = ""
    ) -> None:
        """Add a schema of the answer, or with `arguments_key` of the arguments of a call of `name`."""
        place, id = f"#/$defs/{name}", f"urn:finechat:{name}"
        found = enforceable(schema, param, place, strict=strict)
        self._whole &= found.whole
        self._enforced["$defs"][name] = found.schema
        self._checked["$defs"][name] = {**schema, "$id": id}  # its references begin at itself
        for either, reference in ((self._enforced, place), (self._checked, id)):
            value = {"$ref": reference}
            either["anyOf"].append(_call(name, arguments_key, value) if arguments_key else value)

    def answer_schema(self, param: str) -> AnswerSchema:
        """Return the schema of the whole answer. param: the field that a refusal names."""
        return AnswerSchema(_json(self._enforced), param, "" if self._whole else _json(self._checked))


def _call(name: str, arguments_key: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, arguments_key: arguments},
        "required": ["name", arguments_key],
        "additionalProperties": False,
    }


def _require_sound(tools: Sequence[Tool]) -> None:
    names: set[str] = set()
    for tool in tools:
        if tool.name in names:
            raise InvalidRequest(f"tools: there are two functions {tool.name!r}.", param="tools")
        names.add(tool.name)
        parameters = tool.parameters or {}
        require_bounded(parameters, "tools")
        if parameters.get("type", "object") != "object":
            raise InvalidRequest(
                f"tools: the parameters of {tool.name!r} must be a schema of type 'object'.",
                param="tools",
            )


def _json(schema: dict[str, Any]) -> str:
    return orjson.dumps(schema).decode()
