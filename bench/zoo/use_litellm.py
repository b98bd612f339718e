"""LiteLLM's SDK: chat, its documented tool loop, text, responses and its form of Anthropic's messages."""

import asyncio
import json
from typing import Any, Literal

import litellm
from pydantic import BaseModel
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

HERE: Any = {"model": f"openai/{MODEL}", "api_base": V1, "api_key": KEY, "num_retries": 0}
ASK: Any = {**HERE, "messages": [{"role": "user", "content": COLOR}], "max_tokens": 8}
WEATHER = {"type": "function", "function": {"name": "weather", "parameters": CITY}}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


@step
def plain() -> None:
    answer = litellm.completion(**ASK, temperature=0)
    later = asyncio.run(litellm.acompletion(**ASK, temperature=0))
    assert answer.choices[0].message.content and later.choices[0].message.content
    assert answer.usage.completion_tokens


@step
def stream() -> None:
    chunks = list(litellm.completion(**ASK, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")


@step
def tools() -> None:
    message = (
        litellm.completion(**{**ASK, "max_tokens": 64}, tools=[WEATHER], tool_choice="required")
        .choices[0]
        .message
    )
    [call] = message.tool_calls
    assert json.loads(call.function.arguments)["city"]
    result = {"role": "tool", "tool_call_id": call.id, "name": "weather", "content": "11 C, rain"}
    more = {**ASK, "messages": [*ASK["messages"], message, result]}
    assert litellm.completion(**more, tools=[WEATHER]).choices


@step
def schema() -> None:
    answer = litellm.completion(**{**ASK, "max_tokens": 64}, response_format=Trip)
    Trip.model_validate_json(answer.choices[0].message.content)


@step
def turns() -> None:
    messages = list(ASK["messages"])
    for _ in range(3):
        messages.append(litellm.completion(**{**ASK, "messages": messages}).choices[0].message)
        messages.append({"role": "user", "content": "Another."})


@step
def text() -> None:
    ask = {**HERE, "model": f"text-completion-openai/{MODEL}"}
    assert litellm.text_completion(**ask, prompt="One, two,", max_tokens=4).choices[0].text


@step
def responses() -> None:
    assert litellm.responses(**HERE, input=COLOR, max_output_tokens=16).output


@step
async def anthropic_form() -> None:
    assert (await litellm.anthropic.messages.acreate(**ASK))["content"]


@step
def refusals() -> None:
    assert "n:" in str(refused(litellm.BadRequestError, lambda: litellm.completion(**ASK, n=9)))
    refused(litellm.AuthenticationError, lambda: litellm.completion(**{**ASK, "api_key": "wrong"}))


@step
def too_long() -> None:
    long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
    refused(litellm.ContextWindowExceededError, lambda: litellm.completion(**long))


@step
def unknown_model() -> None:
    refused(litellm.NotFoundError, lambda: litellm.completion(**{**ASK, "model": "openai/no"}))
