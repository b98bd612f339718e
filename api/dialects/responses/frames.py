"""The events of a stream of /v1/responses. Its output is a list of items: a message, calls, or both.

A piece of text costs one JSON string escape, as in sse.py; all other events are rare.
"""

import uuid
from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.chat.schema import ChatFinishReason
from api.dialects.responses.schema import ItemStatus, ResponseBody, ResponseUsage
from api.errors import ApiError
from api.generation.schema import TokenLogprob, Usage
from api.generation.tool_calls import CallParser, Piece


class ResponseFrames:
    """For one answer: text..., finish, end; or failed."""

    def __init__(self, response: ResponseBody, parser: CallParser | None) -> None:
        """response: as it is before anything was generated. parser: None where nothing can be called."""
        self.response = response.model_dump()  # at the end: the whole answer
        self._parser = parser
        self._numbers = 0
        self._item: dict[str, Any] | None = None  # that is being written
        self._written: list[str] = []  # its text or arguments
        self._delta = b""  # what stands before a piece of it
        self._status: ItemStatus = "completed"

    def first(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        begun = [
            self._event(f"response.{name}", response=self.response) for name in ("created", "in_progress")
        ]
        return b"".join(begun) + self.text(text)

    def text(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        if self._parser is None:
            return self._piece(Piece(text)) if text else b""
        return b"".join(map(self._piece, self._parser.feed(text)))

    def finish(
        self, reason: ChatFinishReason, index: int = 0, logprobs: Sequence[TokenLogprob] = ()
    ) -> bytes:
        self._status = "incomplete" if reason == "length" else "completed"
        frames = b"".join(map(self._piece, self._parser.end() if self._parser else ()))
        if self._item is None and not self.response["output"]:
            frames += self._piece(Piece(""))
        return frames + self._close(self._status)

    def end(self, usage: Usage) -> bytes:
        details = {"reason": "max_output_tokens"} if self._status == "incomplete" else None
        self.response |= {"status": self._status, "incomplete_details": details, "usage": _usage(usage)}
        return self._event(f"response.{self._status}", response=self.response)

    def failed(self, error: ApiError) -> bytes:
        told = {"code": "server_error", "message": error.message}
        self.response |= {"status": "failed", "error": told}
        return self._close("incomplete") + self._event("response.failed", response=self.response)

    def _piece(self, piece: Piece) -> bytes:
        """Of the open item, or of a new one."""
        frames = b""
        if self._item is None or piece.name is not None:
            frames = self._close("completed") + self._open(piece)
        if not piece.text:
            return frames
        self._written.append(piece.text)
        frames += self._delta + orjson.dumps(piece.text) + b',"sequence_number":%d}\n\n' % self._numbers
        self._numbers += 1
        return frames

    def _open(self, piece: Piece) -> bytes:
        output = self.response["output"]
        item = _message() if piece.name is None else _function_call(piece)
        added = {**item, "content": []} if piece.name is None else item
        frames = self._event("response.output_item.added", output_index=len(output), item=added)
        where: dict[str, Any] = {"item_id": item["id"], "output_index": len(output)}
        if piece.name is None:
            where["content_index"] = 0
            frames += self._event("response.content_part.added", **where, part=item["content"][0])
            self._delta = _opened("response.output_text.delta", **where, logprobs=[])
        else:
            self._delta = _opened("response.function_call_arguments.delta", **where)
        self._item, self._written = item, []
        return frames

    def _close(self, status: ItemStatus) -> bytes:
        """The open item's last events, if there is one."""
        item, self._item = self._item, None
        if item is None:
            return b""
        written, item["status"] = "".join(self._written), status
        where: dict[str, Any] = {"item_id": item["id"], "output_index": len(self.response["output"])}
        if item["type"] == "message":
            part = item["content"][0]
            part["text"] = written
            where["content_index"] = 0
            frames = self._event("response.output_text.done", **where, text=written, logprobs=[])
            frames += self._event("response.content_part.done", **where, part=part)
        else:
            item["arguments"] = written
            frames = self._event(
                "response.function_call_arguments.done", **where, name=item["name"], arguments=written
            )
        number = len(self.response["output"])
        self.response["output"].append(item)
        return frames + self._event("response.output_item.done", output_index=number, item=item)

    def _event(self, type: str, **fields: Any) -> bytes:
        body = orjson.dumps({"type": type, **fields, "sequence_number": self._numbers})
        self._numbers += 1
        return b"event: %b\ndata: %b\n\n" % (type.encode(), body)


def _opened(type: str, **fields: Any) -> bytes:
    """A delta's event up to its text."""
    return (
        b"event: %b\ndata: %b" % (type.encode(), orjson.dumps({"type": type, **fields})[:-1]) + b',"delta":'
    )


def _message() -> dict[str, Any]:
    content = {"type": "output_text", "text": "", "annotations": [], "logprobs": []}
    return {
        "id": f"msg_{uuid.uuid4().hex}",
        "type": "message",
        "status": "in_progress",
        "role": "assistant",
        "content": [content],
    }


def _function_call(piece: Piece) -> dict[str, Any]:
    return {
        "id": f"fc_{uuid.uuid4().hex}",
        "type": "function_call",
        "status": "in_progress",
        "call_id": piece.id,
        "name": piece.name,
        "arguments": "",
    }


def _usage(usage: Usage) -> dict[str, Any]:
    return ResponseUsage(
        input_tokens=usage.prompt_tokens,
        output_tokens=usage.completion_tokens,
        total_tokens=usage.total_tokens,
    ).model_dump()
