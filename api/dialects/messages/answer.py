"""An answer of /v1/messages: its content blocks, why it ended, and its usage."""

from typing import Any, Literal

import orjson
from pydantic import BaseModel, Field

from api.dialects.fields import SchemaError
from api.generation.events import Answer, Identity, Usage

UNSIGNED = "unsigned"  # the signature of thinking; some clients return no thinking with an empty one
StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class Text(BaseModel):
    type: Literal["text"] = "text"
    text: str


class Thinking(BaseModel):
    """signature: clients insist on one, and return it."""

    type: Literal["thinking"] = "thinking"
    thinking: str
    signature: str


class ToolUse(BaseModel):
    type: Literal["tool_use"] = "tool_use"
    id: str
    name: str
    input: dict[str, Any]


class OutputTokensDetails(BaseModel):
    thinking_tokens: int


class MessageUsage(BaseModel):
    """input_tokens: those of the prompt that were computed. cache_read_input_tokens: the others.

    cache_creation_input_tokens is always 0: nobody pays for the cache. thinking_tokens: with the markers.
    """

    input_tokens: int
    cache_creation_input_tokens: int = 0
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails | None = Field(
        None, exclude_if=lambda details: details is None, description="If the model thinks."
    )

    @classmethod
    def of(cls, usage: Usage) -> "MessageUsage":
        """Return the usage in this dialect's format."""
        return cls(
            input_tokens=usage.prompt_tokens - usage.cached_tokens,
            cache_read_input_tokens=usage.cached_tokens,
            output_tokens=usage.completion_tokens,
            output_tokens_details=(
                None
                if usage.thinking_tokens is None
                else OutputTokensDetails(thinking_tokens=usage.thinking_tokens)
            ),
        )


class Ending(BaseModel):
    """Why an answer ended. stop_sequence: the one that ended it."""

    stop_reason: StopReason
    stop_sequence: str | None = None
    schema_error: SchemaError = None

    @classmethod
    def of(cls, answer: Answer, called: bool, in_context: bool) -> "Ending":
        """Return the end of an answer.

        called: it has a call that can be run. in_context: a token limit that ended it is the request's own,
        not the model's.
        """
        reason: StopReason = "end_turn" if answer.stop is None else "stop_sequence"
        if answer.finish_reason == "length":
            reason = "max_tokens" if in_context else "model_context_window_exceeded"
        elif called:
            reason = "tool_use"
        stop = answer.stop if reason == "stop_sequence" else None
        return cls(stop_reason=reason, stop_sequence=stop, schema_error=answer.schema_error)


class MessageBody(BaseModel):
    """One whole answer, or in a stream its beginning."""

    id: str
    type: Literal["message"] = "message"
    role: Literal["assistant"] = "assistant"
    model: str
    content: list[Thinking | Text | ToolUse]
    stop_reason: StopReason | None = None
    stop_sequence: str | None = None
    schema_error: SchemaError = None
    usage: MessageUsage

    @classmethod
    def begun(cls, identity: Identity, usage: Usage) -> "MessageBody":
        """Return an answer of which nothing has been sent."""
        return cls(id=identity.id, model=identity.model, content=[], usage=MessageUsage.of(usage))


class TokenCount(BaseModel):
    input_tokens: int


def content(answer: Answer) -> list[Thinking | Text | ToolUse]:
    """Return the blocks of a whole answer.

    A call that was cut, or is not valid JSON, is text: no client should run it.
    """
    blocks: list[Thinking | Text | ToolUse] = []
    if answer.thinking:
        blocks.append(Thinking(thinking=answer.thinking, signature=UNSIGNED))
    if answer.text or not (answer.calls or answer.thinking):
        blocks.append(Text(text=answer.text))
    for call in answer.calls:
        input = input_of(call.arguments)
        if input is None:
            blocks.append(Text(text=f'{{"name": "{call.name}", "arguments": {call.arguments}'))
        else:
            blocks.append(ToolUse(id=call.id, name=call.name, input=input))
    return blocks


def input_of(arguments: str) -> dict[str, Any] | None:
    """Return a call's arguments as an object, or None if they are none."""
    try:
        input = orjson.loads(arguments)
    except orjson.JSONDecodeError:
        return None
    return input if isinstance(input, dict) else None
