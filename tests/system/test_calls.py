"""Formats, functions and /v1/responses through the official client, by the real engine."""

import json
from typing import Any

import jsonschema
import openai
import pytest
from openai.types.responses import ResponseFunctionToolCall

from tests.support.system import CERTAIN, Up, client, manifest_of

CITY = {
    "type": "object",
    "properties": {
        "city": {"type": "string", "maxLength": 12},
        "days": {"type": "integer", "minimum": 1, "maximum": 9},
        "unit": {"enum": ["C", "F"]},
        "place": {"anyOf": [{"$ref": "#/$defs/place"}, {"type": "null"}]},
    },
    "required": ["city", "days", "unit", "place"],
    "additionalProperties": False,
    "$defs": {
        "place": {"type": "object", "properties": {"zip": {"type": "string", "pattern": "^[0-9]{5}$"}}},
    },
}
WEATHER = {"name": "weather", "description": "The weather in a city.", "parameters": CITY}
TOOLS: Any = [
    {"type": "function", "function": WEATHER},
    {"type": "function", "function": {"name": "now"}},
]
BOMB = {"type": "array", "items": {"type": "integer"}, "maxItems": 10**8}


def question(up: Up, **fields: Any) -> Any:
    messages = [{"role": "user", "content": "What will the weather be in Paris?"}]
    return {"model": manifest_of(up.artifacts)["name"], "messages": messages, "temperature": 0} | fields


def schema_format(schema: Any) -> Any:
    return {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}


def test_an_answer_obeys_its_schema_streamed_or_not(first_up: Up) -> None:
    api, ask = client(first_up), question(first_up, response_format=schema_format(CITY))
    whole = api.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "stop"
    jsonschema.validate(json.loads(whole.message.content or ""), CITY)
    chunks = api.chat.completions.create(**ask, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in chunks) == whole.message.content
    for seed in range(3):
        answer = api.chat.completions.create(**{**ask, "temperature": 1.5}, seed=seed, n=2)
        for choice in answer.choices:
            jsonschema.validate(json.loads(choice.message.content or ""), CITY)
    loose = api.chat.completions.create(**question(first_up, response_format={"type": "json_object"}))
    assert isinstance(json.loads(loose.choices[0].message.content or ""), dict)


@pytest.mark.parametrize(
    "choice", ["required", {"type": "function", "function": {"name": "weather"}}, "either"]
)
def test_a_call_that_is_required_comes_and_is_valid(first_up: Up, choice: Any) -> None:
    """either: of the format or a call, so it is read from the text as in every answer with tools."""
    api = client(first_up)
    never = {"type": "object", "properties": {"no": {"enum": ["no"]}}, "required": ["no"]}
    fields = {"response_format": schema_format(never)} if choice == "either" else {"tool_choice": choice}
    ask = question(first_up, tools=TOOLS, **fields)
    whole = api.chat.completions.create(**ask).choices[0]
    assert whole.finish_reason == "tool_calls" and whole.message.content is None
    [call] = whole.message.tool_calls or []
    assert call.type == "function"
    if call.function.name == "weather":
        jsonschema.validate(json.loads(call.function.arguments), CITY)
    else:
        assert (call.function.name, call.function.arguments) == ("now", "{}")
    with api.chat.completions.stream(**ask) as stream:
        streamed = stream.get_final_completion().choices[0]
    [again] = streamed.message.tool_calls or []
    assert (again.function.name, again.function.arguments) == (call.function.name, call.function.arguments)
    result = {"role": "tool", "tool_call_id": call.id, "content": "11 C, rain"}
    conversation = [*ask["messages"], whole.message, result]
    asked, more = (
        api.chat.completions.create(**{**ask, "messages": messages, "tool_choice": "none"}, max_tokens=4)
        for messages in (ask["messages"], conversation)
    )
    assert asked.usage and more.usage
    assert more.usage.prompt_tokens > asked.usage.prompt_tokens + 20, "with the call and its result"


