"""pydantic-ai: an agent by chat or by responses, with tools and both kinds of structured output."""

import sys
from typing import Any, Literal

from pydantic import BaseModel
from pydantic_ai import Agent, NativeOutput, ToolOutput
from pydantic_ai.capabilities import AbstractCapability
from pydantic_ai.exceptions import ModelHTTPError
from pydantic_ai.models.openai import OpenAIChatModel, OpenAIResponsesModel
from pydantic_ai.providers.openai import OpenAIProvider
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

Model: Any = OpenAIResponsesModel if sys.argv[1:] == ["responses"] else OpenAIChatModel
model = Model(MODEL, provider=OpenAIProvider(base_url=V1, api_key=KEY))


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


def agent(**options: Any) -> Agent[None, Any]:
    return Agent(model, model_settings={"max_tokens": 32}, instructions="Be brief.", **options)


@step
async def plain() -> None:
    assert (await agent().run(COLOR)).output


@step
async def stream() -> None:
    async with agent().run_stream(COLOR) as result:
        assert [text async for text in result.stream_text(delta=True)]


class CallFirst(AbstractCapability[None]):
    """Require a call in the first step of a run only."""

    def get_model_settings(self) -> Any:
        return lambda context: {"tool_choice": "required" if context.run_step < 2 else "auto"}


@step
async def tools() -> None:
    called: list[str] = []

    def weather(city: Literal["Paris", "Rome"]) -> str:
        """The weather in a city."""
        called.append(city)
        return "11 C, rain"

    assert (await agent(tools=[weather], capabilities=[CallFirst()]).run(COLOR)).output and called


@step
async def schema() -> None:
    assert isinstance((await agent(output_type=NativeOutput(Trip)).run(COLOR)).output, Trip)


@step
async def schema_by_tools() -> None:
    assert isinstance((await agent(output_type=ToolOutput(Trip)).run(COLOR)).output, Trip)


@step
async def turns() -> None:
    history: Any = None
    for _ in range(3):
        history = (await agent().run(COLOR, message_history=history)).all_messages()


@step
def too_long() -> None:
    error = refused(ModelHTTPError, lambda: agent().run(TOO_LONG))
    assert error.status_code == 400 and "context_length_exceeded" in str(error), error


@step
def unknown_model() -> None:
    wrong = Model("no", provider=OpenAIProvider(base_url=V1, api_key=KEY))
    assert refused(ModelHTTPError, lambda: Agent(wrong).run(COLOR)).status_code == 404
