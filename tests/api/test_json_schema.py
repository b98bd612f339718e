"""Schemas of clients: what is refused, and why; the rest is what the grammar library enforces as written."""

import json
import signal
from types import FrameType
from typing import Any

import pytest

from api.engine.json_schema import enforceable, require_bounded
from api.errors import InvalidRequest


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "string"}
    for _ in range(levels):
        schema = {"type": "array", "items": schema}
    return schema


@pytest.mark.parametrize(
    ("schema", "message"),
    [
        ({"multipleOf": 3, "type": "integer"}, "'multipleOf' cannot be enforced"),
        ({"allOf": [{"type": "string"}]}, "'allOf' cannot"),
        ({"oneOf": [{"type": "string"}]}, "'oneOf' cannot"),
        ({"not": {}}, "'not' cannot"),
        ({"properties": {}}, "'properties' cannot"),
        (
            {"type": "string", "anyOf": [{"type": "string"}]},
            "'type' cannot be enforced together with 'anyOf'",
        ),
        ({"$ref": "#", "type": "object"}, "together with '\\$ref'"),
        ({"$ref": "https://example.com/x"}, "a reference must be"),
        ({"$ref": "#/properties/x"}, "a reference must be"),
        ({"$id": "x"}, "'\\$id' cannot"),
        ({"type": "strin"}, "'type' must be of"),
        ({"type": []}, "'type' must be of"),
        ({"type": [["string"]]}, "'type' must be of"),
        ({"type": "object", "required": ["x"]}, "names that are in 'properties'"),
        ({"type": "object", "properties": {"x": True}}, "a schema must be an object"),
        ({"type": "object", "properties": []}, "must be an object of schemas"),
        ({"type": "object", "properties": {"x": {"$defs": {}}}}, "'\\$defs' cannot"),
        ({"anyOf": []}, "must be a list of schemas"),
        ({"enum": []}, "values must be"),
        (
            {"const": {"type": "integer", "multipleOf": 3}},
            "values must be",
        ),  # vLLM would refuse it as a schema
        ({"enum": ["a", 1], "type": "string"}, "is not of type"),
        ({"const": True, "type": "integer"}, "is not of type"),
        ({"enum": ["a"], "type": {}}, "'type' must be of"),
        ({"type": "string", "format": "color"}, "'color' cannot"),
        ({"type": "string", "pattern": "a", "maxLength": 3}, "only one of"),
        ({"type": "string", "pattern": "a" * 257}, "a pattern has"),
        ({"type": "string", "pattern": '"'}, "a pattern has"),
        ({"type": "string", "pattern": "\\\\"}, "a pattern has"),
        ({"type": "string", "pattern": "\\W"}, "a pattern has"),
        ({"type": "string", "pattern": "^a$|^b$"}, "a pattern has"),
        ({"type": "string", "pattern": "(?=a)"}, "a pattern has"),
        ({"type": "string", "pattern": "\n"}, "a pattern has"),
        ({"type": "string", "pattern": "[^]"}, "a pattern has"),
        ({"type": "string", "pattern": 3}, "must be a string"),
        ({"enum": list(range(1025))}, "more than 1024 values"),
        ({"type": "object", "properties": {str(i): {} for i in range(513)}}, "more than 512 properties"),
        ({"description": "x" * 40_000}, "more than 32768 bytes"),
        (nested(24), "deeper than 24"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_cannot_be_enforced_is_refused_with_the_reason(schema: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidRequest, match=message) as refused:
        enforceable(schema, "response_format")
    assert refused.value.param == "response_format"
    assert len(refused.value.message) < 500


@pytest.mark.parametrize(
    "schema",
    [
        {},
        nested(20),
        {"type": ["string", "null"], "maxLength": 3},
        {"type": "array", "prefixItems": [{"type": "string"}], "items": False},
        {"type": "object", "additionalProperties": {"type": "integer", "minimum": 0}},
        {"type": "string", "pattern": "^[A-Z]{2}-\\d+(?:\\.[^,]|x)$"},
        {"anyOf": [{"enum": [1, None, "a"]}, {"const": True}]},
        {"type": "object", "properties": {"$ref": {"type": "string"}}, "required": ["$ref"]},
    ],
    ids=lambda schema: ascii(schema)[:40],
)
def test_what_can_be_enforced_is_passed_on_as_it_is(schema: dict[str, Any]) -> None:
    assert enforceable(schema, "response_format") == schema


def test_a_pattern_is_refused_without_going_back_over_it() -> None:
    """CPU time, so that a busy machine fails nothing; the check holds the event loop while it reads."""

    def too_long(number: int, frame: FrameType | None) -> None:
        pytest.fail("the check of a pattern of 255 characters takes more than 5 s")

    handler = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        for part in ("[^a]", "(?:", "\\.", "^", "a?", "[a-z]*", "(", "\\d+|"):
            for end in ('"', "[", "\\", "$$"):
                pattern = part * (250 // len(part)) + end
                with pytest.raises(InvalidRequest, match="a pattern has"):
                    enforceable({"type": "string", "pattern": pattern}, "tools")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def test_annotations_are_dropped_and_references_are_counted_from_the_root() -> None:
    schema = {
        "$schema": "s",
        "title": "t",
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/A", "description": "d"}, "self": {"$ref": "#"}},
        "$defs": {"A": {"type": "null", "default": None}},
    }
    assert enforceable(schema, "tools", "#/$defs/f") == {
        "type": "object",
        "properties": {"a": {"$ref": "#/$defs/f/$defs/A"}, "self": {"$ref": "#/$defs/f"}},
        "$defs": {"A": {"type": "null"}},
    }


def test_any_schema_of_a_function_that_need_not_be_called_is_only_bounded() -> None:
    require_bounded({"oneOf": [{"x-unknown": {"multipleOf": 3}}]}, "tools")
    with pytest.raises(InvalidRequest, match="deeper"):
        require_bounded(json.loads('{"a":' * 900 + "1" + "}" * 900), "tools")
