"""Answers of POST /v1/messages as Anthropic's clients see them."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from api.dialects.messages.answer import MessageBody
from api.engine.delta import Delta
from api.errors import EngineFailed
from api.ledger.key_file import create_key
from api.ledger.keys import Limits
from tests.support.api import MODEL, FakeEngine, House
from tests.support.messages import TOOL, URL, added_up, error_of, events, post, says, wants

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
CALL = '<tool_call>{"name": "weather", "arguments": {"city": "Paris"}}</tool_call>'


async def test_a_whole_answer_byte_for_byte(make_house: MakeHouse) -> None:
    answer = await post(make_house(), wants())
    id = answer.json()["id"]
    assert id.startswith("msg_")
    assert answer.text == (
        f'{{"id":"{id}","type":"message","role":"assistant","model":"tiny-docs",'
        '"content":[{"type":"text","text":"Hello world"}],"stop_reason":"end_turn","stop_sequence":null,'
        '"usage":{"input_tokens":22,"cache_creation_input_tokens":0,"cache_read_input_tokens":0,'
        '"output_tokens":3}}'
    )


async def test_a_stream_byte_for_byte(make_house: MakeHouse) -> None:
    answer = await post(make_house(), wants(stream=True))
    assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
    id = events(answer)[0]["message"]["id"]
    usage = '"usage":{"input_tokens":22,"cache_creation_input_tokens":0,"cache_read_input_tokens":0'
    assert answer.text == (
        'event: message_start\ndata: {"type":"message_start","message":{'
        f'"id":"{id}","type":"message","role":"assistant","model":"tiny-docs","content":[],'
        f'"stop_reason":null,"stop_sequence":null,{usage},"output_tokens":1}}}}}}\n\n'
        'event: content_block_start\ndata: {"type":"content_block_start","index":0,'
        '"content_block":{"type":"text","text":""}}\n\n'
        'event: ping\ndata: {"type":"ping"}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":"Hello"}}\n\n'
        'event: content_block_delta\ndata: {"type":"content_block_delta","index":0,'
        '"delta":{"type":"text_delta","text":" world"}}\n\n'
        'event: content_block_stop\ndata: {"type":"content_block_stop","index":0}\n\n'
        'event: message_delta\ndata: {"type":"message_delta",'
        f'"delta":{{"stop_reason":"end_turn","stop_sequence":null}},{usage},"output_tokens":3}}}}\n\n'
        'event: message_stop\ndata: {"type":"message_stop"}\n\n'
    )


@pytest.mark.parametrize("answer", ["Hello", "", f"See: {CALL}", CALL, CALL + CALL])
@pytest.mark.parametrize("reason", ["stop", "length"])
async def test_a_stream_adds_up_to_the_whole_answer(make_house: MakeHouse, answer: str, reason: str) -> None:
    def without_ids(message: dict[str, Any]) -> dict[str, Any]:
        blocks = [{**block, "id": ""} for block in message["content"]]
        return {**message, "id": "", "content": blocks}

    asked = wants(tools=[TOOL], max_tokens=len(answer) + 1)
    whole = (await post(make_house(says(answer, reason)), asked)).json()
    found = events(await post(make_house(says(answer, reason)), asked | {"stream": True}))
    assert without_ids(added_up(found)) == without_ids(whole)
    assert MessageBody.model_validate(whole).stop_reason == (
        "max_tokens" if reason == "length" else "tool_use" if CALL in answer else "end_turn"
    )


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("text", "reason", "stop", "expected"),
    [
        ("Hi", "stop", None, ("end_turn", None)),
        ("Hi", "stop", "END", ("stop_sequence", "END")),
        ("Hi", "length", None, ("model_context_window_exceeded", None)),  # long before max_tokens
        (CALL, "stop", None, ("tool_use", None)),
        (CALL, "stop", "END", ("tool_use", None)),  # the call is whole
        (CALL[:60], "stop", "END", ("stop_sequence", "END")),  # no client may run it
    ],
)
async def test_an_answer_says_why_it_ended(
    make_house: MakeHouse, stream: bool, text: str, reason: str, stop: str | None, expected: tuple[str, Any]
) -> None:
    answer = await post(make_house(says(text, reason, stop)), wants(tools=[TOOL], stream=stream))
    ended = events(answer)[-2]["delta"] if stream else answer.json()
    assert (ended["stop_reason"], ended["stop_sequence"]) == expected


async def test_a_call_that_was_cut_is_text_in_a_whole_answer(make_house: MakeHouse) -> None:
    body = (await post(make_house(says(CALL[:60], "length")), wants(tools=[TOOL]))).json()
    assert body["content"] == [{"type": "text", "text": '{"name": "weather", "arguments": {"city": "Paris"'}]


@pytest.mark.parametrize("stream", [False, True])
async def test_cached_tokens_of_the_prompt_are_counted_apart(make_house: MakeHouse, stream: bool) -> None:
    engine = FakeEngine([Delta("Hi", 1, None, cached_tokens=16), Delta("", 1, "stop")])
    answer = await post(make_house(engine), wants(stream=stream))
    usage = (events(answer)[-2] if stream else answer.json())["usage"]
    assert (usage["input_tokens"], usage["cache_read_input_tokens"]) == (6, 16)


async def test_failure_in_a_stream_is_its_last_event(make_house: MakeHouse) -> None:
    engine = FakeEngine(fail_before=(1, EngineFailed("dead")))
    answer = await post(make_house(engine), wants(stream=True))
    *_, stopped, last = events(answer)
    assert stopped == {"type": "content_block_stop", "index": 0}
    assert last == {
        "type": "error",
        "error": {"type": "api_error", "message": "dead"},
        "request_id": answer.headers["request-id"],
    }
    answer = await post(make_house(FakeEngine(fail_before=(0, EngineFailed("dead")))), wants(stream=True))
    assert error_of(answer, 503, "api_error") == "dead"


async def test_tokens_are_counted_as_the_answer_will_count_them(make_house: MakeHouse) -> None:
    house, asked = make_house(FakeEngine(max_model_len=4096)), wants(system="Be kind.", tools=[TOOL])
    whole = (await post(house, asked)).json()
    del asked["max_tokens"]
    counted = await post(house, asked, f"{URL}/count_tokens?beta=true")
    assert counted.json() == {"input_tokens": whole["usage"]["input_tokens"]}
    assert len(house.engine.calls) == 1, "nothing is generated to count"
    missing = await post(house, {"model": MODEL}, f"{URL}/count_tokens")
    assert "messages" in error_of(missing, 400, "invalid_request_error")


async def test_a_count_costs_the_key_a_request_and_no_tokens(make_house: MakeHouse, tmp_path: Path) -> None:
    keys = tmp_path / "keys.json"
    secret = create_key(keys, "ann", Limits(requests_per_minute=1, tokens_per_minute=100))
    house, headers = make_house(keys_file=keys), {"x-api-key": secret}
    asked = wants()
    del asked["max_tokens"]
    assert (await post(house, asked, f"{URL}/count_tokens", headers=headers)).status_code == 200
    again = await post(house, asked, f"{URL}/count_tokens", headers=headers)
    error_of(again, 429, "rate_limit_error")
    assert again.headers["x-ratelimit-remaining-tokens"] == "100"


@pytest.mark.parametrize(
    "text", ["", "plain", 'quo"te \\ back', "new\nline\r\t\x00\x1f", "\u2028 é 🙂", "\n\n"]
)
async def test_any_text_is_one_event(make_house: MakeHouse, text: str) -> None:
    engine = FakeEngine([Delta("x", 1, None), Delta(text, 1, None), Delta("", 1, "stop")])
    found = events(await post(make_house(engine), wants(stream=True)))
    assert added_up(found)["content"] == [{"type": "text", "text": "x" + text}]


@pytest.mark.parametrize("stream", [False, True])
async def test_an_answer_says_how_it_disobeys_a_schema_that_is_not_strict(
    make_house: MakeHouse, stream: bool
) -> None:
    unique = {"name": "f", "input_schema": {"properties": {"a": {"type": "array", "uniqueItems": True}}}}
    call = '{"name": "f", "arguments": {"a": [1, 1]}}'
    asked = wants(tools=[unique], tool_choice={"type": "any"}, stream=stream)
    answer = await post(make_house(says(call)), asked)
    ended = events(answer)[-2]["delta"] if stream else answer.json()
    assert ended["stop_reason"] == "tool_use" and "unique" in ended["schema_error"]
    strict = wants(tools=[{**unique, "strict": True}], tool_choice={"type": "any"})
    assert "uniqueItems" in error_of(await post(make_house(says(call)), strict), 400, "invalid_request_error")


async def test_answers_have_their_id_where_anthropics_clients_look(make_house: MakeHouse) -> None:
    for body in (wants(), wants(stream=True)):
        answer = await post(make_house(says("Hi")), body)
        assert answer.headers["request-id"] == answer.headers["x-request-id"]
    house = make_house()
    await house.load()
    async with house.client() as client:
        assert "request-id" not in (await client.get("/v1/models")).headers
