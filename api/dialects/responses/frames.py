"""The events of a stream of /v1/responses. Its output is a list of items: thinking, a message, calls.

A piece of text costs one JSON string escape; all other events are rare.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.responses.answer import ItemStatus, ResponseBody, ResponseUsage
from api.engine.messages import Call
from api.errors import ApiError
from api.generation.events import FinishReason, Usage
from api.generation.logprobs import TokenLogprob

# The event that carries a piece of an item's text, by the kind of item.
_DELTAS: dict[str, dict[str, Any]] = {
    "message": {"type": "response.output_text.delta", "logprobs": []},
    "reasoning": {"type": "response.reasoning_text.delta"},
}


class ResponseFrames:
    """Write the events of one answer, and keep the response that they describe."""

    def __init__(self, response: ResponseBody) -> None:
        """response: before anything was generated; events complete it."""
        self._response = response.model_dump()
        self._numbers = 0  # of events that have been made
        self._item: dict[str, Any] = {}  # the one that is open
        self._written: list[str] = []  # its text or arguments
        self._delta = b""  # the beginning of an event with a piece of it
        self._reason: FinishReason = "stop"

    def start(self, usage: Usage) -> bytes:
        begun = ("response.created", "response.in_progress")
        return b"".join([self._event(name, response=self._response) for name in begun])

    def count(self, usage: Usage) -> None:
        return None

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        opened = self._open(reasoning_item("")) if first else b""
        return opened + self._piece(text)

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        opened = self._open(message_item("")) if first else b""
        return opened + (self._text(text, logprobs) if logprobs else self._piece(text))

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        return self._open(call_item(call)) + self._piece(call.arguments)

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        return self._piece(text)

    def part_end(self, index: int, whole: bool) -> bytes:
        item, written = self._item, "".join(self._written)
        item["status"] = "completed" if whole else "incomplete"
        where: dict[str, Any] = {"item_id": item["id"], "output_index": len(self._response["output"])}
        if item["type"] in _DELTAS:
            part = item["content"][0]
            part["text"] = written
            where["content_index"] = 0
            logprobs = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
            frames = self._event(f"response.{part['type']}.done", **where, text=written, **logprobs)
            frames += self._event("response.content_part.done", **where, part=part)
        else:
            item["arguments"] = written
            frames = self._event(
                "response.function_call_arguments.done", **where, name=item["name"], arguments=written
            )
        number = len(self._response["output"])
        self._response["output"].append(item)
        return frames + self._event("response.output_item.done", output_index=number, item=item)

    def schema_error(self, index: int, error: str) -> None:
        self._response["schema_error"] = error

    def finish(
        self, index: int, reason: FinishReason, logprobs: Sequence[TokenLogprob], stop: str | None
    ) -> bytes:
        self._reason = reason
        return b""

    def end(self, usage: Usage) -> bytes:
        self._response |= ended(self._reason, usage)
        return self._event(f"response.{self._response['status']}", response=self._response)

    def error(self, error: ApiError) -> bytes:
        failure = {"code": "server_error", "message": error.message}
        self._response |= {"status": "failed", "error": failure}
        return self._event("response.failed", response=self._response)

    def _piece(self, text: str) -> bytes:
        """Return the event of a piece of the open item."""
        if not text:
            return b""
        self._written.append(text)
        frame = self._delta + orjson.dumps(text) + b',"sequence_number":%d}\n\n' % self._numbers
        self._numbers += 1
        return frame

    def _text(self, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        """Return the event of a piece of the open text with the logprobs of its tokens."""
        item = self._item
        item["content"][0]["logprobs"] += logprobs
        self._written.append(text)
        return self._event(
            "response.output_text.delta",
            item_id=item["id"],
            output_index=len(self._response["output"]),
            content_index=0,
            logprobs=logprobs,
            delta=text,
        )

    def _open(self, item: dict[str, Any]) -> bytes:
        self._item, self._written = item, []
        number, delta = len(self._response["output"]), _DELTAS.get(item["type"])
        added = {**item, "content": []} if delta else item
        frames = self._event("response.output_item.added", output_index=number, item=added)
        where: dict[str, Any] = {"item_id": item["id"], "output_index": number}
        if delta:
            where["content_index"] = 0
            frames += self._event("response.content_part.added", **where, part=item["content"][0])
            self._delta = _beginning(**delta, **where)
        else:
            self._delta = _beginning("response.function_call_arguments.delta", **where)
        return frames

    def _event(self, type: str, **fields: Any) -> bytes:
        body = orjson.dumps({"type": type, **fields, "sequence_number": self._numbers})
        self._numbers += 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), body)


def _beginning(type: str, **fields: Any) -> bytes:
    """Return a delta's event up to its text."""
    return (
        b"event: %b\ndata: %b" % (type.encode(), orjson.dumps({"type": type, **fields})[:-1]) + b',"delta":'
    )


def message_item(
    text: str, status: ItemStatus = "in_progress", logprobs: Sequence[TokenLogprob] = ()
) -> dict[str, Any]:
    """Return an item of the output that holds text."""
    content = {"type": "output_text", "text": text, "annotations": [], "logprobs": [*logprobs]}
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "status": status,
        "role": "assistant",
        "content": [content],
    }


def reasoning_item(text: str, status: ItemStatus = "in_progress") -> dict[str, Any]:
    """Return an item of the output that holds thinking."""
    return {
        "id": f"rs_{uuid.uuid4().hex}",
        "type": "reasoning",
        "status": status,
        "summary": [],
        "content": [{"type": "reasoning_text", "text": text}],
    }


def call_item(call: Call, status: ItemStatus = "in_progress") -> dict[str, Any]:
    """Return an item of the output that is a call of a function."""
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "status": status,
        "call_id": call.id,
        "name": call.name,
        "arguments": call.arguments,
    }


def ended(reason: FinishReason, usage: Usage) -> dict[str, Any]:
    """Return the fields of a response that is over."""
    cut = reason == "length"
    return {
        "status": "incomplete" if cut else "completed",
        "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
        "usage": ResponseUsage.of(usage).model_dump(),
    }
