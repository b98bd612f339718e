"""AutoGen: an assistant over its client for OpenAI's chat."""

from typing import Any, Literal

import openai
from autogen_agentchat.agents import AssistantAgent
from autogen_core import CancellationToken
from autogen_core.models import (
    AssistantMessage,
    FunctionExecutionResult,
    FunctionExecutionResultMessage,
    UserMessage,
)
from autogen_core.tools import FunctionTool
from autogen_ext.models.openai import OpenAIChatCompletionClient
from pydantic import BaseModel
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

INFO: Any = {
    "vision": False, "function_calling": True, "json_output": True, "structured_output": True,
    "family": "unknown", "multiple_system_messages": True,
}  # fmt: skip


def client(model: str = MODEL) -> OpenAIChatCompletionClient:
    return OpenAIChatCompletionClient(
        model=model, base_url=V1, api_key=KEY, model_info=INFO, max_tokens=32, max_retries=0
    )


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    return f"11 C in {city}"


@step
async def plain() -> None:
    assert (await AssistantAgent("helper", client()).run(task=COLOR)).messages[-1].to_text()


@step
async def stream() -> None:
    agent = AssistantAgent("helper", client(), model_client_stream=True)
    kinds = [type(event).__name__ async for event in agent.run_stream(task=COLOR)]
    assert "ModelClientStreamingChunkEvent" in kinds


@step
async def tools() -> None:
    tool = FunctionTool(weather, description="The weather in a city.")
    asked = UserMessage(content=COLOR, source="user")
    answer = await client().create([asked], tools=[tool], tool_choice="required")
    [call] = answer.content
    text = await tool.run_json({"city": "Paris"}, CancellationToken())
    result = FunctionExecutionResult(content=text, name="weather", call_id=call.id, is_error=False)
    said = AssistantMessage(content=[call], source="helper")
    history = [asked, said, FunctionExecutionResultMessage(content=[result])]
    assert await client().create(history, tools=[tool])


@step
async def schema() -> None:
    answer = await client().create([UserMessage(content=COLOR, source="user")], json_output=Trip)
    Trip.model_validate_json(answer.content)


@step
async def turns() -> None:
    agent = AssistantAgent("helper", client())
    for _ in range(3):
        await agent.run(task=COLOR)


@step
def too_long() -> None:
    error = refused(openai.BadRequestError, lambda: AssistantAgent("helper", client()).run(task=TOO_LONG))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    refused(openai.NotFoundError, lambda: AssistantAgent("helper", client("no")).run(task=COLOR))
