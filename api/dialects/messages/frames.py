"""The events of a stream of /v1/messages. An answer is a list of content blocks: thinking, a text, calls.

A piece of text costs one JSON string escape; all other events are rare.
"""

from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.messages.answer import (
    UNSIGNED,
    Ending,
    MessageBody,
    MessageUsage,
    Text,
    Thinking,
    ToolUse,
    input_of,
)
from api.dialects.messages.errors import error_event
from api.engine.messages import Call
from api.errors import ApiError
from api.generation.events import Answer, FinishReason, Identity, Usage
from api.generation.logprobs import TokenLogprob

_PING = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageFrames:
    """Write the events of one answer."""

    def __init__(self, identity: Identity, max_tokens: int) -> None:
        self._identity = identity
        self._max_tokens = max_tokens
        self._blocks = 0  # that have been opened
        self._piece_head = b""  # an event with a piece of the open block, up to its text
        self._arguments: list[str] = []  # pieces of the open call
        self._thinks = False  # the open block is thinking
        self._called = False  # a call that can be run has ended
        self._answer = Answer()  # its text and calls are not kept

    def start(self, usage: Usage) -> bytes:
        return _event("message_start", message=MessageBody.begun(self._identity, usage).model_dump())

    def count(self, usage: Usage) -> None:
        return None

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        if not first:
            return self._piece(text)
        self._thinks = True
        return self._open(Thinking(thinking="", signature=""), "thinking_delta", "thinking") + self._piece(
            text
        )

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        if first:
            return self._open(Text(text=""), "text_delta", "text") + self._piece(text)
        return self._piece(text)

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        opened = self._open(ToolUse(id=call.id, name=call.name, input={}), "input_json_delta", "partial_json")
        return opened + self.arguments(index, number, call.arguments, logprobs)

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        self._arguments.append(text)
        return self._piece(text)

    def part_end(self, index: int, whole: bool) -> bytes:
        if self._arguments:
            self._called |= input_of("".join(self._arguments)) is not None
            self._arguments = []
        block, signed = self._blocks - 1, b""
        if self._thinks:
            self._thinks = False
            signature = {"type": "signature_delta", "signature": UNSIGNED}
            signed = _event("content_block_delta", index=block, delta=signature)
        return signed + _event("content_block_stop", index=block)

    def schema_error(self, index: int, error: str) -> None:
        self._answer.schema_error = error

    def finish(
        self, index: int, reason: FinishReason, logprobs: Sequence[TokenLogprob], stop: str | None
    ) -> bytes:
        self._answer.finish_reason, self._answer.stop = reason, stop
        return b""

    def end(self, usage: Usage) -> bytes:
        in_context = usage.completion_tokens >= self._max_tokens
        ending = Ending.of(self._answer, self._called, in_context)
        last = _event("message_delta", delta=ending.model_dump(), usage=MessageUsage.of(usage).model_dump())
        return last + _event("message_stop")

    def error(self, error: ApiError) -> bytes:
        return error_event(error)

    def _open(self, block: Thinking | Text | ToolUse, delta: str, field: str) -> bytes:
        """Begin a block. delta, field: the type of its pieces, and their field with the text."""
        index = self._blocks
        self._blocks += 1
        head = _event("content_block_delta", index=index, delta={"type": delta, field: ""})
        self._piece_head = head.removesuffix(b'""}}\n\n')
        opened = _event("content_block_start", index=index, content_block=block.model_dump())
        return opened + _PING if index == 0 else opened

    def _piece(self, text: str) -> bytes:
        """Return the event of a piece of the open block."""
        return self._piece_head + orjson.dumps(text) + b"}}\n\n" if text else b""


def _event(type: str, **fields: Any) -> bytes:
    return b"event: %b\ndata: %b\n\n" % (type.encode(), orjson.dumps({"type": type, **fields}))
