"""The shape of a conversation, and its two derived forms: what the model gets, what is shown.

A conversation is a list of turns as the browser keeps it. A question without an answer stays in it,
so that nothing typed is lost. No network and no Gradio here.
"""

import html
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]


class Message(TypedDict):
    """What the API takes."""

    role: Role
    content: str


class Entry(Message):
    """What the browser keeps: a message, and for an answer a remark such as its speed."""

    note: NotRequired[str]


Conversation = list[Entry]


def restore(kept: object) -> Conversation:
    """The well-formed entries of what a browser sends back, which may be anything."""
    conversation: Conversation = []
    for row in kept if isinstance(kept, list) else []:
        match row:
            case {"role": "user", "content": str(content)}:
                conversation.append(Entry(role="user", content=content))
            case {"role": "assistant", "content": str(content), **rest}:
                note = str(rest.get("note", ""))
                conversation.append(Entry(role="assistant", content=content, note=note))
    return conversation


def ask(conversation: Conversation, text: str) -> Conversation:
    """The conversation with a new question at its end."""
    return [*conversation, Entry(role="user", content=text)]


def reply(conversation: Conversation, text: str, note: str = "") -> Conversation:
    """The conversation with an answer to its last question; none if `text` is empty."""
    if not text:
        return conversation
    return [*conversation, Entry(role="assistant", content=text, note=note)]


def reopen(conversation: Conversation) -> Conversation:
    """The conversation without the answer to its last question."""
    return conversation[:-1] if is_answered(conversation) else conversation


def is_answered(conversation: Conversation) -> bool:
    """Whether the last question has an answer."""
    return bool(conversation) and conversation[-1]["role"] == "assistant"


def for_model(conversation: Conversation, system_prompt: str = "") -> list[Message]:
    """Role and content only, the system prompt first, roles alternating.

    A question that was never answered is left out unless it is the last: many chat templates refuse
    two questions in a row.
    """
    messages: list[Message] = []
    if system_prompt.strip():
        messages.append(Message(role="system", content=system_prompt.strip()))
    following = [entry["role"] for entry in conversation[1:]] + ["assistant"]
    for entry, next_role in zip(conversation, following, strict=False):
        if entry["role"] != next_role:
            messages.append(Message(role=entry["role"], content=entry["content"]))
    return messages


def for_chatbot(conversation: Conversation, notice: str = "") -> list[dict[str, Any]]:
    """Gradio's messages: questions word for word, answers as Markdown, then the notice if any."""
    shown = [_shown(entry) for entry in conversation]
    if notice:
        text = f'<div class="notice">{html.escape(notice)}</div>'
        shown.append(_message("assistant", text))
    return shown


def shown_answer(chatbot: Sequence[dict[str, Any]], conversation: Conversation) -> str:
    """As much of the pending answer as the browser shows; `chatbot` is Gradio's value."""
    if len(chatbot) <= len(conversation):
        return ""
    return str(chatbot[-1]["content"][0].get("text", ""))


def _shown(entry: Entry) -> dict[str, Any]:
    if entry["role"] == "user":
        # Not Markdown: pasted code and documentation must look as they were pasted. The dollar is
        # escaped for the sake of LaTeX.
        text = html.escape(entry["content"]).replace("$", "&#36;")
        return _message("user", f'<pre class="question">{text}</pre>')
    note = entry.get("note")
    return _message(
        "assistant",
        entry["content"],
        *([f'<div class="note">{html.escape(note)}</div>'] if note else []),
    )


def _message(role: Role, *texts: str) -> dict[str, Any]:
    # As parts, not as a string: Gradio takes the indentation off a string.
    return {"role": role, "content": [{"type": "text", "text": text} for text in texts]}
