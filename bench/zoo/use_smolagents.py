"""smolagents: its model for servers that are like OpenAI's, and an agent that calls tools."""

from typing import Any

import openai
from smolagents import OpenAIModel, ToolCallingAgent, tool
from smolagents.models import ChatMessage
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

model = OpenAIModel(MODEL, api_base=V1, api_key=KEY, max_tokens=32)
asked = ChatMessage(role="user", content=[{"type": "text", "text": COLOR}])


@tool
def now() -> str:
    """Return the time."""
    return "12:00"


@step
def plain() -> None:
    assert model.generate([asked]).content


@step
def stream() -> None:
    assert "".join(delta.content or "" for delta in model.generate_stream([asked]))


@step
def tools() -> None:
    [call] = model.generate([asked], tools_to_call_from=[now]).tool_calls or []
    assert call.function.name == "now"


@step
def schema() -> None:
    format: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}
    assert "city" in str(model.generate([asked], response_format=format).content)


@step
def turns() -> None:
    """An agent's steps: each sends the calls and results before it."""
    agent = ToolCallingAgent([now], OpenAIModel(MODEL, api_base=V1, api_key=KEY, max_tokens=32), max_steps=2)
    agent.prompt_templates["system_prompt"] = "Use the tools."  # its own is longer than this model's context
    agent.run(COLOR)
    failures = [getattr(taken, "error", None) for taken in agent.memory.steps]
    assert not any("400" in str(failure) for failure in failures), failures


@step
def too_long() -> None:
    long = ChatMessage(role="user", content=[{"type": "text", "text": TOO_LONG}])
    error = refused(openai.BadRequestError, lambda: model.generate([long]))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    wrong = OpenAIModel("no", api_base=V1, api_key=KEY)
    refused(openai.NotFoundError, lambda: wrong.generate([asked]))
