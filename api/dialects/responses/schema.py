"""/v1/responses: its requests and its answers, for text and functions. Nothing is stored between requests."""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from api.dialects.chat.schema import MAX_MESSAGES, ChatMessage, require_answered
from api.generation.schema import INT64_MAX, GenerationRequest, Strict
from api.generation.tools import MAX_TOOLS, CallId, Function, MadeCall, Name, Tool, ToolCall

Role = Literal["user", "assistant", "system", "developer"]
ItemId = Annotated[str, StringConstraints(max_length=128)]
ItemStatus = Literal["in_progress", "completed", "incomplete"]
MetadataName = Annotated[str, StringConstraints(max_length=64)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]


class InputText(Strict):
    """annotations and logprobs: clients send answers back with all that they have; not used."""

    type: Literal["input_text", "output_text"]
    text: str
    annotations: list[Any] | None = Field(None, max_length=0)
    logprobs: list[Any] | None = Field(None, max_length=0)


class InputItem(Strict):
    """A message, a call that was made, or what it gave."""

    type: Literal["message", "function_call", "function_call_output"] = "message"
    id: ItemId | None = Field(None, description="Accepted, not used, as is status.")
    status: ItemStatus | None = None
    role: Role | None = Field(None, description="Of a message, as is content.")
    content: str | list[InputText] | None = None
    call_id: CallId | None = Field(None, description="Of a call and of its output.")
    name: Name | None = Field(None, description="Of a call, as is arguments.")
    arguments: str | None = None
    output: str | list[InputText] | None = Field(None, description="Of a call's output.")

    @model_validator(mode="after")
    def _fields_of_the_type(self) -> "InputItem":
        needed = {
            "message": {"role", "content"},
            "function_call": {"call_id", "name", "arguments"},
            "function_call_output": {"call_id", "output"},
        }[self.type]
        given = {name for name, value in self if value is not None} - {"type", "id", "status"}
        if given != needed:
            raise ValueError(f"an item of type {self.type} has {', '.join(sorted(needed))} and nothing else")
        return self


class TextFormat(Strict):
    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: Name | None = Field(None, description="Of a json_schema, as are the other fields.")
    description: str | None = Field(None, description="Accepted, not used.")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(None, description="Accepted, not used: the answer obeys the schema anyway.")

    @model_validator(mode="after")
    def _schema_of_what(self) -> "TextFormat":
        if len({self.type == "json_schema", self.name is not None, self.schema_ is not None}) > 1:
            raise ValueError("name and schema belong to the type json_schema, and are needed there")
        return self

    def schema_wanted(self) -> dict[str, Any] | None:
        """What the answer must obey; None: it may be any text."""
        return None if self.type == "text" else self.schema_ or {"type": "object"}


class TextSettings(Strict):
    format: TextFormat = TextFormat(type="text")


class FunctionTool(Strict):
    """As chat's, without a level between."""

    type: Literal["function"]
    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    type: Literal["function"]
    name: Name


class ResponseRequest(Strict):
    model: str = Field(max_length=256)
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=INT64_MAX)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    text: TextSettings | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    store: Literal[False] | None = Field(None, description="Without it false: nothing is stored.")
    metadata: Annotated[dict[MetadataName, MetadataText], Field(max_length=16)] | None = Field(
        None, description="Comes back with the answer."
    )
    truncation: Literal["disabled"] | None = None
    include: Annotated[list[str], Field(max_length=0)] | None = None
    user: str | None = Field(None, max_length=256, description="Accepted, not used, not logged.")

    @model_validator(mode="after")
    def _results_of_what(self) -> "ResponseRequest":
        require_answered(self.messages(), "input")
        return self

    def messages(self) -> list[ChatMessage]:
        """The conversation as chat has it."""
        turns = [ChatMessage(role="system", content=self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*turns, ChatMessage(role="user", content=self.input)]
        calls: list[ToolCall] = []
        for item in self.input:
            if item.type == "function_call":
                made = MadeCall(name=item.name or "", arguments=item.arguments or "")
                calls.append(ToolCall(id=item.call_id or "", function=made))
                continue
            if calls:
                turns.append(ChatMessage(role="assistant", tool_calls=calls))
                calls = []
            turns.append(_turn(item))
        return [*turns, ChatMessage(role="assistant", tool_calls=calls)] if calls else turns

    def functions(self) -> list[Tool]:
        return [
            Tool(type="function", function=Function(**tool.model_dump(exclude={"type"})))
            for tool in self.tools or ()
        ]

    def generation(self) -> GenerationRequest:
        return GenerationRequest(
            model=self.model, stream=self.stream, temperature=self.temperature, top_p=self.top_p
        )


def _turn(item: InputItem) -> ChatMessage:
    if item.type == "function_call_output":
        return ChatMessage(role="tool", tool_call_id=item.call_id, content=_joined(item.output))
    return ChatMessage(role=item.role or "user", content=_joined(item.content))


def _joined(content: str | Sequence[InputText] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content or ())


class OutputText(BaseModel):
    type: Literal["output_text"] = "output_text"
    text: str
    annotations: list[Any] = []
    logprobs: list[Any] = []


class OutputMessage(BaseModel):
    id: str
    type: Literal["message"] = "message"
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class OutputCall(BaseModel):
    id: str
    type: Literal["function_call"] = "function_call"
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


class ResponseFailure(BaseModel):
    code: Literal["server_error"] = "server_error"
    message: str


class IncompleteDetails(BaseModel):
    reason: Literal["max_output_tokens"] = "max_output_tokens"


class InputTokensDetails(BaseModel):
    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputTokensDetails(BaseModel):
    reasoning_tokens: int = 0


class ResponseUsage(BaseModel):
    """The details are there because clients insist on them; nothing is counted in them."""

    input_tokens: int
    input_tokens_details: InputTokensDetails = InputTokensDetails()
    output_tokens: int
    output_tokens_details: OutputTokensDetails = OutputTokensDetails()
    total_tokens: int


class ResponseBody(BaseModel):
    """What was asked for comes back beside the output."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["in_progress", "completed", "incomplete", "failed"]
    error: ResponseFailure | None = None
    incomplete_details: IncompleteDetails | None = None
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[OutputMessage | OutputCall]
    parallel_tool_calls: bool
    previous_response_id: None = None
    store: Literal[False] = False
    temperature: float | None
    text: TextSettings
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice
    tools: list[FunctionTool]
    top_p: float | None
    truncation: Literal["disabled"] = "disabled"
    usage: ResponseUsage | None = None
    user: str | None
