"""Request fields that several dialects have, with their bounds.

Fields are an allow list (rules.py): one that is not honoured is never passed on. The bounds keep what reaches
the engine small; http/access.py limits bytes.
"""

from collections.abc import Sequence
from typing import Annotated

from pydantic import AfterValidator, Field, StringConstraints, model_validator

from api.dialects.invalid import FieldError
from api.dialects.other_fields import STREAM_OPTIONS
from api.dialects.rules import Strict as Strict
from api.engine.sampling import Sampling

MAX_CHOICES = 8
MAX_BIASES = 300
MAX_MESSAGES = 2048
MAX_TOOLS = 128
MAX_STOPS = 16  # OpenAI's API has 4, but editors and role plays send more
INT64_MAX = 2**63 - 1

ROLE = "Changed, and named as ignored, where the template refuses the order."

StopText = Annotated[str, StringConstraints(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0, lt=2**31)]
TokenIdText = Annotated[str, StringConstraints(pattern=r"^(0|[1-9][0-9]{0,8})$")]
FunctionName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]
Biases = Annotated[
    dict[TokenIdText, Annotated[float, Field(ge=-100, le=100)]],
    # The pattern describes the keys that are allowed; this says that there are no other keys.
    Field(max_length=MAX_BIASES, json_schema_extra={"additionalProperties": False}),
]
# Not of OpenAI's API. In OpenAI's there is no place for it but a sentence in the answer.
SchemaError = Annotated[
    str | None,
    Field(
        exclude_if=lambda error: error is None,
        description="How the answer disobeys a schema that is not strict.",
    ),
]


TemplateValues = Annotated[
    dict[
        Annotated[str, StringConstraints(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,63}$")],
        bool | int | Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_-]{1,64}$")],
    ],
    Field(
        max_length=16,
        description="Variables of the model's chat template, without what the training fixed.",
        json_schema_extra={"additionalProperties": False},
    ),
]


def _not_zero(limit: int) -> int:
    if limit == 0:
        raise ValueError("must be at least 1, or -1 for as many as fit")
    return limit


MaxTokens = Annotated[
    int, Field(ge=-1, le=INT64_MAX, json_schema_extra={"not": {"const": 0}}), AfterValidator(_not_zero)
]


def most_tokens(limit: int | None) -> int | None:
    """Return a request's limit of an answer; None for as many tokens as fit."""
    return None if limit == -1 else limit


class StreamOptions(Strict):
    other_fields = STREAM_OPTIONS

    include_usage: bool = Field(False, description="The usage comes last, in a chunk of its own.")
    continuous_usage_stats: bool = Field(False, description="Each chunk has the usage until then.")


class SamplingFields(Strict):
    """How a token is chosen and an answer ends; a field that is left out takes the model's own default."""

    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 and -1: no limit.")
    min_p: float | None = Field(None, ge=0, le=1)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, ge=0.01, le=10)
    seed: int | None = Field(None, ge=-INT64_MAX, le=INT64_MAX)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None
    stop_token_ids: Annotated[list[TokenId], Field(max_length=16)] | None = None
    logit_bias: Biases | None = Field(
        None, description="Token ids of this model, and what is added to their logits."
    )
    min_tokens: int | None = Field(None, ge=0, le=INT64_MAX, description="Nothing ends an answer before.")
    ignore_eos: bool | None = Field(None, description="Answers end by stop, stop_token_ids or length alone.")

    def sampling(self, n: int | None = None) -> Sampling:
        """Return these fields as the engine takes them. n: the number of answers to each prompt."""
        biases = self.logit_bias
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            frequency_penalty=self.frequency_penalty,
            presence_penalty=self.presence_penalty,
            repetition_penalty=self.repetition_penalty,
            seed=self.seed,
            stop=self.stop,
            stop_token_ids=self.stop_token_ids,
            logit_bias=None if biases is None else {int(id): bias for id, bias in biases.items()},
            min_tokens=self.min_tokens,
            ignore_eos=self.ignore_eos,
            n=n,
        )


class CompletionFields(SamplingFields):
    """Fields of chat and text completions."""

    model: str = Field(max_length=256)
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Needs stream.")
    n: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Answers to one prompt.")

    @model_validator(mode="after")
    def _stream_options_need_stream(self) -> "CompletionFields":
        if self.stream_options is not None and not self.stream:
            raise FieldError("stream_options", "is only allowed when stream is true")
        return self

    def wants_usage(self) -> bool:
        """Return whether a stream ends with a chunk of the usage."""
        return self.stream_options is not None and self.stream_options.include_usage

    def wants_usage_in_chunks(self) -> bool:
        """Return whether each chunk of a stream has the usage until then."""
        return self.stream_options is not None and self.stream_options.continuous_usage_stats


def require_calls(made: Sequence[Sequence[str]], results: Sequence[str | None], field: str) -> None:
    """Check that every result belongs to a call before it.

    made: the ids of the calls of each message; results: the id of the call that a message answers.
    Raises: FieldError.
    """
    known: set[str] = set()
    for number, (calls, result) in enumerate(zip(made, results, strict=True)):
        known.update(calls)
        if result is not None and result not in known:
            raise FieldError(f"{field}.{number}", f"it answers a call that is not before it ({result})")
