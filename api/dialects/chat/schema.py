"""/v1/chat/completions: its requests and its answers."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, model_validator

from api.generation.schema import (
    INT64_MAX,
    MAX_CHOICES,
    FinishReason,
    GenerationRequest,
    Strict,
    TokenLogprob,
    Usage,
)
from api.generation.tools import CallId, Name, ToolCall, ToolCallDelta, ToolChoice, Tools

MAX_MESSAGES = 2048
MAX_CALLS = 128  # of one message
MAX_PARTS = 1024  # likewise

ChatFinishReason = FinishReason | Literal["tool_calls"]


class TextPart(Strict):
    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class ChatMessage(Strict):
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | Parts | None = Field(None, description="May be null beside tool_calls only.")
    tool_calls: list[ToolCall] | None = Field(None, min_length=1, max_length=MAX_CALLS)
    tool_call_id: CallId | None = None
    # Clients send answers back with all that OpenAI's answers have.
    refusal: None = None
    annotations: None = None
    audio: None = None
    function_call: None = None

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> "ChatMessage":
        if self.tool_calls is not None and self.role != "assistant":
            raise ValueError("only a message of the assistant has tool_calls")
        if self.content is None and self.tool_calls is None:
            raise ValueError("content is missing")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise ValueError("tool_call_id belongs to a message of role tool, and is needed there")
        return self

    def text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or ""


class JsonSchema(Strict):
    name: Name
    description: str | None = Field(None, description="Accepted, not used.")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Without it any JSON object.")
    strict: bool | None = Field(None, description="Accepted, not used: the answer obeys the schema anyway.")


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_of_what(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise ValueError("json_schema belongs to the type json_schema, and is needed there")
        return self

    def schema_wanted(self) -> dict[str, Any] | None:
        """What the answer must obey; None: it may be any text."""
        if self.type == "text":
            return None
        return (self.json_schema and self.json_schema.schema_) or {"type": "object"}


class ChatRequest(GenerationRequest):
    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: int | None = Field(None, ge=1, le=INT64_MAX)
    max_tokens: int | None = Field(
        None, ge=1, le=INT64_MAX, description="The older name of max_completion_tokens."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs.")
    response_format: ResponseFormat | None = None
    tools: Tools | None = None
    tool_choice: ToolChoice | None = Field(None, description="Without it auto, if there are tools.")
    parallel_tool_calls: bool | None = None

    @model_validator(mode="after")
    def _top_of_what(self) -> "ChatRequest":
        if self.top_logprobs is not None and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs to be true")
        return self

    @model_validator(mode="after")
    def _results_of_what(self) -> "ChatRequest":
        require_answered(self.messages, "messages")
        return self


def require_answered(messages: Sequence[ChatMessage], field: str) -> None:
    """Raises: ValueError if a result belongs to no call before it."""
    made: set[str] = set()
    for message in messages:
        made |= {call.id for call in message.tool_calls or ()}
        if message.tool_call_id is not None and message.tool_call_id not in made:
            raise ValueError(f"{field}: a result belongs to no call before it ({message.tool_call_id})")


class AssistantMessage(BaseModel):
    role: Literal["assistant"] = "assistant"
    content: str | None
    tool_calls: list[ToolCall] | None = Field(None, exclude_if=lambda calls: calls is None)


class ChoiceLogprobs(BaseModel):
    content: list[TokenLogprob]
    refusal: None = None


class Choice(BaseModel):
    index: int = Field(ge=0, lt=MAX_CHOICES)
    message: AssistantMessage
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinishReason


class ChatCompletion(BaseModel):
    id: str
    object: Literal["chat.completion"] = "chat.completion"
    created: int
    model: str
    system_fingerprint: str
    choices: list[Choice]
    usage: Usage


class Delta(BaseModel):
    role: Literal["assistant"] | None = None
    content: str | None = None
    tool_calls: list[ToolCallDelta] | None = None


class ChunkChoice(BaseModel):
    index: int = Field(0, ge=0, lt=MAX_CHOICES)
    delta: Delta
    logprobs: ChoiceLogprobs | None = None
    finish_reason: ChatFinishReason | None = None


class ChatCompletionChunk(BaseModel):
    """One event of a stream; sse.py writes it without building it."""

    id: str
    object: Literal["chat.completion.chunk"] = "chat.completion.chunk"
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChunkChoice]
    usage: Usage | None = None
