"""Requests of /v1/messages, and what Anthropic's clients read in the answers."""

import json
from typing import Any

import httpx

from api.engine.delta import Delta
from tests.support.api import MODEL, FakeEngine, House

URL = "/v1/messages"
TOOL = {"name": "weather", "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}}}


def wants(**fields: Any) -> dict[str, Any]:
    return {"model": MODEL, "max_tokens": 100, "messages": [{"role": "user", "content": "Hi"}]} | fields


def says(answer: str, reason: Any = "stop", stop: str | None = None) -> FakeEngine:
    last = Delta("", 1, reason, stop=stop)
    return FakeEngine([*(Delta(character, 1, None) for character in answer), last], max_model_len=4096)


async def post(house: House, body: dict[str, Any], url: str = URL, **options: Any) -> httpx.Response:
    await house.load()
    async with house.client(**options) as client:
        answer: httpx.Response = await client.post(url, json=body)
        return answer


def events(answer: httpx.Response) -> list[dict[str, Any]]:
    found = []
    for block in answer.text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        found.append(json.loads(data.removeprefix("data: ")))
        assert name == f"event: {found[-1]['type']}"
    return found


def added_up(found: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the message that a client's accumulator makes of a stream."""
    first, *rest, last = found
    message: dict[str, Any] = first["message"]
    pieces: list[list[str]] = []
    for event in rest:
        if event["type"] == "content_block_start":
            assert event["index"] == len(message["content"])
            message["content"].append(event["content_block"])
            pieces.append([])
        elif event["type"] == "content_block_delta":
            delta = event["delta"]
            if delta["type"] == "signature_delta":
                message["content"][event["index"]]["signature"] = delta["signature"]
                continue
            field = {"text_delta": "text", "thinking_delta": "thinking"}.get(delta["type"], "partial_json")
            pieces[event["index"]].append(delta[field])
        elif event["type"] == "content_block_stop":
            block, written = message["content"][event["index"]], "".join(pieces[event["index"]])
            kind = block["type"]
            block |= {"input": json.loads(written)} if kind == "tool_use" else {kind: written}
        elif event["type"] == "message_delta":
            message |= event["delta"] | {"usage": event["usage"]}
        else:
            assert event == {"type": "ping"}
    assert last == {"type": "message_stop"}
    return message


def error_of(answer: httpx.Response, status: int, type: str) -> str:
    """Check that an answer is an error as Anthropic writes it, and return its message."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert (set(body), body["type"]) == ({"type", "error", "request_id"}, "error")
    assert body["request_id"] == answer.headers["x-request-id"] == answer.headers["request-id"]
    assert (set(body["error"]), body["error"]["type"]) == ({"type", "message"}, type)
    message: str = body["error"]["message"]
    return message
