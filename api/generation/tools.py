"""Tools: functions that a client offers, the choice between them, and calls in a conversation."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, StringConstraints

from api.generation.schema import Strict

MAX_TOOLS = 128

Name = Annotated[str, StringConstraints(pattern=r"^[a-zA-Z0-9_-]{1,64}$")]
CallId = Annotated[str, StringConstraints(min_length=1, max_length=128)]


class Function(Strict):
    """parameters: a JSON Schema; without it the function takes no arguments."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = Field(
        None,
        description="A required call obeys `parameters` anyway; in one that is not, this changes nothing.",
    )


class Tool(Strict):
    type: Literal["function"]
    function: Function


class Named(Strict):
    name: Name


class NamedToolChoice(Strict):
    type: Literal["function"]
    function: Named


ToolChoice = Literal["none", "auto", "required"] | NamedToolChoice
Tools = Annotated[list[Tool], Field(min_length=1, max_length=MAX_TOOLS)]


class MadeCall(Strict):
    name: Name
    arguments: str


class ToolCall(Strict):
    """arguments: JSON as the model wrote it, which in a call that was not required may be none."""

    id: CallId
    type: Literal["function"] = "function"
    function: MadeCall


class FunctionDelta(BaseModel):
    name: str | None = None
    arguments: str


class ToolCallDelta(BaseModel):
    """id, type and name come with a call's first delta, pieces of its arguments with the others."""

    index: int
    id: str | None = None
    type: Literal["function"] | None = None
    function: FunctionDelta
