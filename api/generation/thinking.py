"""Split the thinking from the answer, while the model writes both.

The markers are left out, and so are the line breaks around the thinking, which templates write themselves.
Stop strings hold for the answer alone, so they are looked for here: vLLM would find them in the thinking.
"""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Literal, cast

from api.engine.delta import Delta, ThinkingDelta
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.engine.thinking import Thinks


async def thought(
    deltas: AsyncGenerator[Delta, None], thinks: Thinks, sampling: Sampling, prompt: Prompt, shown: bool
) -> AsyncGenerator[Delta, None]:
    """Yield `deltas`, all ThinkingDeltas, with the thinking apart from text and logprobs.

    sampling: the request's own, with its stop strings. shown: the thinking is passed on, not only counted.
    """
    readers = [_Reader(thinks, sampling, prompt) for _ in range(sampling.choices)]
    running = sampling.choices
    async with aclosing(deltas):
        async for delta in deltas:
            reader = readers[delta.index]
            if reader.ended:  # by a stop string; vLLM cannot end one of several answers
                continue
            if reader.only_passes_on and delta.finish_reason is None:
                yield delta
                continue
            reader.read(cast(ThinkingDelta, delta), shown)
            yield delta
            running -= reader.ended
            if not running:
                return


class Splitter:
    """Split one answer's text into thinking and answer.

    Text is held back only while it can belong to a marker, or is a line break that may end the thinking.
    """

    def __init__(self, opening: str, closing: str, inside: bool) -> None:
        """inside: the prompt ends with the opening marker. If the model repeats it, it is left out."""
        self._opening = opening
        self._closing = closing
        self._inside = inside
        self._state: Literal["before", "inside", "after", "answer"] = "before"
        self._thought = False  # some thinking has been returned
        self._held = ""

    @property
    def thinks(self) -> bool | None:
        """Return whether the answer begins with thinking, or None while it is not known."""
        return True if self._inside else None if self._state == "before" else False

    @property
    def whole(self) -> bool:
        """Return whether all that comes is the answer's."""
        return self._state == "answer"

    def feed(self, text: str) -> tuple[str, str]:
        """Return the thinking and the answer that are certain once `text` has come."""
        self._held += text
        thinking = ""
        if self._state == "before":
            self._open()
        if self._state == "inside":
            thinking = self._think()
        if self._state == "after":
            self._held = self._held.lstrip("\n")
            self._state = "answer" if self._held else "after"
        return thinking, self._rest() if self._state == "answer" else ""

    def end(self) -> tuple[str, str]:
        """Return what is left of the two at the end."""
        rest = self._rest()
        return (self._new(rest.rstrip("\n")), "") if self._inside else ("", rest)

    def _open(self) -> None:
        begun = self._held.lstrip()
        if begun.startswith(self._opening):
            self._held, self._inside, self._state = begun[len(self._opening) :], True, "inside"
        elif not self._opening.startswith(begun):
            self._state = "inside" if self._inside else "answer"

    def _think(self) -> str:
        before, found, after = self._held.partition(self._closing)
        if found:
            self._held, self._state = after, "after"
            return self._new(before.rstrip("\n"))
        kept = 0
        if self._closing[0] in before[-len(self._closing) :]:
            lengths = range(len(self._closing) - 1, 0, -1)
            kept = next((n for n in lengths if before.endswith(self._closing[:n])), 0)
        certain = before[: len(before) - kept].rstrip("\n")
        self._held = before[len(certain) :]
        return self._new(certain)

    def _new(self, thinking: str) -> str:
        """Return a piece of thinking, the first one without line breaks before it."""
        if not self._thought:
            thinking = thinking.lstrip("\n")
            self._thought = bool(thinking)
        return thinking

    def _rest(self) -> str:
        rest, self._held = self._held, ""
        return rest


class Stops:
    """Find which of some strings is complete first in an answer's text; if two are, the longer one.

    The work is linear in the text, whatever the strings are (Knuth, Morris and Pratt's search): a client can
    choose long ones that nearly occur everywhere.
    """

    def __init__(self, strings: Sequence[str]) -> None:
        self._strings = [(string, _borders(string)) for string in strings]
        self._matched = [0] * len(strings)  # characters of each string at the end of the text
        self._held = ""

    def feed(self, text: str) -> tuple[str, str | None]:
        """Return the text that is certain once `text` has come, and the string that ends the answer there."""
        before, self._held = len(self._held), self._held + text
        for place in range(before, len(self._held)):
            self._matched = [self._next(number, self._held[place]) for number in range(len(self._matched))]
            pairs = zip(self._strings, self._matched, strict=True)
            if found := [string for (string, _), matched in pairs if matched == len(string)]:
                stop = max(found, key=len)
                return self._held[: place + 1 - len(stop)], stop
        certain = len(self._held) - max(self._matched)
        text, self._held = self._held[:certain], self._held[certain:]
        return text, None

    def end(self) -> str:
        """Return what is left at the end."""
        rest, self._held = self._held, ""
        return rest

    def _next(self, number: int, character: str) -> int:
        (string, borders), matched = self._strings[number], self._matched[number]
        while matched and string[matched] != character:
            matched = borders[matched - 1]
        return matched + (string[matched] == character)


