"""A refusal names the field, its rule and the size of the value, for each rule of each schema."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from api.dialects.chat.schema import ChatRequest
from api.dialects.completions.schema import CompletionRequest
from api.dialects.messages.schema import MessageRequest
from api.dialects.responses.schema import ResponseRequest
from api.dialects.rules import Strict
from tests.support.api import MODEL, House, assert_openai_error

pytestmark = pytest.mark.anyio
Path = tuple[str | int, ...]
FUNCTION = {"name": "f", "description": "d", "parameters": {"type": "object"}, "strict": True}
CALL = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
SAMPLING: dict[str, Any] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": 1,
    "min_p": 0.0,
    "frequency_penalty": 0.0,
    "presence_penalty": 0.0,
    "repetition_penalty": 1.0,
    "seed": 1,
    "stop": ["x"],
    "stop_token_ids": [1],
    "logit_bias": {"1": 1.0},
    "min_tokens": 0,
    "ignore_eos": False,
}
COMPLETION = {**SAMPLING, "stream": True, "n": 1, "stream_options": {
    "include_usage": True, "continuous_usage_stats": True
}}  # fmt: skip
THINKING: dict[str, Any] = {
    "enable_thinking": True,
    "thinking": {"type": "enabled", "budget_tokens": 5, "display": "summarized"},
    "reasoning": {"effort": "low", "enabled": True, "exclude": False, "max_tokens": 5},
    "thinking_token_budget": 5,
    "include_reasoning": True,
}
# One request of each dialect with every field that it honours, so that each can be spoilt.
FULL: dict[str, tuple[type[Strict], dict[str, Any]]] = {
    "/v1/chat/completions": (ChatRequest, {
        **COMPLETION,
        **THINKING,
        "model": MODEL,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}], "name": "ann"},
            {"role": "assistant", "content": "x", "refusal": "No.", "tool_calls": [CALL],
             "reasoning_content": "y", "reasoning": "z"},
            {"role": "tool", "content": "1", "tool_call_id": "c"},
        ],
        "max_completion_tokens": 5,
        "max_tokens": 5,
        "logprobs": True,
        "top_logprobs": 1,
        "response_format": {
            "type": "json_schema",
            "json_schema": {"name": "x", "description": "d", "schema": {"type": "object"}, "strict": True},
        },
        "tools": [{"type": "function", "function": FUNCTION}],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": True,
        "add_generation_prompt": True,
        "continue_final_message": False,
        "chat_template_kwargs": {"enable_thinking": True},
        "reasoning_effort": "high",
    }),
    "/v1/completions": (CompletionRequest, {
        **COMPLETION, "model": MODEL, "prompt": ["Hi"], "max_tokens": 5, "logprobs": 1, "echo": True,
    }),
    "/v1/responses": (ResponseRequest, {
        **SAMPLING,
        **THINKING,
        "model": MODEL,
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "y"}],
             "summary": [{"type": "summary_text", "text": "z"}]},
            {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c", "output": "1"},
        ],
        "instructions": "x",
        "max_output_tokens": 5,
        "text": {"format": {
            "type": "json_schema", "name": "x", "description": "d", "schema": {}, "strict": True
        }},
        "tools": [{"type": "function", **FUNCTION}],
        "tool_choice": {"type": "function", "name": "f"},
        "parallel_tool_calls": True,
        "stream": False,
        "metadata": {"a": "b"},
        "include": ["message.output_text.logprobs"],
        "top_logprobs": 1,
        "chat_template_kwargs": {"enable_thinking": True},
        "user": "u",
    }),
    "/v1/messages": (MessageRequest, {
        "model": MODEL,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "Hi"}]},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "y"},
                {"type": "tool_use", "id": "c", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "1"}]},
            {"role": "system", "content": "x", "clear_at": "never"},
        ],
        "max_tokens": 5,
        "system": [{"type": "text", "text": "x"}],
        "tools": [{
            "type": "custom", "name": "f", "description": "d", "input_schema": {"type": "object"},
            "strict": True,
        }],
        "tool_choice": {"type": "tool", "name": "f", "disable_parallel_tool_use": True},
        "output_config": {"format": {"type": "json_schema", "schema": {"type": "object"}}},
        "output_format": {"type": "json_schema", "schema": {"type": "object"}},
        "stream": False,
        "temperature": 1.0,
        "top_p": 1.0,
        "top_k": 1,
        "stop_sequences": ["x"],
        "thinking": THINKING["thinking"],
    }),
}  # fmt: skip


LIMITS: dict[str, tuple[Callable[[Any], Any], str]] = {
    "minimum": (lambda most: most - 1, "must be at least {}"),
    "maximum": (lambda most: most + 1, "must be at most {}"),
    "exclusiveMinimum": (lambda most: most, "must be more than {}"),
    "exclusiveMaximum": (lambda most: most, "must be less than {}"),
    "minLength": (lambda _: "", "must have at least {} character, not ''"),
    "maxLength": (lambda most: "x" * (most + 1), "may have at most {} characters, not "),
    "pattern": (lambda _: "? !", "must match the pattern {}, not '? !'"),
    "minItems": (lambda _: [], "is empty and must have at least {} entry"),
}


def bad_values(kinds: list[dict[str, Any]], good: Any, root: dict[str, Any]) -> Iterator[tuple[Any, str]]:
    """Yield a bad value for each constraint of a JSON Schema, with words that its refusal must have.

    kinds: the schema's alternatives. good: a value that obeys one of them.
    """
    for kind in kinds:
        for name, (spoil, words) in LIMITS.items():
            if name in kind:
                yield spoil(kind[name]), words.format(kind[name])
        if "const" in kind or isinstance(kind.get("enum", [None])[0], str):
            yield "no such value", "not 'no such value'"
        if "maxItems" in kind and _holds(kind, good, root):
            most = kind["maxItems"]
            yield [good[0]] * (most + 1), f"may have at most {most} entries, not {most + 1}"
        if "maxProperties" in kind:
            most, [(name, inside)] = kind["maxProperties"], good.items()
            many = {f"{name}{number}": inside for number in range(most + 1)}
            yield many, f"may have at most {most} entries, not {most + 1}"
    types = {kind["type"] for kind in kinds if "type" in kind}
    if types:
        yield ("x" * 50, "not 50 characters") if types & {"integer", "number"} else (0.5, "not 0.5")


def _followed(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    reference = schema.get("$ref", "")
    return root["$defs"][reference.rpartition("/")[2]] if reference else schema


def constraints(
    schema: dict[str, Any], good: Any, root: dict[str, Any], where: Path = ()
) -> Iterator[tuple[Path, Any, str]]:
    """Yield every way to spoil one value of a full request: its path, the bad value, and words."""
    kinds = [_followed(schema, root)]
    for kind in kinds:
        kinds += [_followed(each, root) for each in kind.get("anyOf", [])]
    if where:
        yield from ((where, bad, words) for bad, words in bad_values(kinds, good, root))
    if isinstance(good, dict):
        fields = [kind["properties"] for kind in kinds if "properties" in kind]
        for name, inside in good.items() if fields else ():
            yield from constraints(fields[0].get(name, {}), inside, root, (*where, name))
    elif isinstance(good, list):
        entries = next(kind["items"] for kind in kinds if _holds(kind, good, root))
        for number, inside in enumerate(good):
            yield from constraints(entries, inside, root, (*where, number))


def _holds(kind: dict[str, Any], good: Any, root: dict[str, Any]) -> bool:
    """Return whether a list's schema is that of entries like these."""
    types = {"string": str, "integer": int, "array": list}
    if not isinstance(good, list) or "items" not in kind:
        return False
    return isinstance(good[0], types.get(str(_followed(kind["items"], root).get("type")), dict))


