"""Define the one form of a row, `Conversation`; `parse` turns raw rows into it."""

import dataclasses
import hashlib
from dataclasses import dataclass, field
from typing import Literal

from trainer.data.calls import Call

Role = Literal["system", "user", "assistant", "tool"]

BY_QUESTION = "question:"  # begins the group of rows that name none


@dataclass(frozen=True, slots=True)
class Message:
    """trained: whether an answer has labels. reasoning: its thinking, from a field of its own.

    calls: of functions, by an answer. call_id: of the call whose result a message holds.
    """

    role: Role
    content: str
    trained: bool = True
    reasoning: str = ""
    calls: tuple[Call, ...] = ()
    call_id: str = ""

    @property
    def said(self) -> str:
        """The content and the calls, as people read them."""
        return "\n".join([self.content, *(call.text for call in self.calls)]) if self.calls else self.content


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation that ends with an answer.

    groups: labels shared by rows that share text. score: the quality that the data set states, or None.
    tools: functions that may be called, each as JSON text.
    own: for each answer, the number of the base model's own answer that it is, or None; empty: none is.
    where: the place it was read from. joined: the places of the rows that `chats` joined to it.
    repaired: what was changed in the raw turns. shape: of the raw row, as `shapes` names it.
    """

    messages: tuple[Message, ...]
    source: str
    groups: tuple[str, ...] = ()
    score: float | None = None
    where: str = field(default="", compare=False)
    repaired: tuple[str, ...] = field(default=(), compare=False)
    own: tuple[int | None, ...] = ()
    tools: tuple[str, ...] = ()
    joined: tuple[str, ...] = field(default=(), compare=False)
    shape: str = field(default="", compare=False)

    @property
    def files(self) -> tuple[str, ...]:
        """Return the file, or the split of the Hub, of each row that the conversation is made of."""
        return tuple(file_of(where) for where in (self.where, *self.joined) if where)

    @property
    def row_id(self) -> str:
        """The SHA-256 of roles, texts and tools: the same are the same row, wherever it was read."""
        digest = hashlib.sha256()
        for message in self.messages:
            digest.update(f"{message.role}\x00{message.content}\x01".encode())
            if message.reasoning:
                digest.update(f"{message.reasoning}\x02".encode())
            for call in message.calls:
                digest.update(f"{call.text}\x03".encode())
        for tool in self.tools:
            digest.update(f"{tool}\x04".encode())
        return digest.hexdigest()

    @property
    def first_question(self) -> str:
        """Return the SHA-256 of the first question."""
        asked = next(message.content for message in self.messages if message.role == "user")
        return hashlib.sha256(asked.encode()).hexdigest()

    @property
    def text(self) -> str:
        """The texts and the thinking of all turns, without the roles."""
        return "\n".join(text for m in self.messages for text in (m.reasoning, m.said) if text)

    def with_groups(self, more: tuple[str, ...]) -> "Conversation":
        """Return the same row with these groups added."""
        return dataclasses.replace(self, groups=tuple(dict.fromkeys(self.groups + more)))

    @property
    def prompt(self) -> tuple[Message, ...]:
        """All turns but the last answer."""
        return self.messages[:-1]


def file_of(where: str) -> str:
    """Return the file of a place, FILE:PLACE."""
    return where.rpartition(":")[0]
