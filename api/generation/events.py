"""Events of the answers to a request. A dialect turns them into a stream, or whole answers into a body.

`Answers` makes the events from what the engine generates. An event is a method call and costs no object,
because a stream has one for every token.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

from api.engine.messages import Call
from api.errors import ApiError
from api.generation.logprobs import TokenLogprob

FinishReason = Literal["stop", "length", "tool_calls"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of a request until now. cached_tokens: those of the prompt that were not computed again.

    thinking_tokens: those of the completion that are thinking, with its markers; None if no answer thinks.
    """

    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
    thinking_tokens: int | None = None


@dataclass(frozen=True, slots=True)
class Identity:
    """The fields that every part of an answer repeats. fingerprint: the id of the artifact."""

    id: str
    created: int
    model: str
    fingerprint: str


class Events(Protocol):
    """Receive the events of all answers to one request, and return what a stream sends for each.

    The first event is `start`. Every answer then has any number of `thinking`, then of `text`, and any number
    of calls: a `call` and its `arguments`. `part_end` follows the last piece of a thinking, a text or a call,
    and `finish` ends the answer. The last event of all is `end`, or `error`, which may come at any time.

    index: which answer it belongs to. logprobs: of the tokens that have come since the answer's event before.
    An answer of nothing has one empty text.
    """

    def start(self, usage: Usage) -> bytes:
        """Begin the stream. usage: the prompt's, and the first tokens'."""

    def count(self, usage: Usage) -> None:
        """Note the usage until now, before other events; only if the request wants it in its chunks."""

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        """Begin or continue an answer's thinking. first: it begins."""

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        """Begin or continue an answer's text. first: it begins."""

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        """Begin a call of a function. number: from 0, in its answer. first: nothing was before it."""

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        """Continue the arguments of call `number`."""

    def part_end(self, index: int, whole: bool) -> bytes:
        """End the open thinking, text or call. whole: it was not cut by the token limit or an error."""

    def schema_error(self, index: int, error: str) -> None:
        """Note how an answer disobeys a schema that is not strict, before its `finish`."""

    def finish(
        self, index: int, reason: FinishReason, logprobs: Sequence[TokenLogprob], stop: str | None
    ) -> bytes:
        """End an answer. stop: the stop string that ended it."""

    def end(self, usage: Usage) -> bytes:
        """End the stream."""

    def error(self, error: ApiError) -> bytes:
        """End the stream with an error."""


@dataclass(slots=True)
class Answer:
    """One whole answer. text_tokens: the first of `logprobs`, which belong to its text."""

    text: str = ""
    thinking: str = ""
    text_tokens: int = 0
    calls: list[Call] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish_reason: FinishReason = "stop"
    schema_error: str | None = None
    stop: str | None = None


class Collected:
    """Collect events into whole answers, which a dialect writes as one body."""

    def __init__(self, answers: int) -> None:
        self.answers = [Answer() for _ in range(answers)]

    def start(self, usage: Usage) -> bytes:
        return b""

    def count(self, usage: Usage) -> None:
        return None

    def thinking(self, index: int, text: str, first: bool) -> bytes:
        self.answers[index].thinking += text
        return b""

    def text(
        self, index: int, text: str, logprobs: Sequence[TokenLogprob] = (), first: bool = False
    ) -> bytes:
        answer = self.answers[index]
        answer.text += text
        answer.logprobs += logprobs
        answer.text_tokens = len(answer.logprobs)
        return b""

    def call(
        self, index: int, number: int, call: Call, logprobs: Sequence[TokenLogprob], first: bool
    ) -> bytes:
        answer = self.answers[index]
        answer.calls.append(call)
        answer.logprobs += logprobs
        return b""

    def arguments(self, index: int, number: int, text: str, logprobs: Sequence[TokenLogprob]) -> bytes:
        answer = self.answers[index]
        call = answer.calls[number]
        answer.calls[number] = Call(call.id, call.name, call.arguments + text)
        answer.logprobs += logprobs
        return b""

    def part_end(self, index: int, whole: bool) -> bytes:
        return b""

    def schema_error(self, index: int, error: str) -> None:
        self.answers[index].schema_error = error

    def finish(
        self, index: int, reason: FinishReason, logprobs: Sequence[TokenLogprob], stop: str | None
    ) -> bytes:
        answer = self.answers[index]
        answer.finish_reason, answer.stop = reason, stop
        answer.logprobs += logprobs
        return b""

    def end(self, usage: Usage) -> bytes:
        return b""

    def error(self, error: ApiError) -> bytes:
        return b""


class Dialect(Protocol):
    """How one API writes the answers to one request."""

    id_prefix: str

    def frames(self, identity: Identity, answers: int) -> Events:
        """Return the writer of a stream."""

    def body(self, identity: Identity, answers: Sequence[Answer], usage: Usage) -> bytes:
        """Return the JSON of whole answers."""
