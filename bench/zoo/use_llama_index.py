"""llama-index with its model for servers that are like OpenAI's."""

from typing import Literal

import openai
from llama_index.core.chat_engine import SimpleChatEngine
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import PromptTemplate
from llama_index.core.tools import FunctionTool
from llama_index.llms.openai_like import OpenAILike
from pydantic import BaseModel
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step


def like(model: str, structured: bool = False) -> OpenAILike:
    return OpenAILike(
        model=model, api_base=V1, api_key=KEY, is_chat_model=True, is_function_calling_model=True,
        should_use_structured_outputs=structured, context_window=2048, max_tokens=32, max_retries=0,
    )  # fmt: skip


llm = like(MODEL)
asked = ChatMessage(role="user", content=COLOR)


class Trip(BaseModel):
    """A trip to a city."""

    city: Literal["Paris", "Rome"]


def weather(city: Literal["Paris", "Rome"]) -> str:
    """The weather in a city."""
    return f"11 C in {city}"


@step
def plain() -> None:
    assert llm.chat([asked]).message.content and llm.complete(COLOR).text


@step
def stream() -> None:
    assert "".join(chunk.delta or "" for chunk in llm.stream_chat([asked]))


@step
def tools() -> None:
    tool = FunctionTool.from_defaults(weather)
    answer = llm.chat_with_tools([tool], user_msg=COLOR, tool_required=True)
    [call] = llm.get_tool_calls_from_response(answer)
    result = ChatMessage(role="tool", content="11 C", additional_kwargs={"tool_call_id": call.tool_id})
    assert llm.chat_with_tools([tool], chat_history=[asked, answer.message, result]).message


@step
def schema() -> None:
    for model in (llm, like(MODEL, structured=True)):
        assert isinstance(model.structured_predict(Trip, PromptTemplate(COLOR)), Trip)


@step
def turns() -> None:
    engine = SimpleChatEngine.from_defaults(llm=llm)
    for _ in range(3):
        assert engine.chat(COLOR).response


@step
def too_long() -> None:
    error = refused(openai.BadRequestError, lambda: llm.chat([ChatMessage(role="user", content=TOO_LONG)]))
    assert error.code == "context_length_exceeded", error


@step
def unknown_model() -> None:
    refused(openai.NotFoundError, lambda: like("no").chat([asked]))
