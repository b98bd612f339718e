"""anthropic for Python: messages, their stream helper, tools and the count of tokens."""

from typing import Any, Literal

import anthropic
from pydantic import BaseModel
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, URL, refused, step

api = anthropic.Anthropic(base_url=URL, api_key=KEY, max_retries=0)
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": COLOR}], "max_tokens": 32}
WEATHER: Any = {"name": "weather", "description": "The weather in a city.", "input_schema": CITY}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


@step
def plain() -> None:
    answer = api.messages.create(**ASK, system="Be brief.", metadata={"user_id": "1"})
    assert answer.content[0].type == "text" and answer.content[0].text and answer.usage.output_tokens


@step
def stream() -> None:
    with api.messages.stream(**ASK) as events:
        text = "".join(events.text_stream)
        assert text and events.get_final_message().content[0].text == text


@step
def tools() -> None:
    answer = api.messages.create(**ASK, tools=[WEATHER], tool_choice={"type": "any"})
    [call] = [block for block in answer.content if block.type == "tool_use"]
    result = {"type": "tool_result", "tool_use_id": call.id, "content": "11 C, rain"}
    said = [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [result]}]
    assert api.messages.create(**{**ASK, "messages": [*ASK["messages"], *said]}, tools=[WEATHER]).usage


@step
def schema() -> None:
    assert isinstance(api.messages.parse(**{**ASK, "max_tokens": 64}, output_format=Trip).parsed_output, Trip)


@step
def turns() -> None:
    messages = list(ASK["messages"])
    for _ in range(3):
        answer = api.messages.create(**{**ASK, "messages": messages})
        messages += [
            {"role": "assistant", "content": answer.content},
            {"role": "user", "content": "Another."},
        ]


@step
def count_tokens() -> None:
    assert api.messages.count_tokens(model=MODEL, messages=ASK["messages"]).input_tokens


@step
def too_long() -> None:
    long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
    error = refused(anthropic.BadRequestError, lambda: api.messages.create(**long))
    assert error.body["error"]["type"] == "invalid_request_error", error  # type: ignore[index]


@step
def unknown_model() -> None:
    error = refused(anthropic.NotFoundError, lambda: api.messages.create(**{**ASK, "model": "no"}))
    assert error.body["error"]["type"] == "not_found_error", error  # type: ignore[index]
