"""Define the messages and tools from which a prompt is rendered, independent of any dialect.

Every dialect translates its own messages into these.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Role = Literal["system", "user", "assistant", "tool"]


@dataclass(frozen=True, slots=True)
class Call:
    """A call of a function. arguments: text as the model wrote it, which need not be valid JSON."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Message:
    """calls: made by an assistant's message. call_id: the call whose result a tool's message holds.

    name: of who says it, for templates that write names. thinking: an assistant's, before its text and calls.
    """

    role: Role
    text: str
    calls: tuple[Call, ...] = ()
    call_id: str | None = None
    name: str | None = None
    thinking: str = ""


@dataclass(frozen=True, slots=True)
class Layout:
    """How a template writes a conversation.

    begins: the prompt ends with the beginning of an answer. continued: it ends in the last message, which
    the answer continues. values: variables of the model's template, by their names. thinking: turn it on or
    off, where the template can; None: as the template has it. effort: for templates that read one.
    """

    begins: bool = True
    continued: bool = False
    values: Mapping[str, bool | int | str] = field(default_factory=dict)
    thinking: bool | None = None
    effort: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a client offers. parameters: a JSON Schema; without it there are no arguments.

    strict: what of `parameters` cannot be enforced is refused, and not left out.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = True
