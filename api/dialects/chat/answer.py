"""/v1/chat/completions: its answers, whole and in chunks."""

from typing import Literal

from pydantic import BaseModel, Field

from api.dialects.chat.schema import ToolCall
from api.dialects.chunks import Usage
from api.dialects.fields import MAX_CHOICES, SchemaError
from api.generation.events import FinishReason
from api.generation.logprobs import TokenLogprob


class AssistantMessage(BaseModel):
    """reasoning_content, reasoning: the thinking, by DeepSeek's name and by vLLM's. Clients read either."""

    role: Literal["assistant"] = "assistant"
    content: str | None
    reasoning_content: str | None = Field(None, exclude_if=lambda text: text is None)
    reasoning: str | None = Field(None, exclude_if=lambda text: text is None)
    tool_calls: list[ToolCall] | None = Field(None, exclude_if=lambda calls: calls is None)


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    index: int = Field(ge=0, lt=MAX_CHOICES)
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason
    schema_error: SchemaError = None


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """A call's first delta has id, type and name; the others have pieces of its arguments."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    reasoning_content: str | None = None
    reasoning: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int = Field(0, ge=0, lt=MAX_CHOICES)
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: FinishReason | None = None
    schema_error: SchemaError = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream; frames.py writes it without building it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
