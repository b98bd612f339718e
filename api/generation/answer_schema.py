"""The functions that an answer may call, and the one JSON Schema that it must obey."""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import orjson

from api.engine.json_schema import enforceable, require_bounded
from api.engine.messages import Tool
from api.errors import InvalidRequest

_FORMAT = "the.format"  # no function can have this name: theirs contain no point


class AnswerSchema(NamedTuple):
    """text: JSON. param: the field of the request that it comes from."""

    text: str
    param: str


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
        self, format: dict[str, Any] | None, format_param: str, arguments_key: str
    ) -> AnswerSchema | None:
        """Return the schema of the answer, or None if it may be any text.

        A required call is one call, whatever the format. If the answer may be a call or in the format, it is
        one of the two. arguments_key: the model's own name for a call's arguments.
        Raises: InvalidRequest if a schema cannot be enforced.
        """
        if self._required:
            return _dumped(self._calls(arguments_key), "tools")
        if format is None:
            return None
        if not self.tools:
            return _dumped(enforceable(format, format_param), format_param)
        either = self._calls(arguments_key)
        either["$defs"][_FORMAT] = enforceable(format, format_param, f"#/$defs/{_FORMAT}")
        either["anyOf"].append({"$ref": f"#/$defs/{_FORMAT}"})
        return _dumped(either, format_param)

    def _calls(self, arguments_key: str) -> dict[str, Any]:
        """Return the schema of one call of any function that may be called, as tool_calls.py reads it."""
        calls, definitions = [], {}
        for tool in self.tools:
            name = tool.name
            if name not in self.names:
                continue
            parameters = {"type": "object", **(tool.parameters or {})}
            definitions[name] = enforceable(parameters, "tools", f"#/$defs/{name}")
            properties = {"name": {"const": name}, arguments_key: {"$ref": f"#/$defs/{name}"}}
            required = list(properties)
            calls.append(
                {
                    "type": "object",
                    "properties": properties,
                    "required": required,
                    "additionalProperties": False,
                }
            )
        return {"anyOf": calls, "$defs": definitions}


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


def _dumped(schema: dict[str, Any], param: str) -> AnswerSchema:
    return AnswerSchema(orjson.dumps(schema).decode(), param)