def _borders(text: str) -> list[int]:
    """Return for each beginning of a text how many characters at its end are its beginning, too."""
    borders, length = [0], 0
    for character in text[1:]:
        while length and text[length] != character:
            length = borders[length - 1]
        length += text[length] == character
        borders.append(length)
    return borders


class _Counter:
    """Count the tokens of the thinking: up to the closing marker and the line breaks that follow it.

    It reads the tokens themselves, because vLLM joins tokens into one piece of text.
    """

    def __init__(self, prompt: Prompt, closing: str) -> None:
        self._prompt = prompt
        self._closing = closing.encode()
        self._tail = b""
        self._closed = self._ended = False

    def count(self, ids: Sequence[int]) -> int:
        """Return how many of these tokens belong to the thinking."""
        return next((number for number, id in enumerate(ids) if self._ends_before(id)), len(ids))

    def _ends_before(self, id: int) -> bool:
        if self._ended:
            return True
        token = self._prompt.token_bytes(id)
        if self._closed:
            self._ended = bool(token.strip(b"\n"))
            return self._ended
        self._tail += token
        self._closed = self._closing in self._tail
        self._tail = self._tail[1 - len(self._closing) :]
        return False


class _Reader:
    """Take the thinking and the stop string out of the deltas of one answer.

    ended: the last one was read. only_passes_on: nothing is left to take out, so a delta need not be read.
    """

    def __init__(self, thinks: Thinks, sampling: Sampling, prompt: Prompt) -> None:
        self.ended = False
        self.only_passes_on = False
        self._splitter = Splitter(thinks.opening.text, thinks.closing.text, thinks.inside)
        self._counter = _Counter(prompt, thinks.closing.text)
        stop = sampling.stop or ()
        self._stops = Stops([stop] if isinstance(stop, str) else stop) if stop else None
        self._stops_after = sampling.min_tokens or 0
        self._tokens = 0
        self._undecided: list[list[tuple[int, float]]] = []  # logprobs of tokens that may be thinking
        self._counted = 0  # of those tokens

    def read(self, delta: ThinkingDelta, shown: bool) -> None:
        """Change the delta: its text and logprobs are the answer's alone."""
        self._tokens += delta.tokens
        last = delta.finish_reason is not None
        thinking, answer = self._splitter.feed(delta.text)
        if last:
            rest = self._splitter.end()
            thinking, answer = thinking + rest[0], answer + rest[1]
        self._count(delta, last)
        delta.thinking = thinking if shown else ""
        delta.text = self._until_stop(delta, answer) if self._stops else answer
        self.ended = delta.finish_reason is not None
        self.only_passes_on = self._splitter.whole and self._stops is None

    def _count(self, delta: ThinkingDelta, last: bool) -> None:
        thinks = self._splitter.thinks
        if thinks is False or (thinks is None and last):
            delta.logprobs = self._released(delta)
            return
        self._counted += self._counter.count(delta.ids)
        if thinks is None:
            self._undecided, delta.logprobs = self._released(delta) or [], None
            return
        delta.thinking_tokens, self._counted = self._counted, 0
        delta.logprobs = (self._released(delta) or [])[delta.thinking_tokens :]

    def _released(self, delta: ThinkingDelta) -> list[list[tuple[int, float]]] | None:
        """Return the logprobs of the delta, after those that have been kept."""
        kept, self._undecided = self._undecided, []
        return [*kept, *(delta.logprobs or [])] if kept else delta.logprobs

    def _until_stop(self, delta: ThinkingDelta, answer: str) -> str:
        assert self._stops is not None
        if self._tokens <= self._stops_after:
            return answer
        text, stop = self._stops.feed(answer)
        if stop is not None:
            delta.finish_reason, delta.stop = "stop", stop
        elif delta.finish_reason is not None:
            text += self._stops.end()
        return text