def spoilt(body: Any, where: Path, bad: Any) -> Any:
    first, *rest = where
    copy: Any = list(body) if isinstance(body, list) else dict(body)
    copy[first] = spoilt(body[first], tuple(rest), bad) if rest else bad
    return copy


CASES = [
    (path, where, bad, words)
    for path, (model, body) in FULL.items()
    for root in [model.model_json_schema()]
    for where, bad, words in constraints(root, body, root)
]


def test_the_full_requests_have_every_field_that_is_honoured() -> None:
    for model, body in FULL.values():
        assert set(body) == set(model.model_fields)
    assert len(CASES) > 250


@pytest.fixture
async def house(make_house: Callable[..., House]) -> House:
    made: House = make_house()
    await made.load()
    return made


async def test_every_constraint_of_every_schema_is_refused_in_words(house: House) -> None:
    async with house.client() as client:
        for path, where, bad, words in CASES:
            body = spoilt(FULL[path][1], where, bad)
            answer = await client.post(path, json=body)
            error = answer.json()["error"]
            field, message = ".".join(map(str, where)), error["message"]
            assert message.startswith(f"{field}: "), (path, where, bad, message)
            assert words in message and message.endswith("."), message
            if path != "/v1/messages":
                assert assert_openai_error(answer, 400, None)["param"] == field
            assert "Input" not in message and "Value error" not in message, message
    assert house.engine.calls == []


