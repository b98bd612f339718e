"""openai for Python: responses, their stream helper and their parsed answers."""

from typing import Any, Literal

import openai
from pydantic import BaseModel
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

api = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
ASK: Any = {"model": MODEL, "input": [{"role": "user", "content": COLOR}], "max_output_tokens": 16}
WEATHER: Any = {"type": "function", "name": "weather", "parameters": CITY, "strict": True}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


@step
def plain() -> None:
    answer = api.responses.create(**ASK)
    assert answer.output_text and answer.usage and answer.usage.output_tokens


@step
def stream() -> None:
    with api.responses.stream(**ASK) as events:
        assert any(event.type == "response.output_text.delta" for event in events)
        assert events.get_final_response


@step
def tools() -> None:
    answer = api.responses.create(**{**ASK, "max_output_tokens": 64}, tools=[WEATHER], tool_choice="required")
    [call] = [item for item in answer.output if item.type == "function_call"]
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "11 C, rain"}
    more = {**ASK, "input": [*ASK["input"], *answer.output, result]}
    assert api.responses.create(**more, tools=[WEATHER]).output


@step
def schema() -> None:
    answer = api.responses.parse(**{**ASK, "max_output_tokens": 64}, text_format=Trip)
    assert isinstance(answer.output_parsed, Trip)


@step
def turns() -> None:
    items = list(ASK["input"])
    for _ in range(3):
        items += api.responses.create(**{**ASK, "input": items}).output
        items.append({"role": "user", "content": "Another."})


@step
def fields_for_openai() -> None:
    ours: Any = {"store": False, "include": ["reasoning.encrypted_content"], "reasoning": {"effort": "low"}}
    assert api.responses.create(**ASK, **ours, service_tier="auto", prompt_cache_key="k").output


@step
def too_long() -> None:
    long = {**ASK, "input": TOO_LONG}
    error = refused(openai.BadRequestError, lambda: api.responses.create(**long))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    refused(openai.NotFoundError, lambda: api.responses.create(**{**ASK, "model": "no"}))
