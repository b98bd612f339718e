"""Define the messages and tools from which a prompt is rendered, independent of any dialect.

Every dialect translates its own messages into these.
"""

from dataclasses import dataclass
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
    """calls: made by an assistant's message. call_id: the call whose result a tool's message holds."""

    role: Role
    text: str
    calls: tuple[Call, ...] = ()
    call_id: str | None = None


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that a client offers. parameters: a JSON Schema; without it there are no arguments.

    strict: what of `parameters` cannot be enforced is refused, and not left out.
    """

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool = True
