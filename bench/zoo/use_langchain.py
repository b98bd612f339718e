"""langchain-openai: chat, batches, tools, structured output, responses and plain text."""

import asyncio
from typing import Any, Literal

import openai
from langchain_core.exceptions import ContextOverflowError
from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage
from langchain_openai import ChatOpenAI, OpenAI
from pydantic import BaseModel
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

HERE: Any = {"base_url": V1, "api_key": KEY, "max_retries": 0}
chat = ChatOpenAI(model=MODEL, temperature=0, max_tokens=32, **HERE)


class weather(BaseModel):
    """The weather in a city."""

    city: Literal["Paris", "Rome"]


@step
def plain() -> None:
    answer = chat.invoke(COLOR)
    assert answer.content and answer.usage_metadata and answer.usage_metadata["output_tokens"]
    assert all(one.content for one in chat.batch([COLOR, COLOR]))
    assert asyncio.run(chat.ainvoke(COLOR)).content


@step
def stream() -> None:
    chunks = list(chat.stream(COLOR))
    assert "".join(str(chunk.content) for chunk in chunks)


@step
def tools() -> None:
    bound = chat.bind_tools([weather], tool_choice="any")
    called = bound.invoke(COLOR)
    [call] = called.tool_calls
    result = ToolMessage("11 C, rain", tool_call_id=call["id"], name="weather")
    assert chat.bind_tools([weather]).invoke([HumanMessage(COLOR), called, result])


@step
def schema() -> None:
    assert isinstance(chat.with_structured_output(weather).invoke(COLOR), weather)


@step
def turns() -> None:
    messages: list[Any] = [SystemMessage("Be brief."), HumanMessage("Hi"), AIMessage("Hello.", name="ann")]
    for _ in range(3):
        messages.append(HumanMessage("Another.", name="bob"))
        messages.append(chat.invoke(messages))


@step
def responses() -> None:
    by_items = ChatOpenAI(model=MODEL, max_tokens=16, use_responses_api=True, **HERE)
    first = by_items.invoke(COLOR)
    assert by_items.invoke([HumanMessage(COLOR), first, HumanMessage("Another.")]).content


@step
def logprobs() -> None:
    sure = chat.bind(logprobs=True, top_logprobs=2).invoke(COLOR)
    assert sure.usage_metadata
    assert len(sure.response_metadata["logprobs"]["content"]) == sure.usage_metadata["output_tokens"]


@step
def text() -> None:
    assert OpenAI(model=MODEL, max_tokens=4, **HERE).invoke("One, two,")


@step
def too_long() -> None:
    refused(ContextOverflowError, lambda: chat.invoke(TOO_LONG))


@step
def unknown_model() -> None:
    refused(openai.NotFoundError, lambda: ChatOpenAI(model="no", **HERE).invoke(COLOR))
