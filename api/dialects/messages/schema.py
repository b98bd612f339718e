"""/v1/messages: what a request may have. The answer is in answer.py."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Any, Literal

import orjson
from pydantic import Discriminator, Field, StringConstraints, Tag, model_validator

from api.dialects.fields import (
    INT64_MAX,
    MAX_MESSAGES,
    MAX_STOPS,
    MAX_TOOLS,
    ROLE,
    CallId,
    StopText,
)
from api.dialects.invalid import FieldError
from api.dialects.messages import other_fields as known
from api.dialects.rules import Strict
from api.dialects.thinking import ThinkingChoice
from api.engine.json_schema import MAX_DEPTH, is_deep
from api.engine.messages import Call, Layout, Message, Tool
from api.engine.sampling import Sampling
from api.generation.answer_schema import Format, Offer
from api.generation.request import Conversation

MAX_BLOCKS = 1024  # of one message

ToolName = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
# Claude Code begins the system prompt with a line about itself that differs in every request. With it, the
# engine could use no cached prompt again (github.com/anthropics/claude-code/issues/68900).
_ATTRIBUTION = "x-anthropic-billing-header"
_CLASSES = {
    "text": "TextBlock",
    "thinking": "ThinkingBlock",
    "tool_use": "ToolUseBlock",
    "tool_result": "ToolResultBlock",
}
_OWNERS = {"thinking": "assistant", "tool_use": "assistant", "tool_result": "user"}
_CHOICES: dict[str, Literal["auto", "required", "none"]] = {"auto": "auto", "any": "required", "none": "none"}


class TextBlock(Strict):
    other_fields = known.TEXT
    other_types = known.BLOCK_TYPES

    type: Literal["text"]
    text: str


class ThinkingBlock(Strict):
    """The thinking of an earlier answer; ignored if the template has no place for it."""

    other_fields = known.THINKING

    type: Literal["thinking"]
    thinking: str


class ToolUseBlock(Strict):
    """A call that an answer made."""

    other_fields = known.TOOL_USE

    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: dict[str, Any]

    @model_validator(mode="after")
    def _input_can_be_written(self) -> "ToolUseBlock":
        if is_deep(self.input):
            raise FieldError("input", f"may have at most {MAX_DEPTH} levels")
        return self

    def call(self) -> Call:
        """Return the call as prompts take it."""
        return Call(self.id, self.name, orjson.dumps(self.input).decode())


class ToolResultBlock(Strict):
    other_fields = known.TOOL_RESULT

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None

    def message(self) -> Message:
        """Return the result as prompts take it."""
        return Message("tool", _text(self.content or ""), call_id=self.tool_use_id)


def _class_of(block: Any) -> str | None:
    """Return the name of a block's class: errors leave class names out of a field's path."""
    if not isinstance(block, dict):
        return type(block).__name__
    kind = block.get("type")
    return _CLASSES.get(kind) if isinstance(kind, str) else None


Block = Annotated[
    Annotated[TextBlock, Tag("TextBlock")]
    | Annotated[ThinkingBlock, Tag("ThinkingBlock")]
    | Annotated[ToolUseBlock, Tag("ToolUseBlock")]
    | Annotated[ToolResultBlock, Tag("ToolResultBlock")],
    Discriminator(
        _class_of, "block_type", "must be an object of type 'text', 'thinking', 'tool_use' or 'tool_result'"
    ),
]
Blocks = Annotated[list[Block], Field(max_length=MAX_BLOCKS, fail_fast=True)]


class InputMessage(Strict):
    other_fields = known.MESSAGE

    role: Literal["user", "assistant", "system"] = Field(description=ROLE)
    content: str | Blocks | None = Field(None, description="Needed, but for the role `system`.")
    clear_at: Literal["next_user_message", "never"] | None = Field(
        None, description="Of the role `system`: until when the model is shown the message."
    )

    @model_validator(mode="after")
    def _fields_of_the_role(self) -> "InputMessage":
        if self.role != "system" and self.content is None:
            raise FieldError("content", "is missing")
        if self.role != "system" and self.clear_at is not None:
            raise FieldError("clear_at", "belongs to a message of role 'system'")
        for number, block in enumerate(self.blocks()):
            owner = _OWNERS.get(block.type, self.role)
            if owner != self.role:
                raise FieldError(f"content.{number}", f"belongs to a message of role {owner!r}")
        return self

    def blocks(self) -> Sequence[Block]:
        """Return the blocks of the content; a text alone has none."""
        return self.content if isinstance(self.content, list) else ()

    def messages(self) -> Iterator[Message]:
        """Yield the message as prompts take it: results of calls come first, each as a message."""
        blocks = self.blocks()
        results = [block.message() for block in blocks if isinstance(block, ToolResultBlock)]
        yield from results
        texts = [block for block in blocks if isinstance(block, TextBlock)]
        calls = tuple(block.call() for block in blocks if isinstance(block, ToolUseBlock))
        thinking = "\n".join(block.thinking for block in blocks if isinstance(block, ThinkingBlock))
        if texts or calls or not results:
            said = self.content if isinstance(self.content, str) else _text(texts)
            yield Message(self.role, said, calls, thinking=thinking)


class ToolDefinition(Strict):
    other_fields = known.TOOL
    other_types = known.TOOL_TYPES

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description="A JSON Schema of type object.")
    strict: bool | None = Field(
        None,
        description="What of `input_schema` a required call cannot be held to is refused, not only checked.",
    )


class ToolChoice(Strict):
    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = Field(None, description="Of type `tool`: the one that must be called.")
    disable_parallel_tool_use: bool | None = None

    @model_validator(mode="after")
    def _name_of_the_type(self) -> "ToolChoice":
        if (self.name is not None) != (self.type == "tool"):
            raise FieldError("name", "belongs to the type 'tool', and is needed there")
        return self


class OutputFormat(Strict):
    type: Literal["json_schema"]
    schema_: dict[str, Any] = Field(alias="schema")


class OutputConfig(Strict):
    other_fields = known.OUTPUT

    format: OutputFormat | None = None


class PromptRequest(Strict):
    """The fields that make the prompt. A request to count tokens has no others."""

    other_fields = known.PROMPT

    model: str = Field(max_length=256)
    messages: list[InputMessage] = Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)
    system: str | Annotated[list[TextBlock], Field(max_length=MAX_BLOCKS, fail_fast=True)] | None = None
    tools: Annotated[list[ToolDefinition], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = Field(None, description="Without it auto, if there are tools.")
    output_config: OutputConfig | None = None
    output_format: OutputFormat | None = Field(None, description="The older name of output_config.format.")
    thinking: ThinkingChoice | None = Field(
        None, description="Without it no thinking, where the template can do without, and none is sent."
    )

    @model_validator(mode="after")
    def _messages_fit_together(self) -> "PromptRequest":
        if not any(self._shown()):
            raise FieldError("messages", "must have one that the model is shown")
        made: set[str] = set()
        for number, message in enumerate(self.messages):
            for block in message.blocks():
                if isinstance(block, ToolUseBlock):
                    made.add(block.id)
                elif isinstance(block, ToolResultBlock) and block.tool_use_id not in made:
                    raise FieldError(
                        f"messages.{number}", f"it answers a call that is not before it ({block.tool_use_id})"
                    )
        return self

    def conversation(self) -> Conversation:
        """Return the messages as prompts take them, with one turn for successive ones of a role.

        The answer continues a last message of the assistant.
        """
        system = _text(self.system or "")
        if system.startswith(_ATTRIBUTION):
            system = system.partition("\n")[2]
        turns = [Message("system", system)] if system else []
        for message in (turn for given in self._shown() for turn in given.messages()):
            last = turns[-1] if turns else None
            if last is None or last.role != message.role or message.role == "tool":
                turns.append(message)
                continue
            text, thinking = (
                "\n".join(filter(None, parts))
                for parts in ((last.text, message.text), (last.thinking, message.thinking))
            )
            turns[-1] = Message(last.role, text, last.calls + message.calls, thinking=thinking)
        last = turns[-1]
        continued = last.role == "assistant" and not last.calls
        thought = any(isinstance(block, ThinkingBlock) for each in self.messages for block in each.blocks())
        return Conversation(
            turns,
            Layout(continued=continued, thinking=self.thinking is not None and self.thinking.on),
            thinking_fields=["thinking"] if self.thinking else [],
            limit_fields=self.thinking.limit_fields if self.thinking else [],
            earlier_thinking=["messages.content.thinking"] if thought else [],
        )

    def shows_thinking(self) -> bool:
        """Return whether the answer has a block of thinking: as Anthropic's API does, if it is asked for."""
        return self.thinking is not None and self.thinking.on and self.thinking.display != "omitted"

    def _shown(self) -> Iterator[InputMessage]:
        """Yield the messages that the model is to see."""
        asked = [number for number, message in enumerate(self.messages) if message.role == "user"]
        last = asked[-1] if asked else -1
        for number, message in enumerate(self.messages):
            if message.content is not None and (message.clear_at != "next_user_message" or number > last):
                yield message

    def unused(self) -> list[str]:
        """Return the names of what stays out of the prompt."""
        attributed = _text(self.system or "").startswith(_ATTRIBUTION)
        return [f"system.{_ATTRIBUTION}"] if attributed else []

    def offer(self) -> Offer:
        """Return the functions that an answer may call. Raises: InvalidRequest."""
        tools = [
            Tool(tool.name, tool.description, tool.input_schema, strict=bool(tool.strict))
            for tool in self.tools or ()
        ]
        choice = self.tool_choice
        if choice is None:
            return Offer(tools)
        return Offer(tools, _CHOICES.get(choice.type), choice.name, not choice.disable_parallel_tool_use)

    def format(self) -> Format | None:
        """Return what an answer must obey, or None if it may be any text."""
        wanted = (self.output_config and self.output_config.format) or self.output_format
        return Format(wanted.schema_) if wanted else None


class MessageRequest(PromptRequest):
    other_fields = known.REQUEST

    max_tokens: int = Field(ge=1, le=INT64_MAX)
    stream: bool | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1_000_000, description="0 and -1: no limit.")
    stop_sequences: Annotated[list[StopText], Field(max_length=MAX_STOPS)] | None = None

    def sampling(self) -> Sampling:
        """Return how tokens are chosen; a field that is left out takes the model's own default."""
        return Sampling(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            stop=self.stop_sequences or None,
            thinking_tokens=self.thinking.budget_tokens if self.thinking else None,
        )


def _text(content: str | Sequence[TextBlock]) -> str:
    """Return a text, or the texts of blocks, a line each: clients do not end them with one."""
    return content if isinstance(content, str) else "\n".join(block.text for block in content)
