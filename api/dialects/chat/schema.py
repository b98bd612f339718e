"""/v1/chat/completions: what a request may have. The answer is in answer.py."""

import dataclasses
from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints, model_validator

from api.dialects.chat import other_fields as known
from api.dialects.fields import (
    MAX_MESSAGES,
    MAX_TOOLS,
    ROLE,
    CallId,
    CompletionFields,
    FunctionName,
    MaxTokens,
    TemplateValues,
    require_calls,
)
from api.dialects.invalid import FieldError
from api.dialects.other_fields import CHOICE_TYPES, TOOL, TOOL_TYPES
from api.dialects.rules import Strict
from api.dialects.thinking import EarlierThinking, Effort, ThinkingFields
from api.engine import messages as neutral
from api.generation.answer_schema import Format, Offer
from api.generation.request import Conversation

MAX_CALLS = 128  # of one message
MAX_PARTS = 1024  # likewise


class TextPart(Strict):
    other_fields = known.PART
    other_types = known.PART_TYPES

    type: Literal["text"]
    text: str


Parts = Annotated[list[TextPart], Field(max_length=MAX_PARTS, fail_fast=True)]


class MadeCall(Strict):
    other_fields = known.MADE_CALL

    name: FunctionName
    arguments: str


class ToolCall(Strict):
    """arguments: JSON as the model wrote it; in a call that was not required it may be invalid."""

    other_fields = known.CALL
    other_types = known.CALL_TYPES

    id: CallId
    type: Literal["function"] = "function"
    function: MadeCall

    @classmethod
    def of(cls, call: neutral.Call) -> "ToolCall":
        """Return the call in OpenAI's format."""
        return cls(id=call.id, function=MadeCall(name=call.name, arguments=call.arguments))

    def call(self) -> neutral.Call:
        """Return the call as prompts take it."""
        return neutral.Call(self.id, self.function.name, self.function.arguments)


class ChatMessage(Strict):
    other_fields = known.MESSAGE

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(description=ROLE)
    content: str | Parts | None = Field(
        None, description="May be absent with tool_calls, refusal or thinking."
    )
    refusal: str | None = Field(None, description="Of an assistant, in place of content.")
    tool_calls: list[ToolCall] | None = Field(None, max_length=MAX_CALLS, fail_fast=True)
    tool_call_id: CallId | None = None
    name: Annotated[str, StringConstraints(max_length=256)] | None = Field(
        None, description="Of who says it; ignored if the template has no place for it."
    )
    reasoning_content: EarlierThinking = None
    reasoning: EarlierThinking = None

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> "ChatMessage":
        if self.tool_calls and self.role != "assistant":
            raise FieldError("tool_calls", "only a message of the assistant has them")
        if self.refusal is not None and self.role != "assistant":
            raise FieldError("refusal", "only a message of the assistant has one")
        thought = self.reasoning_content or self.reasoning  # an answer that was cut may have nothing else
        if self.content is None and self.refusal is None and not self.tool_calls and not thought:
            raise FieldError("content", "is missing")
        if (self.tool_call_id is not None) != (self.role == "tool"):
            raise FieldError("tool_call_id", "belongs to a message of role tool, and is needed there")
        return self

    def message(self) -> neutral.Message:
        """Return the message as prompts take it: chat templates do not know the role `developer`."""
        role = "system" if self.role == "developer" else self.role
        calls = tuple(call.call() for call in self.tool_calls or ())
        thinking = self.reasoning_content or self.reasoning or ""
        return neutral.Message(role, self._text(), calls, self.tool_call_id, self.name, thinking)

    def _text(self) -> str:
        if isinstance(self.content, list):
            return "".join(part.text for part in self.content)
        return self.content or self.refusal or ""


class JsonSchema(Strict):
    name: FunctionName
    description: str | None = Field(None, description="Accepted, not used.")
    schema_: dict[str, Any] | None = Field(None, alias="schema", description="Without it any JSON object.")
    strict: bool | None = Field(
        None,
        description="The answer obeys the schema anyway; with false, what cannot be enforced is checked.",
    )


