"""A named agent of LangChain in LangGraph, over langchain-openai."""

from collections.abc import Callable
from typing import Any, Literal

from langchain.agents import create_agent
from langchain.agents.middleware import wrap_model_call
from langchain.agents.structured_output import ProviderStrategy
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import ToolMessage
from langchain_openai import ChatOpenAI
from langgraph.checkpoint.memory import InMemorySaver
from pydantic import BaseModel
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

model = ChatOpenAI(model=MODEL, base_url=V1, api_key=KEY, max_tokens=32, max_retries=0)
asked: Any = {"messages": [{"role": "user", "content": COLOR}]}


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"11 C in {city}"


@wrap_model_call
def call_first(request: Any, handler: Callable[[Any], Any]) -> Any:
    called = any(isinstance(message, ToolMessage) for message in request.messages)
    return handler(request.override(tool_choice="auto" if called else "any"))


@step
def plain() -> None:
    assert create_agent(model, name="helper").invoke(asked)["messages"][-1].content


@step
def stream() -> None:
    chunks = list(create_agent(model, name="helper").stream(asked, stream_mode="messages"))
    assert any(message.content for message, _ in chunks)


@step
def tools() -> None:
    agent = create_agent(model, tools=[weather], middleware=[call_first], name="helper")
    messages = agent.invoke(asked)["messages"]
    assert any(isinstance(message, ToolMessage) for message in messages)


@step
def schema() -> None:
    agent = create_agent(model, response_format=ProviderStrategy(Trip), name="helper")
    assert isinstance(agent.invoke(asked)["structured_response"], Trip)


@step
def turns() -> None:
    agent = create_agent(model, name="helper", checkpointer=InMemorySaver())
    for _ in range(3):
        last = agent.invoke(asked, {"configurable": {"thread_id": "1"}})["messages"][-1]
        assert last.name == "helper"


@step
def too_long() -> None:
    long: Any = {"messages": [{"role": "user", "content": TOO_LONG}]}
    refused(ContextOverflowError, lambda: create_agent(model).invoke(long))
