"""POST /v1/responses: items in, items out, and the events of a stream in OpenAI's order."""

import json
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from api.dialects.responses.answer import ResponseBody
from api.dialects.responses.schema import ResponseRequest
from api.dialects.rules import apply
from api.engine.delta import Delta
from api.errors import EngineFailed
from tests.support.api import KEY, MODEL, FakeEngine, House, assert_openai_error

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
TOOL = {"type": "function", "name": "weather", "parameters": {"type": "object"}, "strict": True}
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


def wants(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "input": "Hi"} | fields


def says(answer: str, reason: Any = "stop") -> FakeEngine:
    deltas = [*(Delta(character, 1, None) for character in answer), Delta("", 1, reason)]
    return FakeEngine(deltas=deltas, max_model_len=4096)


async def post(house: House, body: dict[str, Any]) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        answer: httpx.Response = await client.post("/v1/responses", json=body)
        return answer


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    assert [event["sequence_number"] for event in found] == list(range(len(found)))
    return found


def without_ids(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_ids(v) for k, v in value.items() if k not in ("id", "call_id", "created_at")}
    return [without_ids(part) for part in value] if isinstance(value, list) else value


async def test_answer_is_a_response_that_says_what_was_asked(make_house: MakeHouse) -> None:
    metadata = {"a": "b"}
    answer = await post(make_house(), wants(instructions="Be kind.", metadata=metadata, temperature=0.5))
    body = ResponseBody.model_validate(answer.json())
    assert body.id.startswith("resp_") and body.model == MODEL and body.status == "completed"
    [item] = body.output
    assert item.type == "message" and item.content[0].text == "Hello world"
    assert (body.metadata, body.instructions, body.temperature) == (metadata, "Be kind.", 0.5)
    assert (body.store, body.tool_choice, body.tools, body.usage and body.usage.output_tokens) == (
        False,
        "auto",
        [],
        3,
    )
    assert "schema" in answer.json()["text"]["format"]


async def test_stream_has_openais_events_in_their_order(make_house: MakeHouse) -> None:
    found = events(await post(make_house(), wants(stream=True)))
    assert [event["type"].removeprefix("response.") for event in found] == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        "output_text.delta",
        "output_text.delta",
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "completed",
    ]
    assert found[0]["response"]["output"] == [] and found[0]["response"]["status"] == "in_progress"
    assert found[2]["item"]["content"] == []
    assert "".join(event["delta"] for event in found if event["type"].endswith("text.delta")) == "Hello world"
    assert found[6]["text"] == found[7]["part"]["text"] == "Hello world"
    assert len({event["item_id"] for event in found if "item_id" in event}) == 1
    assert ResponseBody.model_validate(found[-1]["response"]).output[0].model_dump() == found[8]["item"]


@pytest.mark.parametrize("answer", ["Hello", "", f"See: {CALL}", CALL, CALL + CALL])
@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_a_stream_ends_with_what_the_whole_answer_is(
    make_house: MakeHouse, answer: str, reason: str
) -> None:
    whole = (await post(make_house(says(answer, reason)), wants(tools=[TOOL]))).json()
    found = events(await post(make_house(says(answer, reason)), wants(tools=[TOOL], stream=True)))
    assert without_ids(found[-1]["response"]) == without_ids(whole)
    assert whole["status"] == {"stop": "completed", "length": "incomplete"}[reason]
    assert (whole["incomplete_details"] is None) == (reason == "stop")
    items = [event["item"] for event in found if event["type"] == "response.output_item.done"]
    assert items == found[-1]["response"]["output"]
    for number, item in enumerate(items):
        deltas = [e["delta"] for e in found if e["type"].endswith(".delta") and e["output_index"] == number]
        assert "".join(deltas) == (
            item["arguments"] if item["type"] == "function_call" else item["content"][0]["text"]
        )


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_the_cached_tokens_of_the_prompt(make_house: MakeHouse, stream: bool) -> None:
    engine = FakeEngine([Delta("Hi", 1, None, cached_tokens=16), Delta("", 1, "stop")])
    answer = await post(make_house(engine), wants(stream=stream))
    usage = (events(answer)[-1]["response"] if stream else answer.json())["usage"]
    assert usage["input_tokens_details"] == {"cached_tokens": 16, "cache_write_tokens": 0}


