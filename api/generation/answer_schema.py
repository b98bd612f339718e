"""The functions that an answer may call, and what it must obey: a JSON Schema, or rules for a call.

A schema that is not strict is enforced as far as the grammar library can, and the answer is checked against
all of it once it is complete.
"""

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple

import orjson

from api.engine.json_schema import enforceable, require_bounded
from api.engine.messages import Tool
from api.engine.prompt import Prompt
from api.engine.thinking import json_rules
from api.errors import InvalidRequest
from api.generation.call_grammar import call_rules
from api.generation.tool_calls import CallParser

_FORMAT = "the.format"  # no function can have this name: theirs contain no point


class AnswerSchema(NamedTuple):
    """The schema that the grammar library enforces, as JSON. param: the field that it comes from.

    rules: of a grammar in place of the schema, if the answer may be a call. check: the client's own schema,
    as JSON, if `text` or `rules` say less; otherwise "". A call is `{"name": ..., "arguments": ...}` there.
    """

    text: str
    param: str
    check: str = ""
    rules: str = ""


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

    def parser(self, prompt: Prompt) -> CallParser | None:
        """Return a parser of an answer that may call functions; None if it may not."""
        if not self.tools:
            return None
        known = {tool.name: tool.parameters or {} for tool in self.tools if tool.name in self.names}
        return CallParser(known, prompt.written, self.parallel)

    def answer_schema(self, format: Format | None, format_param: str, prompt: Prompt) -> AnswerSchema | None:
        """Return what the answer must obey, or None if it may be any text.

        A required call is one call, whatever the format. If the answer may be a call or in the format, it is
        one of the two. prompt: knows how the model writes a call.
        Raises: InvalidRequest if a strict schema cannot be enforced.
        """
        if self._required:
            return self._calls(prompt).answer_schema("tools")
        if format is None:
            return None
        if not self.tools:
            found = enforceable(format.schema, format_param, strict=format.strict)
            check = "" if found.whole else _json(format.schema)
            return AnswerSchema(_json(found.schema), format_param, check)
        either = self._calls(prompt)
        either.add(_FORMAT, format.schema, format.strict, format_param)
        return either.answer_schema(format_param)

    def as_json(self, answer: str, prompt: Prompt) -> str:
        """Return an answer that is one call as JSON of its name and arguments; any other as it is."""
        parser = self.parser(prompt)
        if parser is None:
            return answer
        pieces = [*parser.feed(answer), *parser.end()]
        if parser.calls != 1 or any(piece.call is None for piece in pieces):
            return answer
        name, arguments = pieces[0].name, "".join(piece.text for piece in pieces)
        return f'{{"name":{orjson.dumps(name).decode()},"arguments":{arguments}}}'

    def _calls(self, prompt: Prompt) -> "_Either":
        """Return one call of each function that may be called."""
        either = _Either(prompt)
        for tool in self.tools:
            if tool.name in self.names:
                parameters = {"type": "object", **(tool.parameters or {"properties": {}})}
                either.add_call(tool.name, parameters, tool.strict)
        return either


class _Either:
    """The alternatives that an answer may take: the grammar to enforce and the schema to check."""

    def __init__(self, prompt: Prompt) -> None:
        self._prompt = prompt
        self._whole = True
        self._options: list[str] = []
        self._rules: list[str] = []
        self._checked: dict[str, Any] = {"anyOf": [], "$defs": {}}

    def add(self, name: str, schema: dict[str, Any], strict: bool, param: str) -> None:
        """Add a schema of the answer."""
        found = enforceable(schema, param, strict=strict)
        self._whole &= found.whole
        self._options.append("format")
        self._rules.append(json_rules(_json(found.schema), "format"))
        self._checked["anyOf"].append({"$ref": self._defined(name, schema)})

    def add_call(self, name: str, schema: dict[str, Any], strict: bool) -> None:
        """Add a call with arguments that obey a schema."""
        found = enforceable(schema, "tools", strict=strict)
        self._whole &= found.whole
        rule = f"call_{len(self._options)}"
        self._options.append(rule)
        written, literal = self._prompt.written, self._prompt.grammar_text
        self._rules += call_rules(rule, name, found.schema, written, literal)
        self._checked["anyOf"].append(_call(name, {"$ref": self._defined(name, schema)}))

    def answer_schema(self, param: str) -> AnswerSchema:
        """Return what the whole answer must obey. param: the field that a refusal names."""
        rules = "\n".join([f"answer: {' | '.join(self._options)}", *self._rules])
        return AnswerSchema("", param, "" if self._whole else _json(self._checked), rules)

    def _defined(self, name: str, schema: dict[str, Any]) -> str:
        """Define a schema of the check, whose references begin at itself, and return its name."""
        self._checked["$defs"][name] = {**schema, "$id": f"urn:finechat:{name}"}
        return f"urn:finechat:{name}"


def _call(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": {"name": {"const": name}, "arguments": arguments},
        "required": ["name", "arguments"],
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
