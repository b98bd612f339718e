"""The chunks of a stream of /v1/chat/completions."""

from collections.abc import Sequence
from typing import Any

import orjson

from api.dialects.chunks import Chunks
from api.engine.messages import Call
from api.generation.events import FinishReason, Identity
from api.generation.logprobs import TokenLogprob


class ChatFrames(Chunks):
    _plain = b'},"logprobs":null,"finish_reason":null}'

    def __init__(self, identity: Identity, choices: int, *, include_usage: bool) -> None:
        super().__init__(identity, "chat.completion.chunk", include_usage)
        self._open = [self._head + b'{"index":%d,"delta":{' % index for index in range(choices)]
        self._with_role = [opened + b'"role":"assistant","content":' for opened in self._open]
        self._content = [opened + b'"content":' for opened in self._open]

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        """Return a chunk with a piece of thinking, under both names that clients read."""
        role, escaped = b"", orjson.dumps(text)
        if first:
            role, self._with_role[index] = b'"role":"assistant",', self._content[index]
        return (
            self._open[index]
            + b'%b"reasoning_content":%b,"reasoning":%b' % (role, escaped, escaped)
            + self._close
        )

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        """Return a chunk with a piece of text. The role is in the first chunk of a choice alone."""
        opened = self._with_role if first else self._content
        closed = self._closed(logprobs) if logprobs else self._close
        return opened[index] + orjson.dumps(text) + closed

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        function = {"name": call.name, "arguments": call.arguments}
        made = {"index": number, "function": function, "id": call.id, "type": "function"}
        role = {"role": "assistant", "content": None} if first else {}
        return self._delta(index, {**role, "tool_calls": [made]}, logprobs)

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        made = {"index": number, "function": {"arguments": text}}
        return self._delta(index, {"tool_calls": [made]}, logprobs)

    def finish(
        self,
        index: int,
        reason: FinishReason,
        logprobs: Sequence[TokenLogprob] = (),
        stop: str | None = None,
    ) -> bytes:
        wrong = self._schema_errors.get(index, b"")
        end = b'},"logprobs":%b,"finish_reason":"%b"%b}' % (_json(logprobs), reason.encode(), wrong)
        return self._open[index] + end + self._tail

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Sequence[TokenLogprob]) -> bytes:
        return self._open[index] + orjson.dumps(delta)[1:-1] + self._closed(logprobs)

    def _closed(self, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not logprobs:
            return self._close
        return b'},"logprobs":' + _json(logprobs) + b',"finish_reason":null}' + self._tail


def _json(logprobs: Sequence[TokenLogprob]) -> bytes:
    if not logprobs:
        return b"null"
    return orjson.dumps({"content": logprobs, "refusal": None})
