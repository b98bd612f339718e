"""Server-sent events of one chat stream, written from templates made once for the stream.

A chunk costs one JSON string escape instead of building and dumping pydantic objects;
tests/api hold each frame against schema/chat.py.
"""

import orjson

from api.errors import ApiError
from api.schema.chat import FinishReason, Usage

DONE = b"data: [DONE]\n\n"


class ChatFrames:
    """The frames of one stream, in the order: first, text..., finish, usage if asked, DONE."""

    def __init__(self, *, id: str, created: int, model: str, fingerprint: str, include_usage: bool) -> None:
        head = {
            "id": id,
            "object": "chat.completion.chunk",
            "created": created,
            "model": model,
            "system_fingerprint": fingerprint,
        }
        self._head = b"data: " + orjson.dumps(head)[:-1] + b',"choices":['
        # OpenAI: with include_usage every chunk has the field, null until the last.
        self._tail = (b'],"usage":null}' if include_usage else b"]}") + b"\n\n"
        self._text_head = self._head + b'{"index":0,"delta":{"content":'
        self._text_tail = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def first(self, text: str) -> bytes:
        """The first text; only here is the role named."""
        delta = b'{"index":0,"delta":{"role":"assistant","content":' + orjson.dumps(text)
        return self._head + delta + self._text_tail

    def text(self, text: str) -> bytes:
        return self._text_head + orjson.dumps(text) + self._text_tail

    def finish(self, reason: FinishReason) -> bytes:
        choice = b'{"index":0,"delta":{},"logprobs":null,"finish_reason":"%b"}' % reason.encode()
        return self._head + choice + self._tail

    def usage(self, usage: Usage) -> bytes:
        return self._head + b'],"usage":' + usage.model_dump_json().encode() + b"}\n\n"


def error_frame(error: ApiError) -> bytes:
    """The last event of a stream that failed after its first token; no DONE follows."""
    return b"data: " + error.body() + b"\n\n"
