"""Logprobs of generated tokens, from the engine's ids to OpenAI's words for them."""

import itertools
from collections.abc import Sequence

from api.dialects.completions.schema import CompletionLogprobs
from api.engine.engine import Delta
from api.engine.prompt import Prompt
from api.generation.schema import TokenLogprob, TopLogprob

LOWEST = -9999.0  # JSON has no minus infinity


def token_logprobs(delta: Delta, prompt: Prompt) -> list[TokenLogprob]:
    """For every token of the delta; none if the request asked for none."""
    found = []
    for own, *alternatives in delta.logprobs or ():
        top = [_one(id, logprob, prompt) for id, logprob in alternatives]
        found.append(TokenLogprob(**_one(*own, prompt).model_dump(), top_logprobs=top))
    return found


def completion_logprobs(entries: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """As /v1/completions has them. offset: characters of the tokens before these."""
    tokens = [entry.token for entry in entries]
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[entry.logprob for entry in entries],
        top_logprobs=[{top.token: top.logprob for top in entry.top_logprobs} for entry in entries],
        text_offset=list(itertools.accumulate(map(len, tokens[:-1]), initial=offset)),
    )


def _one(id: int, logprob: float, prompt: Prompt) -> TopLogprob:
    data = prompt.token_bytes(id)
    return TopLogprob(token=data.decode(errors="replace"), logprob=max(logprob, LOWEST), bytes=list(data))
