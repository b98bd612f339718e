"""/v1/responses: what a request may have. Nothing is stored between requests. The answer is in answer.py."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import ConfigDict, Field, StringConstraints, model_validator

from api.dialects.fields import (
    INT64_MAX,
    MAX_MESSAGES,
    MAX_TOOLS,
    ROLE,
    CallId,
    FunctionName,
    SamplingFields,
    TemplateValues,
    require_calls,
)
from api.dialects.invalid import FieldError
from api.dialects.other_fields import CHOICE_TYPES, TOOL, TOOL_TYPES
from api.dialects.responses import other_fields as known
from api.dialects.rules import Strict
from api.dialects.thinking import ThinkingFields
from api.engine.messages import Call, Message, Tool
from api.generation.answer_schema import Format, Offer
from api.generation.request import Conversation

LOGPROBS = "message.output_text.logprobs"
Role = Literal["user", "assistant", "system", "developer"]
MetadataName = Annotated[str, StringConstraints(max_length=64)]
MetadataText = Annotated[str, StringConstraints(max_length=512)]


class InputText(Strict):
    other_fields = known.PART
    other_types = known.PART_TYPES

    type: Literal["input_text", "output_text", "reasoning_text"]
    text: str


class Summary(Strict):
    type: Literal["summary_text"]
    text: str


# Fields that an item of a type needs, and those that it may have.
_FIELDS_OF_TYPE: dict[str, tuple[set[str], set[str]]] = {
    "message": ({"role", "content"}, set()),
    "function_call": ({"call_id", "name", "arguments"}, set()),
    "function_call_output": ({"call_id", "output"}, {"name"}),
    "reasoning": (set(), {"content", "summary"}),
}


class InputItem(Strict):
    """A message, a call that was made, its result, or the thinking before a message or calls."""

    other_fields = known.ITEM
    other_types = known.ITEM_TYPES

    type: Literal["message", "function_call", "function_call_output", "reasoning"] = "message"
    role: Role | None = Field(None, description=f"Of a message, as is content. {ROLE}")
    content: str | list[InputText] | None = None
    summary: list[Summary] | None = Field(None, description="Of a reasoning that has no content.")
    call_id: CallId | None = Field(None, description="Of a call and of its output.")
    name: FunctionName | None = Field(
        None, description="Of a call, as is arguments. Its output may repeat it."
    )
    arguments: str | None = None
    output: str | list[InputText] | None = Field(None, description="Of a call's output.")

    @model_validator(mode="after")
    def _fields_of_the_type(self) -> "InputItem":
        needed, optional = _FIELDS_OF_TYPE[self.type]
        given = {name for name, value in self if value is not None} - {"type"}
        for name in sorted(needed - given):
            raise FieldError(name, f"is missing: an item of type {self.type} has {', '.join(sorted(needed))}")
        for name in sorted(given - needed - optional):
            raise FieldError(name, f"does not belong to an item of type {self.type}")
        for number, part in enumerate(self.content if isinstance(self.content, list) else ()):
            if (part.type == "reasoning_text") != (self.type == "reasoning"):
                raise FieldError(
                    f"content.{number}", f"{part.type} does not belong to an item of type {self.type}"
                )
        return self

    def thinking(self) -> str:
        """Return the text of a reasoning."""
        return _joined(self.content) or "\n".join(part.text for part in self.summary or ())


class TextFormat(Strict):
    model_config = ConfigDict(serialize_by_alias=True)

    type: Literal["text", "json_object", "json_schema"]
    name: FunctionName | None = Field(None, description="Of a json_schema, as are the other fields.")
    description: str | None = Field(None, description="Accepted, not used.")
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = Field(
        None,
        description="The answer obeys the schema anyway; with false, what cannot be enforced is checked.",
    )

    @model_validator(mode="after")
    def _schema_of_the_type(self) -> "TextFormat":
        if len({self.type == "json_schema", self.name is not None, self.schema_ is not None}) > 1:
            raise FieldError("schema", "name and schema belong to the type json_schema, and are needed there")
        return self

    def wanted(self) -> Format | None:
        """Return the schema that the answer must obey, or None if it may be any text."""
        if self.type == "text":
            return None
        return Format(self.schema_ or {"type": "object"}, self.strict is not False)


class TextSettings(Strict):
    other_fields = known.TEXT

    format: TextFormat = TextFormat(type="text")


class FunctionTool(Strict):
    """Like chat's tools, but without the nested `function`."""

    other_fields = TOOL
    other_types = TOOL_TYPES

    type: Literal["function"]
    name: FunctionName
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(Strict):
    other_types = CHOICE_TYPES

    type: Literal["function"]
    name: FunctionName


