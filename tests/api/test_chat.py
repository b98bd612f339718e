"""POST /v1/chat/completions as an OpenAI client sees it, good and bad requests alike."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from api.dialects.chat.answer import ChatCompletion, ChatCompletionChunk
from api.dialects.chat.schema import ChatRequest
from api.engine.delta import Delta
from api.engine.sampling import Sampling, sampling_arguments
from api.errors import EngineFailed
from tests.support.api import MODEL, FakeEngine, House, ask, assert_openai_error, events, post

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]


async def test_answer_is_a_chat_completion(make_house: MakeHouse) -> None:
    answer = await post(make_house(), json=ask())
    completion = ChatCompletion.model_validate(answer.json())
    assert completion.id.startswith("chatcmpl-")
    assert (completion.model, completion.system_fingerprint) == (MODEL, "tiny-r8")
    [choice] = completion.choices
    assert (choice.message.content, choice.finish_reason) == ("Hello world", "stop")
    assert completion.usage.completion_tokens == 3
    assert completion.usage.total_tokens == completion.usage.prompt_tokens + 3


async def test_stream_names_the_role_with_the_first_text_and_ends_with_done(
    make_house: MakeHouse,
) -> None:
    house = make_house()
    options = {"include_usage": True}
    answer = await post(house, json=ask(stream=True, stream_options=options))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    first, second, finish, usage, done = events(answer)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": "Hello"}
    assert second["choices"][0]["delta"] == {"content": " world"}
    assert finish["choices"][0] == {
        "index": 0,
        "delta": {},
        "logprobs": None,
        "finish_reason": "stop",
    }
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 3
    assert done == "[DONE]"
    assert {first["id"], second["id"], finish["id"], usage["id"]} == {first["id"]}


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_the_cached_tokens_of_the_prompt(make_house: MakeHouse, stream: bool) -> None:
    engine = FakeEngine([Delta("Hi", 1, None, cached_tokens=16), Delta("", 1, "stop")])
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = await post(make_house(engine), json=ask(stream=stream, **options))
    usage = events(answer)[-2]["usage"] if stream else answer.json()["usage"]
    assert usage["prompt_tokens_details"] == {"cached_tokens": 16}


async def test_stream_without_usage_has_no_usage_field(make_house: MakeHouse) -> None:
    answer = await post(make_house(), json=ask(stream=True))
    assert not any("usage" in event for event in events(answer)[:-1])


@pytest.mark.parametrize("tools", [[], [{"type": "function", "function": {"name": "f"}}]], ids=["no", "yes"])
async def test_each_chunk_has_the_usage_until_then_for_who_asks(make_house: MakeHouse, tools: Any) -> None:
    house = make_house(FakeEngine(max_model_len=4096))
    options = {"include_usage": True, "continuous_usage_stats": True}
    answer = await post(house, json=ask(stream=True, stream_options=options, tools=tools))
    *chunks, last, _ = events(answer)
    assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [1, 2, 3]
    assert {chunk["usage"]["prompt_tokens"] for chunk in (*chunks, last)} == {last["usage"]["prompt_tokens"]}
    assert last["choices"] == [] and last["usage"] == chunks[-1]["usage"]
    for chunk in chunks:
        ChatCompletionChunk.model_validate(chunk)


async def test_a_last_message_of_the_assistant_is_continued_for_who_asks(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast
) -> None:
    house = make_house()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    answer = await post(
        house, json=ask(messages=messages, continue_final_message=True, add_generation_prompt=False)
    )
    assert answer.json()["choices"][0]["message"]["content"] == "Hello world"
    await post(house, json=ask(messages=messages))
    continued, begun = (tokenizer.decode(call["prompt_ids"]) for call in house.engine.calls)
    assert continued.endswith("<|im_start|>assistant\nWell,")
    assert begun.endswith("Well,<|im_end|>\n<|im_start|>assistant\n")


async def test_answer_without_text_is_still_a_whole_stream(make_house: MakeHouse) -> None:
    engine = FakeEngine(deltas=[Delta("", 1, "stop")])
    first, finish, done = events(await post(make_house(engine), json=ask(stream=True)))
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert finish["choices"][0]["finish_reason"] == "stop"
    assert done == "[DONE]"


async def test_answer_may_fill_what_remains_of_the_context(make_house: MakeHouse) -> None:
    house = make_house()
    await post(house, json=ask())
    [call] = house.engine.calls
    assert call["max_tokens"] == 256 - len(call["prompt_ids"])


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"logit_bias": {"1": 101}}, "logit_bias.1"),
        ({"logit_bias": {"-1": 1}}, "logit_bias.-1.[key]"),
        ({"logit_bias": {"259": 1}}, "logit_bias"),
        ({"logit_bias": {str(i): 0 for i in range(301)}}, "logit_bias"),
        ({"stop_token_ids": [259]}, "stop_token_ids"),
        ({"stop_token_ids": [-1]}, "stop_token_ids.0"),
        ({"stop_token_ids": [0] * 17}, "stop_token_ids"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"logprobs": 1}, "logprobs"),
        ({"chat_template": "{{ 1 }}"}, "chat_template"),
        ({"guided_regex": "a+"}, "guided_regex"),
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.tool_call_id"),
        ({"n": 0}, "n"),
        ({"n": 9}, "n"),
        ({"temperature": 2.1}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens"),
        ({"seed": 2**63}, "seed"),
        ({"stop": list("abcdefghijklmnopq")}, "stop"),
        ({"stop": "x" * 257}, "stop"),
        ({"stream_options": {"x": 1}}, "stream_options.x"),
        ({"min_tokens": 10**6}, "min_tokens"),
        ({"min_tokens": 4, "max_tokens": 3}, "min_tokens"),
        ({"min_tokens": 4, "response_format": {"type": "json_object"}}, "min_tokens"),
        ({"ignore_eos": True, "response_format": {"type": "json_object"}}, "ignore_eos"),
    ],
    ids=ascii,
)
async def test_bad_field_is_refused_by_its_name(
    make_house: MakeHouse, fields: dict[str, Any], param: str | None
) -> None:
    house = make_house()
    answer = await post(
        house, content=json.dumps(ask(**fields)), headers={"content-type": "application/json"}
    )
    assert assert_openai_error(answer, 400, None)["param"] == param
    assert house.engine.calls == []


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[" * 100_000,
        b"nul",
        b"\xff\xfe",
        b'{"seed": NaN}',
        b'{"model": "\\ud800"}',
        b'{"\\udfff": 1}',
        b'{"seed": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: repr(body[:20]),
)
async def test_body_that_is_not_json_is_refused(make_house: MakeHouse, body: bytes) -> None:
    answer = await post(make_house(), content=body, headers={"content-type": "application/json"})
    assert_openai_error(answer, 400, None)


def two_choices() -> FakeEngine:
    return FakeEngine(
        deltas=[
            Delta("A", 1, None, 0),
            Delta("B", 1, None, 1),
            Delta("b", 1, "length", 1),
            Delta("a", 1, "stop", 0),
        ]
    )


async def test_several_answers_come_whole_and_in_order(make_house: MakeHouse) -> None:
    answer = await post(make_house(two_choices()), json=ask(n=2))
    completion = ChatCompletion.model_validate(answer.json())
    found = [(c.index, c.message.content, c.finish_reason) for c in completion.choices]
    assert found == [(0, "Aa", "stop"), (1, "Bb", "length")]
    assert completion.usage.completion_tokens == 4


async def test_streamed_answers_each_name_the_role_once_and_share_one_end(make_house: MakeHouse) -> None:
    answer = await post(make_house(two_choices()), json=ask(n=2, stream=True))
    *chunks, done = events(answer)
    assert done == "[DONE]" and "[DONE]" not in chunks
    found: dict[int, list[dict[str, Any]]] = {0: [], 1: []}
    for chunk in chunks:
        [choice] = chunk["choices"]
        found[choice["index"]].append(choice)
    for index, text, reason in ((0, "Aa", "stop"), (1, "Bb", "length")):
        first, *rest = found[index]
        assert first["delta"]["role"] == "assistant" and not any("role" in c["delta"] for c in rest)
        assert "".join(c["delta"].get("content", "") for c in found[index]) == text
        assert [c["finish_reason"] for c in found[index]] == [None, None, reason]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_list_every_token_also_parts_of_a_character(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast, stream: bool
) -> None:
    first, second = tokenizer.encode("é", add_special_tokens=False)  # a token is a byte
    engine = FakeEngine(
        deltas=[
            Delta("", 1, None, logprobs=[[(first, -0.5), (first, -0.5), (0, float("-inf"))]]),
            Delta("é", 1, None, logprobs=[[(second, -0.1), (second, -0.1), (tokenizer.eos_token_id, -3)]]),
            Delta("", 1, "stop", logprobs=[[(tokenizer.eos_token_id, 0), (tokenizer.eos_token_id, 0)]]),
        ]
    )
    house = make_house(engine)
    answer = await post(house, json=ask(logprobs=True, top_logprobs=2, stream=stream))
    bodies = events(answer)[:-1] if stream else [answer.json()]
    found = [entry for b in bodies for entry in (b["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [entry["bytes"] for entry in found] == [[0xC3], [0xA9], list(b"<|im_end|>")]
    assert [entry["token"] for entry in found] == ["\ufffd", "\ufffd", "<|im_end|>"]
    assert found[0]["top_logprobs"][1]["logprob"] == -9999.0
    assert len(found[1]["top_logprobs"]) == 2
    assert [call["logprobs"] for call in house.engine.calls] == [2]
    for body in bodies:
        (ChatCompletionChunk if stream else ChatCompletion).model_validate(body)


async def test_unknown_model_is_not_found(make_house: MakeHouse) -> None:
    error = assert_openai_error(await post(make_house(), json=ask(model="gpt-4")), 404, "model_not_found")
    assert error["param"] == "model"


@pytest.mark.parametrize("stream", [False, True])
async def test_what_does_not_fit_the_context_is_refused(make_house: MakeHouse, stream: bool) -> None:
    messages = [{"role": "user", "content": "x" * 300}]
    answer = await post(make_house(), json=ask(messages=messages, stream=stream))
    assert_openai_error(answer, 400, "context_length_exceeded")


async def test_engine_failure_before_the_first_token_is_a_503(make_house: MakeHouse) -> None:
    engine = FakeEngine(fail_before=(0, EngineFailed("dead")))
    answer = await post(make_house(engine), json=ask(stream=True))
    assert_openai_error(answer, 503, "engine_failed")
    assert answer.headers["retry-after"]


async def test_engine_failure_in_a_stream_is_its_last_event(make_house: MakeHouse) -> None:
    engine = FakeEngine(fail_before=(1, EngineFailed("dead")))
    first, error = events(await post(make_house(engine), json=ask(stream=True)))
    assert first["choices"][0]["delta"]["content"] == "Hello"
    assert error["error"]["code"] == "engine_failed"


async def test_defect_of_ours_is_reported_without_its_details(make_house: MakeHouse) -> None:
    engine = FakeEngine(fail_before=(0, RuntimeError("secret detail")))
    answer = await post(make_house(engine), json=ask())
    assert_openai_error(answer, 500, "internal_error")
    assert "secret" not in answer.text


async def test_models_lists_the_artifacts_name(make_house: MakeHouse) -> None:
    async with make_house().client() as client:
        listed = (await client.get("/v1/models")).json()["data"]
        found = [(model["id"], model["max_model_len"], model["licence"]) for model in listed]
        assert found == [(MODEL, 256, "l")]
        assert (listed[0]["description"], listed[0]["examples"]) == ("Writes reference cards.", ["Hi"])
        assert (await client.get(f"/v1/models/{MODEL}")).json() == listed[0]
        assert_openai_error(await client.get("/v1/models/other"), 404, "model_not_found")


async def test_openapi_names_what_is_served_and_no_validation_error_of_fastapi(
    make_house: MakeHouse,
) -> None:
    async with make_house().client() as client:
        document = (await client.get("/openapi.json")).json()
    assert set(document["paths"]) == {
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/responses",
        "/v1/messages",
        "/v1/messages/count_tokens",
        "/v1/models",
        "/v1/models/{model}",
        "/health",
        "/health/live",
        "/health/ready",
        "/metrics",
    }
    responses = [
        status
        for path in document["paths"].values()
        for operation in path.values()
        for status in operation["responses"]
    ]
    assert "422" not in responses
    request = document["components"]["schemas"]["ChatRequest"]
    assert set(request["properties"]) == {*ChatRequest.model_fields, *ChatRequest.other_fields}
    assert request["additionalProperties"] is False


def test_silent_request_takes_the_models_sampling_defaults() -> None:
    defaults = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 5}
    made, copies = sampling_arguments(Sampling(top_p=0.5, seed=1), defaults, 7)
    assert (made, copies) == ({"temperature": 0.6, "top_p": 0.5, "seed": 1, "max_tokens": 7}, 1)


def test_a_greedy_request_for_three_answers_gets_one_three_times() -> None:
    made, copies = sampling_arguments(Sampling(temperature=0.0, n=3), {"top_p": 0.9}, 7)
    assert (made, copies) == ({"temperature": 0.0, "top_p": 0.9, "max_tokens": 7}, 3)


def test_min_tokens_is_never_more_than_the_answer_may_have() -> None:
    """vLLM would refuse such a request with an error of its own."""
    made, _ = sampling_arguments(Sampling(min_tokens=9, ignore_eos=True), {}, 7)
    assert made == {"min_tokens": 7, "ignore_eos": True, "max_tokens": 7}


async def test_min_tokens_and_ignore_eos_reach_the_engine(make_house: MakeHouse) -> None:
    house = make_house()
    assert (await post(house, json=ask(min_tokens=3, ignore_eos=True, max_tokens=9))).status_code == 200
    [call] = house.engine.calls
    assert (call["sampling"].min_tokens, call["sampling"].ignore_eos) == (3, True)