def test_a_union_and_a_format_beside_a_pattern_are_enforced(first_up: Up) -> None:
    """As pydantic writes a discriminated union, and zod 4 a UUID."""
    tags = [{"type": "object", "properties": {"kind": {"const": tag, "default": tag}}} for tag in "ab"]
    union = {
        "oneOf": [{"$ref": "#/$defs/a"}, {"$ref": "#/$defs/b"}],
        "discriminator": {"propertyName": "kind"},
    }
    uuid = {"type": "string", "format": "uuid", "pattern": "^[0-9a-f]{8}-[0-9a-f]{4}$"}
    properties = {"id": uuid, "pet": union}
    schema = {"type": "object", "properties": properties, "required": ["id", "pet"], "x-by": "a test"}
    schema["$defs"] = dict(zip("ab", tags, strict=True))
    ask = question(first_up, response_format=schema_format(schema))
    answer = json.loads(client(first_up).chat.completions.create(**ask).choices[0].message.content or "")
    assert answer["pet"] in ({"kind": "a"}, {"kind": "b"}) and len(answer["id"]) == 13


def test_what_no_grammar_enforces_is_checked_when_the_schema_is_not_strict(first_up: Up) -> None:
    same = {"type": "array", "items": {"const": 1}, "minItems": 2, "maxItems": 2, "uniqueItems": True}
    ask = question(first_up, response_format=schema_format(same))
    with pytest.raises(openai.BadRequestError, match="'uniqueItems' cannot be enforced"):
        client(first_up).chat.completions.create(**ask)
    ask["response_format"]["json_schema"]["strict"] = False
    [choice] = client(first_up).chat.completions.create(**ask).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", "[1,1]")
    assert "non-unique" in (choice.model_extra or {})["schema_error"]
    *_, last = client(first_up).chat.completions.create(**ask, stream=True)
    assert "non-unique" in (last.choices[0].model_extra or {})["schema_error"]


def test_a_schema_that_would_take_minutes_stops_no_stream(first_up: Up) -> None:
    api = client(first_up)
    ask = question(first_up, logit_bias={"2": -100}, max_tokens=1000)  # runs to its last token
    stream = iter(api.chat.completions.create(**ask, stream=True))
    next(stream)
    for schema in (BOMB, {"$ref": "#"}):
        with pytest.raises(openai.BadRequestError, match="cannot be enforced") as refused:
            api.chat.completions.create(**question(first_up, response_format=schema_format(schema)))
        assert refused.value.param == "response_format"
    next(stream)
    stream.close()
    good = api.chat.completions.create(**question(first_up, response_format=schema_format({"const": "x"})))
    assert good.choices[0].message.content == '"x"'


def test_responses_answer_stream_and_call(first_up: Up) -> None:
    api, model = client(first_up), manifest_of(first_up.artifacts)["name"]
    ask: Any = {"model": model, "input": CERTAIN, "temperature": 0, "max_output_tokens": 6}
    whole = api.responses.create(**ask, metadata={"run": "1"})
    assert whole.status == "incomplete" and whole.output_text and whole.metadata == {"run": "1"}
    with api.responses.stream(**ask) as stream:
        events = list(stream)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == whole.output_text
    asked = api.chat.completions.create(
        model=model, messages=[{"role": "user", "content": ask["input"]}], temperature=0, max_tokens=6
    )
    assert asked.choices[0].message.content == whole.output_text, "the same prompt as chat's"

    tools: Any = [{"type": "function", **WEATHER, "strict": True}]
    ask = {"model": model, "input": "The weather in Paris?", "temperature": 0, "tools": tools}
    with api.responses.stream(**ask, tool_choice="required") as stream:
        last = stream.get_final_response()
    [call] = last.output
    assert isinstance(call, ResponseFunctionToolCall)
    jsonschema.validate(json.loads(call.arguments), CITY)
    made = {"type": "function_call", "call_id": call.call_id, "name": call.name, "arguments": call.arguments}
    items: Any = [
        {"role": "user", "content": "The weather in Paris?"},
        made,
        {"type": "function_call_output", "call_id": call.call_id, "output": "11 C, rain"},
    ]
    more = api.responses.create(model=model, input=items, tools=tools, max_output_tokens=4)
    assert more.usage and more.usage.input_tokens > 100
    with pytest.raises(openai.BadRequestError, match="previous_response_id"):
        api.responses.create(model=model, input="And?", previous_response_id=last.id)
