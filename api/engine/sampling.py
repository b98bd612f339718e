"""Define the parameters for choosing tokens and ending answers, independent of any dialect."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

EngineFinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """Hold the parameters of a request. A field that is None takes the model's own default."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    logit_bias: dict[int, float] | None = None
    n: int | None = None

    @property
    def choices(self) -> int:
        """Return the number of answers to each prompt."""
        return self.n or 1
