"""Make events from what the engine generates.

All bookkeeping of streamed and of whole answers is here: what has begun, what is open, which logprobs wait
for an event, and the calls of functions in the text.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from api.engine.delta import Delta, ThinkingDelta
from api.engine.messages import Call
from api.engine.prompt import Prompt
from api.engine.sampling import EngineFinishReason
from api.errors import ApiError
from api.generation.events import Events, FinishReason, Usage
from api.generation.logprobs import TokenLogprob, token_logprobs
from api.generation.request import GenerationRequest
from api.generation.tool_calls import CallParser, Piece
from api.telemetry.metrics import Tally


@dataclass(slots=True)
class _Progress:
    """One answer until now. echo: the text that it begins with, until an event has had it.

    open: a thinking, a text or a call has not ended. thinks: it is a thinking. logprobs: those that no event
    has had.
    """

    index: int
    parser: CallParser | None
    echo: str = ""
    first: bool = True
    open: bool = False
    thinks: bool = False
    logprobs: list[TokenLogprob] = field(default_factory=list)


class Answers:
    """Turn deltas into events. running: the number of answers that have not ended."""

    def __init__(
        self,
        events: Events,
        request: GenerationRequest,
        prompt: Prompt,
        tally: Tally,
        schema_errors: Mapping[int, str],
    ) -> None:
        """prompt: gives the text of tokens. tally: counts them. schema_errors: of answers that have ended."""
        offer = request.offer
        self.running = request.answers
        self._events = events
        self._text = events.text
        self._prompt = prompt
        self._tally = tally
        self._schema_errors = schema_errors
        self._started = False
        self._progress = [
            _Progress(index, offer.parser(prompt), echo) for index, echo in enumerate(request.echoes(prompt))
        ]
        # The text of an answer then has control tokens, which tell where calls are.
        self._shows_controls = bool(offer.tools) and prompt.calls_in_controls
        # Answers whose next delta is nothing but a piece of text, unless it is the last.
        self._counts = request.usage_in_chunks
        self._may_be_plain = not (offer.tools or self._counts) and request.logprobs is None
        self._plain = [False] * request.answers

    def read(self, delta: Delta) -> bytes:
        """Pass the events of a delta on, and return what a stream sends for them; often nothing."""
        index = delta.index
        self._tally.add(delta.tokens, index, delta.cached_tokens)
        if self._plain[index] and delta.finish_reason is None:  # nearly every token
            return self._text(index, delta.text) if delta.text else b""
        return self._read(delta)

    def fail(self, error: ApiError) -> bytes:
        """Return what a stream that fails sends last."""
        frames = b""
        for progress in self._progress:
            if progress.open:
                frames += self._events.part_end(progress.index, False)
        return frames + self._events.error(error)

    def _read(self, delta: Delta) -> bytes:
        progress, reason, thinking = self._progress[delta.index], delta.finish_reason, ""
        if isinstance(delta, ThinkingDelta):
            thinking = delta.thinking
            self._tally.thinking_tokens = (self._tally.thinking_tokens or 0) + delta.thinking_tokens
        if self._counts:
            self._events.count(self.usage())
        progress.logprobs += token_logprobs(delta, self._prompt)
        frames = self._think(progress, thinking) if thinking else b""
        pieces = self._pieces(progress, delta)
        if pieces:
            frames += self._start()
        for piece in pieces:
            frames += self._piece(progress, piece)
        if reason is not None:
            frames += self._finish(progress, reason, delta.stop)
        return frames

    def _start(self) -> bytes:
        if self._started:
            return b""
        self._started = True
        return self._events.start(self.usage())

    def _think(self, progress: _Progress, text: str) -> bytes:
        started, first = self._start(), progress.first
        progress.first, progress.open, progress.thinks = False, True, True
        return started + self._events.thinking(progress.index, text, first)

    def _pieces(self, progress: _Progress, delta: Delta) -> list[Piece]:
        parser = progress.parser
        if parser is None:
            text, progress.echo = progress.echo + delta.text, ""
            pieces = [Piece(text)] if text else []
        else:
            pieces = parser.feed(delta.text)
        if delta.finish_reason is not None and parser is not None:
            pieces += parser.end()
        if self._shows_controls:
            pieces = [piece for piece in pieces if piece.call is not None or self._strip(piece)]
        if delta.finish_reason is not None:
            if progress.first and not pieces:
                pieces = [Piece("")]
        return pieces

    def _strip(self, piece: Piece) -> bool:
        """Take control tokens out of a piece of text; return whether something is left."""
        piece.text = self._prompt.without_controls(piece.text)
        return bool(piece.text)

    def _piece(self, progress: _Progress, piece: Piece) -> bytes:
        events, index, first, thought = self._events, progress.index, progress.first, progress.thinks
        logprobs, progress.logprobs = progress.logprobs, []
        progress.first = progress.thinks = False
        if piece.call is None:
            self._plain[index], progress.open = self._may_be_plain, True
            ended = events.part_end(index, True) if thought else b""
            return ended + events.text(index, piece.text, logprobs, first or thought)
        if piece.id is None or piece.name is None:
            return events.arguments(index, piece.call, piece.text, logprobs)
        ended = events.part_end(index, True) if progress.open else b""
        progress.open = True
        return ended + events.call(index, piece.call, Call(piece.id, piece.name, piece.text), logprobs, first)

    def _finish(self, progress: _Progress, reason: EngineFinishReason, stop: str | None) -> bytes:
        events, parser = self._events, progress.parser
        frames = events.part_end(progress.index, reason != "length")
        progress.open = False
        called = parser is not None and parser.calls and reason == "stop"
        if error := self._schema_errors.get(progress.index):
            events.schema_error(progress.index, error)
        finished: FinishReason = "tool_calls" if called else reason
        frames += events.finish(progress.index, finished, progress.logprobs, stop)
        progress.logprobs = []
        self.running -= 1
        if not self.running:
            frames += events.end(self.usage())
        return frames

    def usage(self) -> Usage:
        """Return the tokens that have been counted until now."""
        tally = self._tally
        return Usage(tally.prompt_tokens, tally.cached_tokens, tally.completion_tokens, tally.thinking_tokens)
