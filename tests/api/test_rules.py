"""Each request field is honoured, ignored or refused, and an answer says what was ignored."""

import importlib.util
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
from openai.types import completion_create_params
from openai.types.chat import completion_create_params as chat_create_params
from openai.types.responses import response_create_params

from api.dialects.chat.schema import ChatRequest, Function, Tool
from api.dialects.completions.schema import CompletionRequest
from api.dialects.fields import StreamOptions
from api.dialects.json_route import _parsed
from api.dialects.responses.schema import ResponseRequest
from api.dialects.rules import Ignored, Refused, Strict, apply, parts_of
from api.errors import InvalidRequest
from bench.api_fields import PAGE, page
from tests.support.api import MODEL, House, assert_openai_error, eventually
from tests.support.fields import fields_of, unlisted

CHAT, COMPLETIONS, RESPONSES = "/v1/chat/completions", "/v1/completions", "/v1/responses"
REQUESTS: dict[str, type[Strict]] = {
    CHAT: ChatRequest,
    COMPLETIONS: CompletionRequest,
    RESPONSES: ResponseRequest,
}
PLAIN: dict[str, dict[str, Any]] = {
    CHAT: {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}]},
    COMPLETIONS: {"model": MODEL, "prompt": "Hi"},
    RESPONSES: {"model": MODEL, "input": "Hi"},
}
OPENAI = {
    CHAT: chat_create_params,
    COMPLETIONS: completion_create_params,
    RESPONSES: response_create_params,
}
NAMES = {
    CHAT: "CompletionCreateParams",
    COMPLETIONS: "CompletionCreateParams",
    RESPONSES: "ResponseCreateParams",
}
EACH = pytest.mark.parametrize("path", REQUESTS)
MakeHouse = Callable[..., House]
CALLED = {"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}}
USER = {"role": "user", "content": "Hi"}
DID = {"role": "assistant", "tool_calls": [CALLED]}
RESULT = {"role": "tool", "tool_call_id": "c", "content": "1"}


def vllms(path: str) -> dict[str, Any]:
    folder, name = {
        CHAT: ("chat_completion", "ChatCompletionRequest"),
        COMPLETIONS: ("completion", "CompletionRequest"),
        RESPONSES: ("responses", "ResponsesRequest"),
    }[path]
    return fields_of(_vllm() / "entrypoints" / "openai" / folder / "protocol.py", name)


def _vllm() -> Path:
    spec = importlib.util.find_spec("vllm")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


@EACH
@pytest.mark.parametrize("kind", ["NonStreaming", "Streaming"])
def test_every_field_of_openais_request_types_is_in_a_list(path: str, kind: str) -> None:
    assert sorted(set(unlisted(REQUESTS[path], getattr(OPENAI[path], f"{NAMES[path]}{kind}")))) == []


@EACH
def test_every_field_of_vllms_request_classes_is_in_a_list(path: str) -> None:
    model = REQUESTS[path]
    assert sorted(set(vllms(path)) - set(parts_of(model)) - set(model.other_fields)) == []


@pytest.mark.parametrize(
    ("name", "model"), [("StreamOptions", StreamOptions), ("FunctionDefinition", Function)]
)
def test_every_field_of_vllms_smaller_classes_is_in_a_list(name: str, model: type[Strict]) -> None:
    found = fields_of(_vllm() / "entrypoints" / "generate" / "base" / "protocol.py", name)
    assert sorted(set(found) - set(parts_of(model)) - set(model.other_fields)) == []


@EACH
def test_a_client_that_sends_vllms_defaults_is_not_refused(path: str) -> None:
    needed = {"model", "messages", "prompt", "input"}
    defaults = {name: value for name, value in vllms(path).items() if value is not ... and name not in needed}
    assert len(defaults) > 30
    rest, _ = apply(REQUESTS[path], PLAIN[path] | defaults)
    REQUESTS[path].model_validate(rest)


@EACH
def test_no_field_is_in_two_lists_and_every_reason_is_a_sentence(path: str) -> None:
    pending, seen = [REQUESTS[path]], set()
    while pending:
        model = pending.pop()
        seen.add(model)
        assert not set(parts_of(model)) & set(model.other_fields), model
        for rule in (*model.other_fields.values(), *model.other_types.values()):
            assert rule.why.endswith(".") and rule.why[0].isupper() == isinstance(rule, Refused), rule
        pending += [part for parts in parts_of(model).values() for part in parts if part not in seen]


async def post(house: House, path: str, body: dict[str, Any]) -> httpx.Response:
    async with house.client() as client:
        answer: httpx.Response = await client.post(path, json=body)
        return answer


# What clients send, and what of it is ignored. ../shared/cases/api has who sends it.
TAKEN: list[tuple[str, dict[str, Any], set[str]]] = [
    (CHAT, {"store": True}, {"store"}),
    (CHAT, {"metadata": {"run": "7"}, "service_tier": "flex"}, {"metadata", "service_tier"}),
    (CHAT, {"prompt_cache_key": "x", "safety_identifier": "y"}, {"prompt_cache_key", "safety_identifier"}),
    (CHAT, {"reasoning_effort": "high", "verbosity": "low"}, {"reasoning_effort", "verbosity"}),
    (CHAT, {"modalities": ["text"]}, {"modalities"}),
    (CHAT, {"functions": None, "audio": None, "tools": None, "stop": None}, set()),
    (CHAT, {"functions": [], "use_beam_search": False}, {"functions", "use_beam_search"}),
    (CHAT, {"tools": []}, set()),
    (CHAT, {"tools": [{"type": "web_search"}, {"type": "custom", "custom": {"name": "x"}}]},
     {"tools.web_search", "tools.custom"}),
    (CHAT, {"logprobs": False, "top_logprobs": 0}, set()),
    (CHAT, {"stream": True, "stream_options": {"include_usage": None, "include_obfuscation": False}},
     {"stream_options.include_obfuscation"}),
    (CHAT, {"messages": [{**USER, "name": "bob"}, {"role": "assistant", "name": "z", "content": "y"}, USER]},
     {"messages.name"}),
    (CHAT, {"messages": [USER, DID, {**RESULT, "name": "f"}]}, {"messages.name"}),
    (CHAT, {"messages": [USER, {"role": "assistant", "content": "y", "refusal": None, "annotations": []}]},
     {"messages.annotations"}),
    (CHAT, {"messages": [USER, {"role": "assistant", "content": None, "refusal": "No."}, USER]}, set()),
    (CHAT,
     {"messages": [USER, {"role": "assistant", "content": "y", "reasoning_content": "z", "tool_calls": []}]},
     {"messages.reasoning_content"}),
    (CHAT,
     {"messages": [USER, {"role": "assistant", "tool_calls": [
         CALLED | {"index": 0, "function": {"name": "f", "arguments": "{}", "parsed_arguments": {"a": 1}}}
     ]}, RESULT]},
     {"messages.tool_calls.index", "messages.tool_calls.function.parsed_arguments"}),
    (CHAT,
     {"messages": [{"role": "user", "content": [
         {"type": "text", "text": "Hi", "cache_control": {"type": "ephemeral"}, "role": "user"}
     ]}]},
     {"messages.content.cache_control", "messages.content.role"}),
    (CHAT, {"add_generation_prompt": True, "continue_final_message": False}, set()),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}, {"chat_template_kwargs.enable_thinking"}),
    (RESPONSES, {"chat_template_kwargs": {}}, set()),
    (COMPLETIONS, {"store": False, "best_of": 1, "suffix": None}, {"store", "best_of"}),
    (RESPONSES, {"include": ["reasoning.encrypted_content"], "store": True}, {"include", "store"}),
    (RESPONSES, {"reasoning": None, "background": False}, {"background"}),
    (RESPONSES, {"include": [], "top_logprobs": 0}, set()),
    (RESPONSES,
     {"input": [USER, {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
                {"type": "function_call_output", "call_id": "c", "name": "f", "output": "1"}]},
     {"input.name"}),
    (RESPONSES, {"tools": [], "truncation": "auto"}, {"truncation"}),
    (RESPONSES, {"tools": [{"type": "web_search"}, {"type": "namespace", "name": "x", "tools": []}]},
     {"tools.web_search", "tools.namespace"}),
    (RESPONSES, {"text": {"verbosity": "low"}, "client_metadata": {}}, {"text.verbosity", "client_metadata"}),
    (RESPONSES,
     {"input": [
         USER,
         {"type": "reasoning", "id": "rs_1", "summary": []},
         {"type": "message", "role": "assistant", "id": "msg_1", "status": "completed", "content": [
             {"type": "output_text", "text": "y", "annotations": [{}], "logprobs": [{}]}
         ]},
         USER,
     ]},
     {"input.reasoning", "input.id", "input.status", "input.content.annotations", "input.content.logprobs"}),
    (RESPONSES, {"seed": 1, "stop": ["x"], "top_k": 5, "repetition_penalty": 1.1}, set()),
]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "fields", "ignored"), TAKEN, ids=[str(case[:2])[:80] for case in TAKEN])
async def test_what_clients_send_is_answered_and_what_is_ignored_is_named(
    make_house: MakeHouse, path: str, fields: dict[str, Any], ignored: set[str]
) -> None:
    house = make_house()
    await house.load()
    answer = await post(house, path, PLAIN[path] | fields)
    assert answer.status_code == 200, answer.text
    named = answer.headers.get("x-ignored-fields")
    assert set(named.split(", ") if named else []) == ignored