class ResponseFormat(Strict):
    other_types = known.FORMAT_TYPES

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None

    @model_validator(mode="after")
    def _schema_of_the_type(self) -> "ResponseFormat":
        if (self.json_schema is not None) != (self.type == "json_schema"):
            raise FieldError("json_schema", "belongs to the type json_schema, and is needed there")
        return self

    def wanted(self) -> Format | None:
        """Return the schema that the answer must obey, or None if it may be any text."""
        if self.type == "text":
            return None
        if self.json_schema is None or not self.json_schema.schema_:
            return Format({"type": "object"})
        return Format(self.json_schema.schema_, self.json_schema.strict is not False)


class Function(Strict):
    """parameters: a JSON Schema; without it the function takes no arguments."""

    other_fields = TOOL

    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        None,
        description="A required call obeys `parameters` anyway; with false, what cannot be enforced is "
        "checked. In a call that is not required, this changes nothing.",
    )


class Tool(Strict):
    other_fields = TOOL
    other_types = TOOL_TYPES

    type: Literal["function"]
    function: Function


class NamedFunction(Strict):
    name: FunctionName


class NamedToolChoice(Strict):
    other_types = CHOICE_TYPES

    type: Literal["function"]
    function: NamedFunction


class ChatRequest(CompletionFields, ThinkingFields):
    other_fields = known.REQUEST

    messages: list[ChatMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    max_completion_tokens: MaxTokens | None = Field(None, description="-1: as many as fit, as without it.")
    max_tokens: MaxTokens | None = Field(None, description="The older name of max_completion_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Needs logprobs.")
    response_format: ResponseFormat | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedToolChoice | None = Field(
        None, description="Without it auto, if there are tools."
    )
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool | None = Field(
        None, description="false: the answer's beginning is not written."
    )
    continue_final_message: bool | None = Field(
        None, description="The answer continues the last message, which is the assistant's."
    )
    chat_template_kwargs: TemplateValues | None = None
    reasoning_effort: Effort | None = Field(
        None, description="`none` turns thinking off, where the template can."
    )

    @model_validator(mode="after")
    def _top_logprobs_need_logprobs(self) -> "ChatRequest":
        if self.top_logprobs and not self.logprobs:
            raise FieldError("top_logprobs", "needs logprobs to be true")
        return self

    @model_validator(mode="after")
    def _only_an_answer_is_continued(self) -> "ChatRequest":
        last, field = self.messages[-1], "continue_final_message"
        if self.continue_final_message and (last.role != "assistant" or last.tool_calls):
            raise FieldError(field, "needs a last message of the assistant without tool_calls")
        if self.continue_final_message and self.add_generation_prompt:
            raise FieldError(field, "needs add_generation_prompt to be false or absent")
        return self

    @model_validator(mode="after")
    def _results_need_calls(self) -> "ChatRequest":
        made = [[call.id for call in message.tool_calls or ()] for message in self.messages]
        require_calls(made, [message.tool_call_id for message in self.messages], "messages")
        return self

    def conversation(self) -> Conversation:
        """Return the messages, and how the template is to write them."""
        layout = dataclasses.replace(
            self.thinking_layout(self.reasoning_effort),
            begins=self.add_generation_prompt is not False,
            continued=bool(self.continue_final_message),
            values=self.chat_template_kwargs or {},
        )
        return Conversation(
            [message.message() for message in self.messages],
            layout,
            thinking_fields=[
                *self.thinking_fields(),
                *(["reasoning_effort"] if self.reasoning_effort else []),
            ],
            limit_fields=self.limit_fields(),
            earlier_thinking=self._earlier_thinking(),
        )

    def _earlier_thinking(self) -> set[str]:
        """Return the names of the fields that hold the thinking of messages."""
        names = ("reasoning_content", "reasoning")
        return {
            f"messages.{name}" for each in self.messages for name in names if getattr(each, name) is not None
        }

    def offer(self) -> Offer:
        """Return the functions that an answer may call. Raises: InvalidRequest."""
        functions = [tool.function for tool in self.tools or ()]
        tools = [
            neutral.Tool(one.name, one.description, one.parameters, one.strict is not False)
            for one in functions
        ]
        choice = self.tool_choice
        if isinstance(choice, NamedToolChoice):
            return Offer(tools, None, choice.function.name, self.parallel_tool_calls)
        return Offer(tools, choice, None, self.parallel_tool_calls)
