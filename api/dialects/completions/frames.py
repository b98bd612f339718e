"""The chunks of a stream of /v1/completions."""

from collections.abc import Sequence

import orjson

from api.dialects.chunks import Chunks
from api.dialects.completions.schema import completion_logprobs
from api.engine.messages import Call
from api.generation.events import FinishReason, Identity
from api.generation.logprobs import TokenLogprob


class CompletionFrames(Chunks):
    _plain = b',"logprobs":null,"finish_reason":null}'

    def __init__(self, identity: Identity, choices: int, *, include_usage: bool) -> None:
        super().__init__(identity, "text_completion", include_usage)
        self._open = [self._head + b'{"index":%d,"text":' % index for index in range(choices)]
        self._offsets = [0] * choices  # characters of the tokens that have been sent

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        raise AssertionError("a text completion has no template that knows thinking")

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        opened = self._open[index] + orjson.dumps(text)
        if not logprobs:
            return opened + self._close
        return opened + b',"logprobs":%b,"finish_reason":null}' % self._json(index, logprobs) + self._tail

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        raise AssertionError("a text completion offers no functions")

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        raise AssertionError("a text completion offers no functions")

    def finish(
        self,
        index: int,
        reason: FinishReason,
        logprobs: Sequence[TokenLogprob] = (),
        stop: str | None = None,
    ) -> bytes:
        end = b'"","logprobs":%b,"finish_reason":"%b"}' % (self._json(index, logprobs), reason.encode())
        return self._open[index] + end + self._tail

    def _json(self, index: int, logprobs: Sequence[TokenLogprob]) -> bytes:
        if not logprobs:
            return b"null"
        lists = completion_logprobs(logprobs, self._offsets[index])
        self._offsets[index] = lists.text_offset[-1] + len(lists.tokens[-1])
        return lists.model_dump_json().encode()