ITEMS = "send the items of the whole conversation as `input`"
# What is refused, the field that is blamed, and words of the way out.
NOT_TAKEN: list[tuple[str, dict[str, Any], str, str]] = [
    (CHAT, {"functions": [{"name": "f"}]}, "functions", "Send `tools`"),
    (CHAT, {"modalities": ["text", "audio"]}, "modalities", "text only"),
    (CHAT, {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
     "messages.0.content.0", "'image_url'. The model reads and writes text only"),
    (CHAT, {"messages": [{"role": "assistant", "audio": {"id": "a"}}]}, "messages.0.audio", "transcript"),
    (CHAT, {"tools": [], "tool_choice": {"type": "web_search"}}, "tool_choice", "choice"),
    (CHAT, {"tools": [{"type": "web_search"}], "tool_choice": "required"}, "tool_choice", "no tools"),
    (CHAT, {"response_format": {"type": "structural_tag"}}, "response_format", "json_schema"),
    (CHAT, {"guided_json": {}}, "guided_json", "JSON Schema"),
    (CHAT, {"use_beam_search": True}, "use_beam_search", "Use `n`"),
    (CHAT, {"use_beam_search": 0}, "use_beam_search", "Use `n`"),
    (CHAT, {"continue_final_message": True}, "continue_final_message", "of the assistant"),
    (CHAT, {"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs.tokenize", "no such variable"),
    (CHAT, {"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages", "no such variable"),
    (CHAT, {"chat_template_kwargs": {"date_string": "x"}}, "chat_template_kwargs.date_string", "no such"),
    (CHAT, {"chat_template_kwargs": {"a": "<|im_end|>"}}, "chat_template_kwargs.a", "pattern"),
    (CHAT, {"chat_template_kwargs": {"a": ["x"]}}, "chat_template_kwargs.a", "not a list of 1"),
    (CHAT, {"chat_template": "{{ 1 }}"}, "chat_template", "own template"),
    (CHAT, {"stream_options": {"include_usage": True}}, "stream_options", "stream is true"),
    (COMPLETIONS, {"stream_options": {}}, "stream_options", "stream is true"),
    (COMPLETIONS, {"best_of": 3}, "best_of", "Use `n`"),
    (RESPONSES, {"previous_response_id": "resp_1"}, "previous_response_id", ITEMS),
    (RESPONSES, {"conversation": {"id": "x"}}, "conversation", ITEMS),
    (RESPONSES, {"input": [USER, {"type": "item_reference", "id": "msg_7"}]}, "input.1", ITEMS),
    (RESPONSES, {"background": True}, "background", "Stream"),
    (RESPONSES, {"n": 2}, "n", "not a field"),
    (CHAT, {"max_token": 5}, "max_token", "'max_tokens'"),
    (CHAT, {"max_model_len": 5}, "max_model_len", "not a field"),
    (CHAT, {"messages": [{**USER, "contents": 1}]}, "messages.0.contents", "'content'"),
    (CHAT, {"tools": [{"type": "function", "function": {"name": "f", "parameter": {}}}]},
     "tools.0.function.parameter", "'parameters'"),
    (CHAT, {"tensor_parallel_size": None}, "tensor_parallel_size", "not a field"),
    (RESPONSES, {"inputs": "x"}, "inputs", "'input'"),
    (COMPLETIONS, {"temprature": 1}, "temprature", "'temperature'"),
]  # fmt: skip


@pytest.mark.anyio
@pytest.mark.parametrize(("path", "fields", "param", "words"), NOT_TAKEN, ids=lambda value: str(value)[:60])
async def test_what_would_change_the_answer_is_refused_with_the_way_out(
    make_house: MakeHouse, path: str, fields: dict[str, Any], param: str, words: str
) -> None:
    house = make_house()
    await house.load()
    error = assert_openai_error(await post(house, path, PLAIN[path] | fields), 400, None)
    assert error["param"] == param and words in error["message"] and param in error["message"]
    assert house.engine.calls == []


@pytest.mark.anyio
@EACH
async def test_an_ignored_field_changes_nothing_for_the_engine(make_house: MakeHouse, path: str) -> None:
    house = make_house()
    await house.load()
    ignored = {
        name: {"x": [1]} for name, rule in REQUESTS[path].other_fields.items() if isinstance(rule, Ignored)
    }
    answers = [await post(house, path, body) for body in (PLAIN[path], PLAIN[path] | ignored)]
    assert [answer.status_code for answer in answers] == [200, 200]
    assert answers[1].headers["x-ignored-fields"] == ", ".join(sorted(ignored))
    assert "x-ignored-fields" not in answers[0].headers
    first, second = ({**call, "request_id": None} for call in house.engine.calls)
    assert first == second


@EACH
def test_null_means_absent_for_every_known_field(path: str) -> None:
    model = REQUESTS[path]
    nulls = dict.fromkeys([*parts_of(model), *model.other_fields])
    assert apply(model, nulls) == ({}, frozenset())
    assert apply(Tool, {"type": "function", "function": {"name": None}})[0] == {
        "type": "function",
        "function": {},
    }


def test_null_inside_a_schema_of_the_clients_stays() -> None:
    schema = {"type": ["string", "null"], "default": None, "enum": ["a", None]}
    given = {"tools": [{"type": "function", "function": {"name": "f", "parameters": schema}}]}
    assert apply(ChatRequest, given) == (given, frozenset())


def test_the_rule_leaves_the_body_of_the_request_as_it_is() -> None:
    given = {"store": True, "messages": [{"role": "user", "content": "Hi", "annotations": []}]}
    apply(ChatRequest, given)
    assert given == {"store": True, "messages": [{"role": "user", "content": "Hi", "annotations": []}]}


def test_a_wrong_name_however_long_is_refused_in_a_short_sentence() -> None:
    with pytest.raises(InvalidRequest) as refused:
        apply(ChatRequest, {"x" * 100_000: 1})
    assert len(refused.value.message) < 300 and len(refused.value.param or "") == 200


@pytest.mark.anyio
async def test_the_log_names_ignored_fields_as_the_header_does(
    make_house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    house = make_house()
    await house.load()
    await post(
        house, CHAT, PLAIN[CHAT] | {"store": True, "messages": [{**USER, "cache_control": "a secret"}]}
    )
    await eventually(lambda: "event=request" in caplog.text)
    [line] = [record.getMessage() for record in caplog.records if "event=request" in record.getMessage()]
    assert " ignored=messages.cache_control,store " in line and "secret" not in line


@pytest.mark.anyio
async def test_a_body_of_too_many_values_is_refused_for_that(make_house: MakeHouse) -> None:
    house = make_house()
    await house.load()
    answer = await post(house, CHAT, PLAIN[CHAT] | {"metadata": {str(i): "" for i in range(40_000)}})
    assert "more than 32768 values" in assert_openai_error(answer, 400, None)["message"]


def test_the_page_of_fields_is_up_to_date() -> None:
    assert PAGE.read_text() == page(), "write it with `python -m bench.api_fields`"


def test_the_document_says_what_is_ignored_and_refused() -> None:
    schema = ChatRequest.model_json_schema()
    assert schema["properties"]["store"] == {"description": "Ignored: nothing is stored between requests."}
    assert schema["properties"]["use_beam_search"]["enum"] == [None, False]
    own, left_out = schema["$defs"]["Tool"]["anyOf"]
    assert "function" in own["properties"] and "web_search" in left_out["properties"]["type"]["enum"]


@pytest.mark.parametrize(
    "text", ["\\u002c,[{" * 20, "plain"], ids=["a text that looks like values", "a text"]
)
def test_only_values_count_however_a_text_looks(text: str) -> None:
    body = orjson.dumps({"model": MODEL, "messages": [{"role": "user", "content": text * 1000}]})
    assert _parsed(body) == orjson.loads(body)
    with pytest.raises(InvalidRequest, match="more than 32768 values"):
        _parsed(orjson.dumps({"metadata": [text] * 40_000}))


def test_objects_in_a_list_are_judged_wherever_they_stand() -> None:
    for place in (0, 1, 2):
        messages: list[Any] = [USER, USER, USER]
        messages[place] = {**USER, "annotations": []}
        assert apply(ChatRequest, {"messages": messages}) == (
            {"messages": [USER] * 3},
            frozenset({"messages.annotations"}),
        )
        messages[place] = "no object"
        assert apply(ChatRequest, {"messages": messages}) == ({"messages": messages}, frozenset())
        messages[place] = {**USER, "name": None}
        assert apply(ChatRequest, {"messages": messages})[0] == {"messages": [USER] * 3}
