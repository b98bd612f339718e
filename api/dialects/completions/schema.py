"""/v1/completions: its requests and its answers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from api.generation.schema import INT64_MAX, FinishReason, GenerationRequest, TokenId, Usage

MAX_TOP_LOGPROBS = 5
TokenIds = Annotated[list[TokenId], Field(min_length=1, fail_fast=True)]


class CompletionRequest(GenerationRequest):
    prompt: (
        str
        | TokenIds
        | Annotated[list[str], Field(min_length=1, max_length=8)]
        | Annotated[list[TokenIds], Field(min_length=1, max_length=8)]
    ) = Field(description="One prompt or up to 8, as text or as token ids.")
    max_tokens: int | None = Field(None, ge=1, le=INT64_MAX, description="Without it 16, as OpenAI has it.")
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: Literal[False] | None = None

    def prompts(self) -> list[str] | list[list[int]]:
        """One or several, each a text or token ids."""
        prompt: Any = self.prompt
        single = isinstance(prompt, str) or isinstance(prompt[0], int)
        return [prompt] if single else prompt

    def token_ids(self) -> list[tuple[str, Sequence[int]]]:
        given = [("prompt", prompt) for prompt in self.prompts() if not isinstance(prompt, str)]
        return [*super().token_ids(), *given]


class CompletionLogprobs(BaseModel):
    """Lists over the tokens. text_offset: characters before each, from the start of the completion."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None = None


class Completion(BaseModel):
    """The whole answer; an event of a stream too, where `usage` comes last and alone."""

    id: str
    object: Literal["text_completion"] = "text_completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[CompletionChoice]
    usage: Usage | None = None
