"""/v1/completions: its requests and its answers."""

import itertools
from collections.abc import Sequence
from math import isnan
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.dialects.chunks import Usage
from api.dialects.completions import other_fields as known
from api.dialects.fields import CompletionFields, MaxTokens, TokenId
from api.generation.logprobs import TokenLogprob

MAX_TOP_LOGPROBS = 5
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(CompletionFields):
    other_fields = known.REQUEST

    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=8)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=8)]
    ) = Field(description="One prompt or up to 8, as text or as token ids.")
    max_tokens: MaxTokens | None = Field(
        None, description="Without it 16, as OpenAI has it; -1: as many as fit."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = Field(None, description="The prompt comes before its answer, with its logprobs.")

    def prompts(self) -> list[str | list[int]]:
        """Return one prompt or several, each a text or token ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if single else prompt


class CompletionLogprobs(BaseModel):
    """Lists over the tokens. text_offset: characters before each, from the start of the completion.

    The first token of a prompt that is echoed has no logprobs.
    """

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


def completion_logprobs(entries: Sequence[TokenLogprob], offset: int) -> CompletionLogprobs:
    """Return the entries as lists. offset: characters of the tokens before these."""
    tokens = [entry.token for entry in entries]
    return CompletionLogprobs(
        tokens=tokens,
        token_logprobs=[None if isnan(entry.logprob) else entry.logprob for entry in entries],
        top_logprobs=[_top(entry) for entry in entries],
        text_offset=list(itertools.accumulate(map(len, tokens[:-1]), initial=offset)),
    )


def _top(entry: TokenLogprob) -> dict[str, float] | None:
    """Return logprobs by text. Tokens may have the same text; the entry's own logprob is then its."""
    if isnan(entry.logprob):
        return None
    found = {top.token: top.logprob for top in entry.top_logprobs}
    return found | {entry.token: entry.logprob} if entry.token in found else found


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: Literal["stop", "length"] | None = None


class Completion(BaseModel):
    """The whole answer, or an event of a stream, where `usage` comes last and alone."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