class ResponseRequest(SamplingFields, ThinkingFields):
    other_fields = known.REQUEST

    model: str = Field(max_length=256)
    input: str | Annotated[list[InputItem], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1, le=INT64_MAX)
    text: TextSettings | None = None
    tools: Annotated[list[FunctionTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    stream: bool | None = None
    metadata: Annotated[dict[MetadataName, MetadataText], Field(max_length=16)] | None = Field(
        None, description="Comes back with the answer."
    )
    include: (
        Annotated[list[Annotated[str, StringConstraints(max_length=128)]], Field(max_length=16)] | None
    ) = Field(None, description=f"{LOGPROBS} is honoured; others are ignored: there is nothing to add.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Above 0 it includes logprobs itself.")
    chat_template_kwargs: TemplateValues | None = None
    user: str | None = Field(None, max_length=256, description="Comes back with the answer.")

    @model_validator(mode="after")
    def _results_need_calls(self) -> "ResponseRequest":
        items = () if isinstance(self.input, str) else self.input
        made = [[item.call_id or ""] if item.type == "function_call" else [] for item in items]
        results = [item.call_id if item.type == "function_call_output" else None for item in items]
        require_calls(made, results, "input")
        return self

    def logprobs(self) -> int | None:
        """Return how many alternatives each token has, or None if no logprobs are wanted."""
        wanted = self.top_logprobs or LOGPROBS in (self.include or ())
        return (self.top_logprobs or 0) if wanted else None

    def unused(self) -> set[str]:
        """Return the names of fields that change nothing because of their value."""
        items = () if isinstance(self.input, str) else self.input
        found = {"input.name" for item in items if item.type == "function_call_output" and item.name}
        for item, after in itertools.pairwise([*items, None]):
            answered = after is not None and (after.type == "function_call" or after.role == "assistant")
            if item is not None and item.type == "reasoning" and not answered:
                found.add("input.reasoning")
        return found | {"include"} if set(self.include or ()) - {LOGPROBS} else found

    def conversation(self) -> Conversation:
        """Return the conversation as prompts take it, and how the template is to write it."""
        items = () if isinstance(self.input, str) else self.input
        return Conversation(
            self.messages(),
            dataclasses.replace(self.thinking_layout(), values=self.chat_template_kwargs or {}),
            thinking_fields=self.thinking_fields(),
            limit_fields=self.limit_fields(),
            earlier_thinking=["input.reasoning"] if any(item.type == "reasoning" for item in items) else [],
        )

    def messages(self) -> list[Message]:
        """Return the conversation as prompts take it. A reasoning belongs to the answer after it."""
        turns = [Message("system", self.instructions)] if self.instructions else []
        if isinstance(self.input, str):
            return [*turns, Message("user", self.input)]
        calls: list[Call] = []
        thinking = ""
        for item in self.input:
            if item.type == "function_call":
                calls.append(Call(item.call_id or "", item.name or "", item.arguments or ""))
                continue
            if calls:
                turns.append(Message("assistant", "", tuple(calls), thinking=thinking))
                calls, thinking = [], ""
            if item.type == "reasoning":
                thinking = item.thinking()
                continue
            message = _message(item)
            if message.role == "assistant":
                message = dataclasses.replace(message, thinking=thinking)
            turns.append(message)
            thinking = ""
        return [*turns, Message("assistant", "", tuple(calls), thinking=thinking)] if calls else turns

    def offer(self) -> Offer:
        """Return the functions that an answer may call. Raises: InvalidRequest."""
        tools = [
            Tool(tool.name, tool.description, tool.parameters, tool.strict is not False)
            for tool in self.tools or ()
        ]
        choice = self.tool_choice
        if isinstance(choice, FunctionChoice):
            return Offer(tools, None, choice.name, self.parallel_tool_calls)
        return Offer(tools, choice, None, self.parallel_tool_calls)


def _message(item: InputItem) -> Message:
    if item.type == "function_call_output":
        return Message("tool", _joined(item.output), call_id=item.call_id)
    role = item.role or "user"
    return Message("system" if role == "developer" else role, _joined(item.content))


def _joined(content: str | Sequence[InputText] | None) -> str:
    if isinstance(content, str):
        return content
    return "".join(part.text for part in content or ())
