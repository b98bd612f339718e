"""Functions that a test offers, and an answer that is read for calls of them."""

from types import SimpleNamespace
from typing import Any, cast

from api.engine.delta import Delta
from api.engine.messages import Tool
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.engine.template_form import Written
from api.engine.tool_prompt import HERMES as IN_TAGS
from api.generation.answer_schema import Offer
from api.generation.answers import Answers
from api.generation.events import Collected
from api.generation.request import FieldNames, GenerationRequest
from api.telemetry.metrics import Metrics, Tally

METRICS = Metrics()
CITY = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOLS: list[dict[str, Any]] = [
    {"type": "function", "function": {"name": "weather", "description": "Now.", "parameters": CITY}},
    {"type": "function", "function": {"name": "now"}},
]


def read(
    *pieces: str, parallel: bool = True, written: Written = IN_TAGS
) -> tuple[str, list[tuple[str, str]]]:
    request = GenerationRequest(
        model="m",
        prompts=["x"],
        sampling=Sampling(),
        max_tokens=None,
        stream=False,
        fields=FieldNames("prompt", "max_tokens"),
        offer=Offer([Tool("weather"), Tool("now")], parallel=parallel),
    )
    collected, prompt = Collected(1), cast(Prompt, SimpleNamespace(written=written, calls_in_controls=False))
    answers = Answers(collected, request, prompt, Tally("", 1, 1, False, METRICS), {})
    for text in pieces:
        answers.read(Delta(text, 1, None))
    answers.read(Delta("", 0, "stop"))
    [answer] = collected.answers
    return answer.text, [(call.name, call.arguments) for call in answer.calls]