@pytest.mark.parametrize("fields", [{"top_logprobs": 1}, {"include": ["message.output_text.logprobs"]}])
async def test_logprobs_are_in_the_text_for_who_asks_streamed_or_whole(
    make_house: MakeHouse, fields: dict[str, Any]
) -> None:
    row = [(71, -0.5), (71, -0.5)]
    deltas = [Delta("h", 1, None, logprobs=[row]), Delta("i", 1, None, logprobs=[row])]
    ended = Delta("", 1, "stop", logprobs=[[(258, 0.0), (258, 0.0)]])  # no part of the text
    houses = [make_house(FakeEngine([*deltas, ended])) for _ in range(2)]
    whole = (await post(houses[0], wants(**fields))).json()
    answer = await post(houses[1], wants(**fields, stream=True))
    assert "x-ignored-fields" not in answer.headers
    found = events(answer)
    assert without_ids(found[-1]["response"]) == without_ids(whole)
    [content] = whole["output"][0]["content"]
    assert [(entry["token"], entry["logprob"]) for entry in content["logprobs"]] == [("h", -0.5), ("h", -0.5)]
    assert content["logprobs"][0]["top_logprobs"][0]["token"] == "h"
    deltas_sent = [event for event in found if event["type"] == "response.output_text.delta"]
    assert [(event["delta"], len(event["logprobs"])) for event in deltas_sent] == [("h", 1), ("i", 1)]
    assert [house.engine.calls[0]["logprobs"] for house in houses] == [fields.get("top_logprobs", 0)] * 2


async def test_calls_are_items_of_their_own(make_house: MakeHouse) -> None:
    found = events(await post(make_house(says(f"See: {CALL}")), wants(tools=[TOOL], stream=True)))
    text, call = found[-1]["response"]["output"]
    assert text["content"][0]["text"] == "See: "
    assert (call["type"], call["name"], call["arguments"]) == (
        "function_call",
        "weather",
        '{"city": "Paris"}',
    )
    [done] = [event for event in found if event["type"] == "response.function_call_arguments.done"]
    assert (done["arguments"], done["output_index"]) == (call["arguments"], 1)


async def test_failure_in_a_stream_is_its_last_event(make_house: MakeHouse) -> None:
    engine = FakeEngine(fail_before=(1, EngineFailed("dead")))
    last = events(await post(make_house(engine), wants(stream=True)))[-1]
    assert last["type"] == "response.failed"
    assert last["response"]["error"] == {"code": "server_error", "message": "dead"}
    assert last["response"]["output"][0]["status"] == "incomplete"
    answer = await post(make_house(FakeEngine(fail_before=(0, EngineFailed("dead")))), wants(stream=True))
    assert_openai_error(answer, 503, "engine_failed")


def test_items_are_the_conversation_that_chat_has() -> None:
    answer = {"id": "m", "type": "message", "status": "completed", "role": "assistant"}
    text = {"type": "output_text", "text": "Hm", "annotations": [], "logprobs": []}
    calls = [
        {
            "type": "function_call",
            "id": "i",
            "call_id": id,
            "name": "f",
            "arguments": "{}",
            "status": "completed",
        }
        for id in "ab"
    ]
    body, _ = apply(
        ResponseRequest,
        wants(
            instructions="Be kind.",
            input=[
                {"role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
                {**answer, "content": [text]},
                *calls,
                {"type": "function_call_output", "call_id": "b", "output": "3"},
            ],
        ),
    )
    request = ResponseRequest.model_validate(body)
    system, user, said, called, result = request.messages()
    assert (system.role, system.text, user.text, said.text) == ("system", "Be kind.", "Hi", "Hm")
    assert [call.id for call in called.calls] == ["a", "b"]
    assert (result.role, result.call_id, result.text) == ("tool", "b", "3")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"chat_template": "x"}, "chat_template"),
        ({"tools": [{"type": "functions", "name": "f"}]}, "tools.0.type"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "name": "f"}}, "tool_choice"),
        ({"input": []}, "input"),
        ({"input": [{"role": "user"}]}, "input.0.content"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0",
        ),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0"),
        ({"input": [{"type": "function_call_output", "call_id": "x", "output": "y"}]}, "input.0"),
        ({"text": {"format": {"type": "json_schema", "name": "x"}}}, "text.format.schema"),
        ({"text": {"format": {"type": "json_schema", "name": "x", "schema": {"not": {}}}}}, "text.format"),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata"),
        ({"metadata": {"a": "x" * 513}}, "metadata.a"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
        ({"n": 2}, "n"),
        ({"top_logprobs": 21}, "top_logprobs"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_what_is_not_served_is_refused_by_its_name(
    make_house: MakeHouse, fields: dict[str, Any], param: str | None
) -> None:
    house = make_house()
    answer = await post(house, wants(**fields))
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text
    assert house.engine.calls == []


@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items"), ("POST", "/" + "x" * 999)],
)
async def test_no_response_is_found_later_and_the_error_says_what_to_send_instead(
    make_house: MakeHouse, method: str, path: str
) -> None:
    async with make_house(key=KEY).client() as client:
        assert_openai_error(
            await client.request(method, f"/v1/responses/resp_1{path}"), 401, "invalid_api_key"
        )
    async with make_house().client() as client:
        error = assert_openai_error(
            await client.request(method, f"/v1/responses/resp_1{path}"), 404, "not_found"
        )
        error_of_turn = (await post(make_house(), wants(previous_response_id="resp_1"))).json()["error"]
    found, _, way_out = error["message"].partition(" not found. ")
    assert found == f"Response with id {('resp_1' + path)[:64]!r}" and "send the items" in way_out
    assert error_of_turn["message"].endswith(way_out), "as the request for the next turn is told"