@pytest.mark.parametrize(
    ("path", "fields", "message"),
    [
        ("/v1/chat/completions", {"stop": ["a"] * 17}, "stop: may have at most 16 entries, not 17."),
        ("/v1/chat/completions", {"stop": 5}, "stop: must be a string or a list, not 5."),
        ("/v1/chat/completions", {"messages": []}, "messages: is empty and must have at least 1 entry."),
        ("/v1/chat/completions", {"messages": None}, "messages: is missing."),
        ("/v1/chat/completions", {"top_logprobs": 2, "logprobs": False},
         "top_logprobs: needs logprobs to be true."),
        ("/v1/completions", {"prompt": ["a"] * 9}, "prompt: may have at most 8 entries, not 9."),
        ("/v1/completions", {"prompt": [[1]] * 10}, "prompt: may have at most 8 entries, not 10."),
        ("/v1/completions", {"prompt": [1, "x"]}, "prompt.1: must be an integer or a list, not 'x'."),
        ("/v1/completions", {"prompt": []}, "prompt: is empty and must have at least 1 entry."),
        ("/v1/completions", {"max_tokens": True}, "max_tokens: must be an integer, not true."),
        ("/v1/responses", {"input": []}, "input: is empty and must have at least 1 entry."),
        ("/v1/responses", {"instructions": ["x"]}, "instructions: must be a string, not a list of 1."),
    ],
)  # fmt: skip
async def test_the_sentence_is_that_of_the_type_that_was_meant(
    house: House, path: str, fields: dict[str, Any], message: str
) -> None:
    plain = {"messages": [{"role": "user", "content": "Hi"}], "prompt": "Hi", "input": "Hi"}
    needed = {"/v1/chat/completions": "messages", "/v1/completions": "prompt", "/v1/responses": "input"}[path]
    async with house.client() as client:
        answer = await client.post(path, json={"model": MODEL, needed: plain[needed]} | fields)
    assert assert_openai_error(answer, 400, None)["message"] == message


@pytest.mark.parametrize("body", ["[]", '"x"', "3", "null"])
async def test_a_body_that_is_no_object_is_refused_for_that(house: House, body: str) -> None:
    async with house.client(headers={"content-type": "application/json"}) as client:
        answer = await client.post("/v1/chat/completions", content=body)
    error = assert_openai_error(answer, 400, None)
    assert error["message"].startswith("The body: ") and error["param"] is None
