"""Thinking in the answers of each dialect, streamed and whole."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from openai.types.chat import ChatCompletionChunk
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter

from api.dialects.chat.answer import ChatCompletion
from api.dialects.messages.answer import MessageBody
from tests.support import messages
from tests.support.api import MODEL, House, ask, assert_openai_error, events
from tests.support.thinking import OPENED
from tests.support.thinking_house import ANSWER, CALL, CHAT, MESSAGES, PLAIN, RESPONSES, SCHEMA, Serve, post

pytestmark = pytest.mark.anyio


async def test_a_whole_chat_has_its_thinking_apart(serve: Serve) -> None:
    answer = await post(serve(OPENED, size=5), CHAT, logprobs=True)
    body = ChatCompletion.model_validate(answer.json())
    [choice] = body.choices
    assert choice.message.reasoning_content == choice.message.reasoning == "Green? No."
    assert (choice.message.content, choice.finish_reason) == ("Blue.", "stop")
    assert choice.logprobs is not None
    assert "".join(entry.token for entry in choice.logprobs.content) == "Blue.<|im_end|>"
    details = answer.json()["usage"]["completion_tokens_details"]
    assert details == {"reasoning_tokens": ANSWER.index("Blue")}
    assert body.usage.completion_tokens == len(ANSWER) + 1


@pytest.mark.parametrize("size", [1, 4, 100])
async def test_a_streamed_chat_sends_the_thinking_then_the_text(serve: Serve, size: int) -> None:
    answer = await post(serve(OPENED, size=size), CHAT, stream=True, stream_options={"include_usage": True})
    *chunks, last, done = events(answer)
    assert done == "[DONE]" and last["usage"]["completion_tokens_details"]["reasoning_tokens"] == 21
    found = [ChatCompletionChunk.model_validate(chunk).choices[0].delta.model_dump() for chunk in chunks]
    assert [delta["role"] for delta in found] == ["assistant"] + [None] * (len(found) - 1), "the role once"
    kinds = ["text" if delta["content"] else "thinking" for delta in found[:-1]]
    assert kinds == sorted(kinds, reverse=True)
    for name in ("reasoning_content", "reasoning"):
        assert "".join(delta.get(name) or "" for delta in found) == "Green? No."
    assert "".join(delta["content"] or "" for delta in found) == "Blue."


async def test_continuous_usage_counts_the_thinking(serve: Serve) -> None:
    options = {"include_usage": True, "continuous_usage_stats": True}
    found = events(await post(serve(OPENED), CHAT, stream=True, stream_options=options))[:-1]
    counts = [chunk["usage"]["completion_tokens_details"]["reasoning_tokens"] for chunk in found]
    assert counts == sorted(counts) and (counts[0], counts[-1]) == (1, 21)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", PLAIN)
async def test_an_answer_that_is_cut_in_its_thinking_has_nothing_else(
    serve: Serve, path: str, stream: bool
) -> None:
    answer = await post(serve(OPENED, "Well", reason="length"), path, stream=stream, **cut(path))
    if path == CHAT and not stream:
        [choice] = answer.json()["choices"]
        assert (choice["message"]["content"], choice["finish_reason"]) == ("", "length")
        assert choice["message"]["reasoning_content"] == "Well"
    elif path == CHAT:
        found = [chunk["choices"][0] for chunk in events(answer)[:-1]]
        assert not any("content" in choice["delta"] for choice in found)
        assert found[-1]["finish_reason"] == "length"
    elif path == RESPONSES:
        body = response_of(answer, stream)
        [item] = body["output"]
        assert (body["status"], item["type"], item["status"]) == ("incomplete", "reasoning", "incomplete")
        assert item["content"] == [{"type": "reasoning_text", "text": "Well"}]
    else:
        body = messages.added_up(messages.events(answer)) if stream else answer.json()
        assert body["stop_reason"] == "max_tokens"
        assert [block["type"] for block in body["content"]] == ["thinking"]


def cut(path: str) -> dict[str, Any]:
    return {"max_tokens": 5} if path == MESSAGES else {}


def response_of(answer: httpx.Response, stream: bool) -> Any:
    if not stream:
        return answer.json()
    return json.loads(answer.text.rstrip().rpartition("\ndata: ")[2])["response"]


@pytest.mark.parametrize("said", [ANSWER, CALL, "Hm" + CALL])
async def test_a_response_has_a_reasoning_item_streamed_or_whole(serve: Serve, said: str) -> None:
    tools = [{"type": "function", "name": "weather", "parameters": {"type": "object"}}]
    whole = (await post(serve(OPENED, said), RESPONSES, tools=tools)).json()
    streamed = await post(serve(OPENED, said), RESPONSES, tools=tools, stream=True)
    ended = response_of(streamed, stream=True)
    for body in (whole, ended):
        Response.model_validate(body)
        for item in body["output"]:
            item.pop("id"), item.pop("call_id", None)
    assert whole["output"] == ended["output"]
    kinds = [item["type"] for item in whole["output"]]
    thought = [] if said == CALL else ["reasoning"]
    assert kinds == [*thought, "message" if said == ANSWER else "function_call"]
    details = whole["usage"]["output_tokens_details"]
    assert (
        details
        == ended["usage"]["output_tokens_details"]
        == {"reasoning_tokens": said.index("<t") if said != ANSWER else 21}
    )
    if thought:
        assert whole["output"][0]["content"][0]["text"] == said.partition("<")[0].strip()
    assert all(item["status"] == "completed" for item in whole["output"])


async def test_the_events_of_a_reasoning_item_are_openais(serve: Serve) -> None:
    answer = await post(serve(OPENED, "Hm\n</think>\nBlue"), RESPONSES, stream=True)
    found = [json.loads(block.partition("\ndata: ")[2]) for block in answer.text.rstrip().split("\n\n")]
    kinds: list[str] = []
    for number, event in enumerate(found):
        TypeAdapter(ResponseStreamEvent).validate_python(event)
        assert event["sequence_number"] == number
        name = event["type"].removeprefix("response.")
        if kinds[-1:] != [name]:
            kinds.append(name)
    item = [
        "output_item.added",
        "content_part.added",
        "KIND.delta",
        "KIND.done",
        "content_part.done",
        "output_item.done",
    ]
    expected = [name.replace("KIND", kind) for kind in ("reasoning_text", "output_text") for name in item]
    assert kinds == ["created", "in_progress", *expected, "completed"]
    assert [event["output_index"] for event in found if "output_index" in event] == sorted(
        event["output_index"] for event in found if "output_index" in event
    )
    assert "logprobs" not in next(
        event for event in found if event["type"] == "response.reasoning_text.delta"
    )


async def test_a_message_has_a_thinking_block_streamed_or_whole(serve: Serve) -> None:
    whole = (await post(serve(OPENED), MESSAGES)).json()
    streamed = messages.added_up(messages.events(await post(serve(OPENED), MESSAGES, stream=True)))
    MessageBody.model_validate(whole)
    thinking = {"type": "thinking", "thinking": "Green? No.", "signature": "unsigned"}
    assert whole["content"] == streamed["content"] == [thinking, {"type": "text", "text": "Blue."}]
    for body in (whole, streamed):
        assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 21}


@pytest.mark.parametrize(
    ("fields", "shown"),
    [
        ({"thinking": {"type": "adaptive"}}, True),
        ({"thinking": {"type": "enabled", "budget_tokens": 9, "display": "omitted"}}, False),
        ({"thinking": {"type": "disabled"}}, False),
        ({"thinking": None}, False),
    ],
)
async def test_a_message_has_no_thinking_that_was_not_asked_for(
    serve: Serve, fields: dict[str, Any], shown: bool
) -> None:
    body = (await post(serve(OPENED), MESSAGES, **fields)).json()
    kinds = [block["type"] for block in body["content"]]
    assert kinds == ["thinking", "text"] if shown else ["text"]
    assert body["usage"]["output_tokens_details"] == {"thinking_tokens": 21}, "the model thinks all the same"


async def test_stop_strings_are_kept_from_the_engine(serve: Serve) -> None:
    house = serve(OPENED)
    [choice] = (await post(house, CHAT, stop=["."])).json()["choices"]
    assert (choice["message"]["reasoning_content"], choice["message"]["content"]) == ("Green? No.", "Blue")
    call = house.engine.calls[0]
    assert call["sampling"].stop is None and call["stream"], "or it would read on for seven tokens"
    body = (await post(serve(OPENED), MESSAGES, stop_sequences=["."])).json()
    assert (body["stop_reason"], body["stop_sequence"]) == ("stop_sequence", ".")


@pytest.mark.slow
async def test_a_format_holds_after_the_thinking(serve: Serve) -> None:
    house = serve(OPENED, 'Hm {\n</think>\n\n{"a":1}')
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}
    [choice] = (await post(house, CHAT, response_format=wanted)).json()["choices"]
    assert (choice["message"]["content"], choice["message"]["reasoning_content"]) == ('{"a":1}', "Hm {")
    call = house.engine.calls[0]
    assert json.loads(call["json_schema"]) == SCHEMA and call["thinks"].inside
    same = {"type": "array", "items": {"const": 1}, "minItems": 2, "uniqueItems": True}
    loose = {"type": "json_schema", "json_schema": {"name": "x", "schema": same, "strict": False}}
    house = serve(OPENED, "Two ones.\n</think>\n\n[1,1]")
    [choice] = (await post(house, CHAT, response_format=loose)).json()["choices"]
    assert "non-unique" in choice["schema_error"], "the answer is checked without its thinking"


@pytest.mark.slow
async def test_a_schema_that_no_answer_obeys_is_refused_in_the_librarys_words(serve: Serve) -> None:
    never = {**SCHEMA, "minProperties": 2}
    wanted = {"type": "json_schema", "json_schema": {"name": "x", "schema": never}}
    house = serve(OPENED)
    await house.load()
    async with house.client() as client:
        answer = await client.post(CHAT, json=ask(response_format=wanted))
    error = assert_openai_error(answer, 400, None)
    assert error["message"].startswith("response_format: the schema cannot be enforced: Unsatisfiable")
    assert "WRITTEN" not in error["message"] and "think" not in error["message"]


async def test_the_log_counts_the_thinking(
    serve: Serve, make_house: Callable[..., House], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    await post(make_house(), CHAT)
    await post(serve(OPENED), CHAT)
    lines = [record.getMessage() for record in caplog.records if "event=request" in record.getMessage()]
    assert "thinking_tokens" not in lines[0] and lines[1].endswith(" thinking_tokens=21")
    assert "Green" not in caplog.text


async def test_text_that_is_continued_without_a_template_is_as_it_comes(serve: Serve) -> None:
    house = serve(OPENED)
    await house.load()
    async with house.client() as client:
        answer = await client.post("/v1/completions", json={"model": MODEL, "prompt": "<think>"})
    assert answer.json()["choices"][0]["text"] == ANSWER and house.engine.calls[0]["thinks"] is None
