"""Logprobs of tokens, with the text that each token stands for."""

from dataclasses import dataclass

from api.engine.delta import Delta
from api.engine.prompt import Prompt

LOWEST = -9999.0  # JSON has no minus infinity


@dataclass(frozen=True, slots=True)
class TopLogprob:
    """token: its text, with U+FFFD where its bytes are not valid UTF-8. logprob: natural, or NO_LOGPROB."""

    token: str
    logprob: float
    bytes: list[int]


@dataclass(frozen=True, slots=True)
class TokenLogprob(TopLogprob):
    """A token of an answer, with the alternatives that were asked for, the most likely first."""

    top_logprobs: list[TopLogprob]


def token_logprobs(delta: Delta, prompt: Prompt) -> list[TokenLogprob]:
    """Return an entry for every token of the delta; none if the request asked for none."""
    found = []
    for (own, logprob), *alternatives in delta.logprobs or ():
        top = [TopLogprob(*_text(id, value, prompt)) for id, value in alternatives]
        found.append(TokenLogprob(*_text(own, logprob, prompt), top_logprobs=top))
    return found


def _text(id: int, logprob: float, prompt: Prompt) -> tuple[str, float, list[int]]:
    data = prompt.token_bytes(id)
    return data.decode(errors="replace"), LOWEST if logprob < LOWEST else logprob, list(data)
