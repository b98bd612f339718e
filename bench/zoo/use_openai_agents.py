"""openai-agents for Python, by chat or by responses.

By responses it refuses an answer that is cut off. A typed answer ends by itself.
"""

import contextlib
import sys
from typing import Any, Literal

import openai
from agents import (
    Agent,
    MaxTurnsExceeded,
    ModelSettings,
    OpenAIChatCompletionsModel,
    OpenAIResponsesModel,
    Runner,
    function_tool,
    set_tracing_disabled,
)
from pydantic import BaseModel
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

set_tracing_disabled(True)
Model: Any = OpenAIResponsesModel if sys.argv[1:] == ["responses"] else OpenAIChatCompletionsModel


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


called: list[str] = []


@function_tool
def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    called.append(city)
    return f"11 C in {city}"


def agent(name: str = MODEL, choice: Any = None, **options: Any) -> Agent:
    client = openai.AsyncOpenAI(base_url=V1, api_key=KEY, max_retries=0)
    model = Model(name, openai_client=client)
    settings = ModelSettings(max_tokens=200, temperature=0, tool_choice=choice)
    return Agent("helper", instructions="Be brief.", model=model, model_settings=settings, **options)


@step
async def plain() -> None:
    assert (await Runner.run(agent(), COLOR)).final_output


@step
async def stream() -> None:
    result = Runner.run_streamed(agent(output_type=Trip), COLOR)
    kinds = [event.data.type async for event in result.stream_events() if event.type == "raw_response_event"]
    assert "response.output_text.delta" in kinds


@step
async def tools() -> None:
    """The client resets the choice after the call; this model may call again all the same."""
    helper = agent(choice="required", tools=[weather], output_type=Trip)
    with contextlib.suppress(MaxTurnsExceeded):
        await Runner.run(helper, COLOR, max_turns=3)
    assert called


@step
async def schema() -> None:
    assert isinstance((await Runner.run(agent(output_type=Trip), COLOR)).final_output, Trip)


@step
async def turns() -> None:
    items: list[Any] = []
    for _ in range(3):
        result = await Runner.run(agent(output_type=Trip), [*items, {"role": "user", "content": COLOR}])
        items = result.to_input_list()


@step
def too_long() -> None:
    error = refused(openai.BadRequestError, lambda: Runner.run(agent(), TOO_LONG))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    refused(openai.NotFoundError, lambda: Runner.run(agent("no"), COLOR))
