"""openai for Python: chat, its stream helper and its parsed answers."""

from typing import Annotated, Any, Literal

import openai
from pydantic import BaseModel, Field
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

api = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": COLOR}], "max_tokens": 8}
WEATHER: Any = {"type": "function", "function": {"name": "weather", "parameters": CITY, "strict": True}}

CALL: Any = {**ASK, "max_tokens": 64, "tools": [WEATHER], "tool_choice": "required"}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]
    days: int = Field(ge=1, le=9)


class Bus(BaseModel):
    kind: Literal["bus"]
    line: Literal[1, 2]


class Walk(BaseModel):
    kind: Literal["walk"]
    far: bool


class Way(BaseModel):
    part: Annotated[Bus | Walk, Field(discriminator="kind")]


@step
def plain() -> None:
    answer = api.chat.completions.create(**ASK)
    assert answer.choices[0].message.content and answer.usage and answer.usage.completion_tokens


@step
def stream() -> None:
    chunks = list(api.chat.completions.create(**ASK, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].usage and any(chunk.choices[0].delta.content for chunk in chunks[:-1])


@step
def stream_helper() -> None:
    with api.chat.completions.stream(**ASK, stop=[" "]) as events:  # it refuses answers that are cut off
        assert any(event.type == "content.delta" for event in events)
        assert events.get_final_completion().choices[0].message.content


@step
def tools() -> None:
    message = api.chat.completions.create(**CALL).choices[0].message
    [call] = message.tool_calls or []
    result = {"role": "tool", "tool_call_id": call.id, "content": "11 C, rain"}
    more = {**ASK, "messages": [*ASK["messages"], message, result]}
    assert api.chat.completions.create(**more, tools=[WEATHER]).choices


@step
def schema() -> None:
    answer = api.chat.completions.parse(**{**ASK, "max_tokens": 64}, response_format=Trip)
    assert isinstance(answer.choices[0].message.parsed, Trip)


@step
def schema_of_a_union() -> None:
    answer = api.chat.completions.parse(**{**ASK, "max_tokens": 64}, response_format=Way)
    assert isinstance(answer.choices[0].message.parsed, Way)


@step
def turns() -> None:
    messages = list(ASK["messages"])
    for _ in range(3):
        message = api.chat.completions.create(**{**ASK, "messages": messages}).choices[0].message
        messages += [message, {"role": "user", "content": "Another."}]


@step
def fields_for_openai() -> None:
    ours: Any = {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "reasoning_effort": "low"}
    assert api.chat.completions.create(**ASK, **ours, prompt_cache_key="k", verbosity="low").choices


@step
def too_long() -> None:
    long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
    error = refused(openai.BadRequestError, lambda: api.chat.completions.create(**long))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    error = refused(openai.NotFoundError, lambda: api.chat.completions.create(**{**ASK, "model": "no"}))
    assert error.code == "model_not_found", error
