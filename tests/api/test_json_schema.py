"""Schemas of clients: what is refused, where and why, and how the rest is passed on."""

import contextlib
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
        ({"type": "array", "uniqueItems": True}, "'uniqueItems' cannot be enforced"),
        ({"type": "object", "properties": {"x": {"not": {}}}}, "'not' cannot .*at #/properties/x/not"),
        ({"if": {}, "then": {}}, "'if' cannot"),
        ({"contains": {}}, "'contains' cannot"),
        ({"dependentRequired": {"a": ["b"]}}, "'dependentRequired' cannot"),
        ({"propertyNames": {"minLength": 3}}, "'propertyNames' cannot"),
        ({"oneOf": [{"type": "number"}, {"type": "integer"}]}, "'oneOf' whose members do not differ"),
        ({"oneOf": [{"const": 1}, {"enum": [2, 1]}]}, "'oneOf' whose members do not differ"),
        ({"oneOf": [{}, {"type": "null"}]}, "'oneOf' whose members do not differ"),
        ({"oneOf": [{"type": "null"}], "anyOf": [{}]}, "'oneOf' together with 'anyOf'"),
        ({"type": "string", "pattern": "^(?!a)"}, "a pattern that looks around"),
        ({"type": "string", "pattern": "(a)\\1", "format": "color"}, "a pattern that looks around or back"),
        ({"$ref": "https://example.com/x"}, "a reference must be"),
        ({"$ref": "#x"}, "a reference must be"),
        ({"$ref": "#/$defs/x"}, "there is no '#/\\$defs/x'"),
        ({"$ref": 3}, "a reference must be"),
        ({"type": "strin"}, "'type' must be of"),
        ({"type": []}, "'type' must be of"),
        ({"type": [["string"]]}, "'type' must be of"),
        ({"type": "object", "required": [["x"]]}, "a list of names"),
        ({"type": "object", "properties": {"x": 3}}, "a schema must be an object"),
        ({"type": "object", "properties": []}, "must be an object of schemas"),
        ({"anyOf": []}, "must be a list that is not empty"),
        ({"enum": []}, "must be a list that is not empty"),
        ({"type": "string", "pattern": "a" * 1025}, "at most 1024 characters"),
        ({"type": "string", "pattern": 3}, "a pattern is a string"),
        ({"enum": list(range(1025))}, "more than 1024 values"),
        ({"type": "object", "properties": {str(i): {} for i in range(513)}}, "more than 512 properties"),
        ({"anyOf": [{}] * 2048}, "more than 2048 schemas"),
        ({"description": "x" * 40_000}, "more than 32768 bytes"),
        (nested(24), "deeper than 24"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_what_cannot_be_enforced_is_refused_with_the_place(schema: dict[str, Any], message: str) -> None:
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
        {"type": "string", "pattern": "^[A-Z]{2}-\\d+(?:\\.[^,]|x)$", "maxLength": 9},
        {"anyOf": [{"enum": [1, None, "a"]}, {"const": {"a": [1]}}]},
        {"allOf": [{"minimum": 3}, {"multipleOf": 5}]},
    ],
    ids=lambda schema: ascii(schema)[:40],
)
def test_what_can_be_enforced_is_passed_on_as_it_is(schema: dict[str, Any]) -> None:
    assert enforceable(schema, "response_format") == (schema, True)


def test_annotations_and_unknown_keywords_are_dropped() -> None:
    schema = {
        "$schema": "s",
        "$id": "https://example.org/x",
        "title": "t",
        "x-guidance": {"lenient": True},
        "discriminator": {"propertyName": "kind"},
        "type": "string",
        "format": "color",
        "uniqueItems": False,
    }
    assert enforceable(schema, "tools") == ({"type": "string"}, True)


def test_a_format_beside_a_pattern_is_never_a_reason_to_refuse() -> None:
    both = {"type": "string", "format": "uuid", "pattern": "^[0-9a-f-]{36}$"}
    assert enforceable(both, "tools").schema == {"type": "string", "pattern": "^[0-9a-f-]{36}$"}
    both = {"type": "string", "format": "email", "pattern": "^(?!\\.)"}
    assert enforceable(both, "tools").schema == {"type": "string", "format": "email"}


def test_references_are_followed_once_and_counted_from_the_root() -> None:
    schema = {
        "type": "object",
        "properties": {
            "a": {"$ref": "#/components/A"},
            "b": {"$ref": "#/%63omponents/A"},
            "me": {"$ref": "#"},
        },
        "components": {"A": {"type": "null", "default": None}},
    }
    own = {
        "type": "object",
        "properties": {name: {"$ref": f"#/$defs/f/$defs/{n}"} for name, n in (("a", 0), ("b", 0), ("me", 1))},
        "additionalProperties": False,
    }
    found = enforceable(schema, "tools", "#/$defs/f").schema
    assert found == {**own, "$defs": {"0": {"type": "null"}, "1": own}}


def test_parts_of_one_object_are_not_closed_each_for_itself() -> None:
    parts: dict[str, Any] = {"allOf": [{"properties": {"a": {}}}, {"properties": {"b": {}}}]}
    assert enforceable(parts, "tools").schema == {
        "allOf": [
            {"properties": {"a": {}}, "type": "object"},
            {"properties": {"b": {}}, "type": "object"},
        ]
    }


def test_no_schema_holds_the_event_loop() -> None:
    """CPU time, so that a busy machine fails nothing; what is checked before the trial must be linear."""

    def too_long(number: int, frame: FrameType | None) -> None:
        pytest.fail("the check of a schema takes more than 5 s")

    patterns = [
        part * (1000 // len(part)) + end
        for part in ("[^a]", "(?:", "\\.", "^", "a?", "(?<", "(", "\\d+|")
        for end in ('"', "[", "\\", "$$")
    ]
    constants = [{"properties": {"k": {"const": n}, "l": {"const": n}}} for n in range(400)]
    ring = {str(n): {"$ref": f"#/$defs/{(n + 1) % 500}"} for n in range(500)}
    chain = {"$defs": ring, "$ref": "#/$defs/0"}
    looped = {"$defs": ring, "oneOf": [{"$ref": "#/$defs/0"}] * 400}
    schemas: list[dict[str, Any]] = [{"type": "string", "pattern": pattern} for pattern in patterns]
    schemas += [{"oneOf": constants}, {"oneOf": [*constants, constants[0]]}, chain, looped]
    handler = signal.signal(signal.SIGVTALRM, too_long)
    signal.setitimer(signal.ITIMER_VIRTUAL, 5)
    try:
        for schema in schemas:
            with contextlib.suppress(InvalidRequest):
                enforceable(schema, "tools")
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, handler)


def test_any_schema_of_a_function_that_need_not_be_called_is_only_bounded() -> None:
    require_bounded({"oneOf": [{"x-unknown": {"multipleOf": 3}}]}, "tools")
    with pytest.raises(InvalidRequest, match="deeper"):
        require_bounded(json.loads('{"a":' * 900 + "1" + "}" * 900), "tools")
