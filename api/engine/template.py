"""Find out what a chat template reads: its variables, names in messages, and system prompts."""

import inspect
import secrets
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.nodes import Node
from jinja2.parser import Parser

from api.engine.messages import Call, Message, Role
from api.errors import InvalidRequest

# The prompt's own content, and what the training has fixed.
_NOT_FROM_CLIENTS = {"messages", "documents", "date_string", "strftime_now", "raise_exception"}


class _Generation(jinja2.ext.Extension):
    """Read `{% generation %}`, which marks answers for trainings: a tag of transformers' own."""

    tags = {"generation"}  # noqa: RUF012 - Jinja's

    def parse(self, parser: Parser) -> list[Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


def variables(tokenizer: Any) -> frozenset[str]:
    """Return the variables of the tokenizer's template that a request may set.

    They are those that the template reads and does not set, without what transformers and this service give.
    """
    environment = jinja2.Environment(extensions=["jinja2.ext.loopcontrols", "jinja2.ext.do", _Generation])
    try:
        read = jinja2.meta.find_undeclared_variables(environment.parse(str(tokenizer.chat_template)))
    except jinja2.TemplateError:  # rendering a prompt will tell
        return frozenset()
    given = {
        *_NOT_FROM_CLIENTS,
        *environment.globals,
        *inspect.signature(tokenizer.apply_chat_template).parameters,
    }
    return frozenset(name for name in read - given if not name.endswith(("_token", "_tokens", "_tools")))


def named_roles(render: Callable[[Sequence[Message]], str]) -> frozenset[Role]:
    """Return the roles whose names the template writes: it is tried with a name that nobody can guess."""
    mark = f"n{secrets.token_hex(16)}"
    user, call = Message("user", "Hi"), Call("c", "f", "{}")
    conversations: list[list[Message]] = [
        [Message("system", "x", name=mark), user],
        [Message("user", "Hi", name=mark)],
        [user, Message("assistant", "x", name=mark)],
        [user, Message("assistant", "", (call,)), Message("tool", "x", call_id="c", name=mark)],
    ]
    found: set[Role] = set()
    for messages in conversations:
        try:
            text = render(messages)
        except InvalidRequest:  # the template has no such conversations
            continue
        if mark in text:
            found.add(next(message.role for message in messages if message.name))
    return frozenset(found)


def takes_system(render: Callable[[Sequence[Message]], str]) -> bool:
    """Return whether the template writes a system prompt: it is tried with one that nobody can guess."""
    mark = f"s{secrets.token_hex(16)}"
    try:
        return mark in render([Message("system", mark), Message("user", "Hi")])
    except InvalidRequest:
        return False


def system_in_question(messages: Sequence[Message]) -> Sequence[Message]:
    """Return the messages with the system prompts that begin them in the first question, as the trainer does.

    They stay as they are if no question follows.
    """
    count = next((i for i, message in enumerate(messages) if message.role != "system"), len(messages))
    if not count or count == len(messages) or messages[count].role != "user":
        return messages
    question = messages[count]
    text = "\n\n".join(message.text for message in messages[: count + 1])
    return [replace(question, text=text), *messages[count + 1 :]]
