"""Define the parameters for choosing tokens and ending answers, independent of any dialect."""

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from api.engine.template_form import Ends

NO_ENDS = Ends((), ())
EngineFinishReason = Literal["stop", "length"]
_GREEDY = 1e-5  # vLLM samples greedily below this temperature


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
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    thinking_tokens: int | None = None  # at most, where the model thinks
    n: int | None = None

    @property
    def choices(self) -> int:
        """Return the number of answers to each prompt."""
        return self.n or 1


def sampling_arguments(
    sampling: Sampling, defaults: dict[str, Any], max_tokens: int, ends: Ends = NO_ENDS
) -> tuple[dict[str, Any], int]:
    """Return vLLM's arguments, and how often each of its choices must be returned.

    defaults: the model's generation_config.json, which the request's own values override. ends: of the chat
    template; like the stop tokens of that file they hold unless the request ignores them. A greedy request
    has equal choices, and vLLM refuses n > 1 for it. So vLLM makes one, which is returned n times.
    vLLM also refuses min_tokens above max_tokens, which may be less than the request asked for.
    """
    fields = [field.name for field in dataclasses.fields(Sampling) if field.name != "thinking_tokens"]
    asked = {name: value for name in fields if (value := getattr(sampling, name)) is not None}
    arguments = {**{name: value for name, value in defaults.items() if name in fields}, **asked}
    greedy = arguments.get("temperature", 1.0) < _GREEDY
    if not sampling.ignore_eos:
        for name, own in (("stop_token_ids", ends.ids), ("stop", ends.texts)):
            if own:
                asked_for = arguments.get(name) or ()
                asked_for = [asked_for] if isinstance(asked_for, str) else asked_for
                arguments[name] = [*asked_for, *own]
    arguments["max_tokens"] = max_tokens
    if sampling.min_tokens:
        arguments["min_tokens"] = min(sampling.min_tokens, max_tokens)
    return arguments, arguments.pop("n", 1) if greedy else 1
