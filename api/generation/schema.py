"""What chat and text completions share: an allow list of fields, their bounds, and the answers' common parts.

A field that is not listed is refused, never passed on. The bounds keep what reaches the engine small;
limits on bytes are in access/security.py.
"""

from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

MAX_CHOICES = 8
MAX_BIASES = 300
INT64_MAX = 2**63 - 1

FinishReason = Literal["stop", "length"]

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdText = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
Biases = Annotated[
    dict[TokenIdText, Annotated[float, Field(ge=-100, le=100)]],
    # The pattern says what its keys' values are; this, that there are no other keys.
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)


class StreamOptions(Strict):
    include_usage: bool = False


class Sampling(Strict):
    """What shapes the choice of a token; a silent field takes the model's own default."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 and -1: no limit.")
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX)
    stop: StopText | Annotated[list[StopText], Field(max_length=4)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=16)] | None = None
    logit_bias: Biases | None = Field(
        None, description="Token ids of this model, and what is added to their logits."
    )
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers to one prompt.")

    def choices(self) -> int:
        return self.n or 1

    def token_ids(self) -> list[tuple[str, Sequence[int]]]:
        """Every list of token ids in the request, with its field."""
        return [
            ("stop_token_ids", self.stop_token_ids or ()),
            ("logit_bias", [int(id) for id in self.logit_bias or ()]),
        ]


class GenerationRequest(Sampling):
    model: str = Field(max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = Field(None, max_length=256, description="Accepted, not used, not logged.")

    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage


class Usage(BaseModel):
    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class TopLogprob(BaseModel):
    """token: its text, with U+FFFD where its bytes alone are none. logprob: natural."""

    token: str
    logprob: float
    bytes: list[int]


class TokenLogprob(TopLogprob):
    top_logprobs: list[TopLogprob]
