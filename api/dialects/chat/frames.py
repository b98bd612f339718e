"""Server-sent events of one stream, written from templates made once for it.

A chunk costs one JSON string escape instead of building and dumping pydantic objects;
tests/api hold each frame against schema/.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import orjson

from api.dialects.chat.schema import ChatFinishReason
from api.errors import ApiError
from api.generation.logprobs import completion_logprobs
from api.generation.schema import FinishReason, TokenLogprob, Usage
from api.generation.tool_calls import CallParser, Piece

DONE = b"data: [DONE]\n\n"


class Frames(Protocol):
    """For every choice text... and finish, then end; or failed.

    logprobs: of the tokens that the frame brings.
    """

    def first(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """A choice's first text."""

    def text(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes: ...

    def finish(
        self, reason: FinishReason, index: int = 0, logprobs: Sequence[TokenLogprob] = ()
    ) -> bytes: ...

    def end(self, usage: Usage) -> bytes:
        """After the last choice."""

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed after its first token."""


class _Chunks:
    """What the chunks of both endpoints have around their choice."""

    def __init__(self, head: dict[str, Any], object: str, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._head = b"data: " + orjson.dumps({**head, "object": object})[:-1] + b',"choices":['
        # OpenAI: with include_usage every chunk has the field, null until the last.
        self._tail = (b'],"usage":null}' if include_usage else b"]}") + b"\n\n"

    def end(self, usage: Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + usage.model_dump_json().encode() + b"}\n\n" + DONE

    def failed(self, error: ApiError) -> bytes:
        """No DONE follows."""
        return b"data: " + error.body() + b"\n\n"


class ChatFrames(_Chunks):
    def __init__(self, head: dict[str, Any], choices: int, *, include_usage: bool) -> None:
        super().__init__(head, "chat.completion.chunk", include_usage)
        self._open = [self._head + b'{"index":%d,"delta":{' % index for index in range(choices)]
        self._with_role = [opened + b'"role":"assistant","content":' for opened in self._open]
        self._content = [opened + b'"content":' for opened in self._open]
        self._close = b'},"logprobs":null,"finish_reason":null}' + self._tail

    def first(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        """Only here is the role named."""
        return self._with_role[index] + orjson.dumps(text) + self._closed(logprobs)

    def text(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        return self._content[index] + orjson.dumps(text) + self._closed(logprobs)

    def finish(
        self, reason: ChatFinishReason, index: int = 0, logprobs: Sequence[TokenLogprob] = ()
    ) -> bytes:
        told = b'},"logprobs":%b,"finish_reason":"%b"}' % (_chat_json(logprobs), reason.encode())
        return self._open[index] + told + self._tail

    def _closed(self, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not logprobs:
            return self._close
        return b'},"logprobs":' + _chat_json(logprobs) + b',"finish_reason":null}' + self._tail


class CallFrames(ChatFrames):
    """As ChatFrames, for answers that may call functions: what is held back comes with a later frame."""

    def __init__(self, head: dict[str, Any], parsers: Sequence[CallParser], *, include_usage: bool) -> None:
        """parsers: one a choice."""
        super().__init__(head, len(parsers), include_usage=include_usage)
        self._parsers = parsers
        self._silent = set(range(len(parsers)))
        self._untold: list[list[TokenLogprob]] = [[] for _ in parsers]

    def text(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        self._untold[index] += logprobs
        return self._told(self._parsers[index].feed(text), index)

    first = text

    def finish(
        self, reason: ChatFinishReason, index: int = 0, logprobs: Sequence[TokenLogprob] = ()
    ) -> bytes:
        self._untold[index] += logprobs
        rest = self._parsers[index].end()
        if index in self._silent and not rest:
            rest = [Piece("")]
        frames = self._told(rest, index)
        return frames + super().finish(self._parsers[index].reason(reason), index, self._untold[index])

    def _told(self, pieces: Sequence[Piece], index: int) -> bytes:
        frames = b""
        for piece in pieces:
            logprobs, self._untold[index] = self._untold[index], []
            if piece.call is not None:
                delta = orjson.dumps(_call_delta(piece, first=index in self._silent))[1:-1]
                frames += self._open[index] + delta + self._closed(logprobs)
            elif index in self._silent:
                frames += super().first(piece.text, index, logprobs)
            else:
                frames += super().text(piece.text, index, logprobs)
            self._silent.discard(index)
        return frames


def _call_delta(piece: Piece, *, first: bool) -> dict[str, Any]:
    call: dict[str, Any] = {"index": piece.call, "function": {"arguments": piece.text}}
    if piece.name is not None:
        call |= {"id": piece.id, "type": "function"}
        call["function"] = {"name": piece.name, "arguments": piece.text}
    role = {"role": "assistant", "content": None} if first else {}
    return {**role, "tool_calls": [call]}


class CompletionFrames(_Chunks):
    def __init__(self, head: dict[str, Any], choices: int, *, include_usage: bool) -> None:
        super().__init__(head, "text_completion", include_usage)
        self._open = [self._head + b'{"index":%d,"text":' % index for index in range(choices)]
        self._close = b',"logprobs":null,"finish_reason":null}' + self._tail
        self._offsets = [0] * choices  # characters of the tokens told so far

    def text(self, text: str, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        opened = self._open[index] + orjson.dumps(text)
        if not logprobs:
            return opened + self._close
        return opened + b',"logprobs":%b,"finish_reason":null}' % self._json(index, logprobs) + self._tail

    first = text

    def finish(self, reason: FinishReason, index: int = 0, logprobs: Sequence[TokenLogprob] = ()) -> bytes:
        told = b'"","logprobs":%b,"finish_reason":"%b"}' % (self._json(index, logprobs), reason.encode())
        return self._open[index] + told + self._tail

    def _json(self, index: int, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not logprobs:
            return b"null"
        told = completion_logprobs(logprobs, self._offsets[index])
        self._offsets[index] = told.text_offset[-1] + len(told.tokens[-1])
        return told.model_dump_json().encode()


def _chat_json(logprobs: Sequence[TokenLogprob]) -> bytes:
    if not logprobs:
        return b"null"
    return orjson.dumps({"content": [entry.model_dump() for entry in logprobs], "refusal": None})
