"""The data of a chat, and what is derived from it: the messages for the model, the messages to show.

A conversation is the list of turns that the browser stores. A question without an answer stays in it, so
nothing that was typed is lost. This module uses neither the network nor Gradio.
"""

import html
import secrets
import time
from collections.abc import Sequence
from typing import Any, Literal, NotRequired, TypedDict

Role = Literal["system", "user", "assistant"]
Side = Literal["entries", "rival"]
SIDES: tuple[Side, Side] = ("entries", "rival")
TITLE_LENGTH = 60


class Message(TypedDict):
    """A message as the API takes it."""

    role: Role
    content: str


class Entry(Message):
    """A message as the browser stores it. An answer also has:

    note: a remark such as its speed. model: the model that gave it. cut: whether it is incomplete
    tokens: the length of the conversation up to its end, 0 if the API does not report it
    reasoning_content: what the model thought before it, which is shown and never sent
    """

    note: NotRequired[str]
    model: NotRequired[str]
    cut: NotRequired[bool]
    tokens: NotRequired[int]
    reasoning_content: NotRequired[str]


Conversation = list[Entry]


class Ballot(TypedDict):
    """The right to one vote on the last two answers of a chat; `votes` issues and checks it.

    settings: the system prompt and the sampling that both answers were asked with, as JSON
    """

    id: str
    answered_at: str
    settings: str
    signature: str


class Chat(TypedDict):
    """One chat of the side list.

    entries: the conversation
    rival: the conversation with the other model, which has the same questions, if two are compared
    start: the number of questions that are shown but, with their answers, no longer sent
    at: the time of the last question, in seconds since 1970
    ballot: present if the last two answers may be voted on
    """

    id: str
    entries: Conversation
    rival: Conversation
    start: int
    at: float
    ballot: NotRequired[Ballot]


def new_chat(entries: Conversation | None = None) -> Chat:
    """Return a chat with a new id."""
    return Chat(id=secrets.token_hex(6), entries=entries or [], rival=[], start=0, at=time.time())


def restore(kept: object) -> Chat:
    """Return the chat that a browser sends back, which may be anything; a new chat if it is none."""
    match kept:
        case {"id": str(id_), "entries": list(entries), **rest}:
            start, at = rest.get("start"), rest.get("at")
            chat = Chat(
                id=id_,
                entries=restore_entries(entries),
                rival=restore_entries(rest.get("rival")),
                start=start if isinstance(start, int) and start >= 0 else 0,
                at=at if isinstance(at, int | float) else 0.0,
            )
            if ballot := _restore_ballot(rest.get("ballot")):
                chat["ballot"] = ballot
            return chat
    return new_chat()


def _restore_ballot(kept: object) -> Ballot | None:
    match kept:
        case {
            "id": str(id_),
            "answered_at": str(answered_at),
            "settings": str(settings),
            "signature": str(signature),
        }:
            return Ballot(id=id_, answered_at=answered_at, settings=settings, signature=signature)
    return None


def restore_entries(kept: object) -> Conversation:
    """Return the well-formed entries of `kept`, which may be anything."""
    conversation: Conversation = []
    for row in kept if isinstance(kept, list) else []:
        match row:
            case {"role": "user", "content": str(content)}:
                conversation.append(Entry(role="user", content=encodable(content)))
            case {"role": "assistant", "content": str(content), **rest}:
                tokens = rest.get("tokens")
                entry = Entry(
                    role="assistant",
                    content=encodable(content),
                    note=encodable(str(rest.get("note") or "")),
                    model=encodable(str(rest.get("model") or "")),
                    cut=bool(rest.get("cut")),
                    tokens=tokens if isinstance(tokens, int) else 0,
                )
                conversation.append(with_thinking(entry, str(rest.get("reasoning_content") or "")))
    return conversation


def title_of(chat: Chat) -> str:
    """Return the beginning of the first question."""
    first = " ".join(chat["entries"][0]["content"].split()) if chat["entries"] else ""
    if len(first) <= TITLE_LENGTH:
        return first or "New chat"
    return first[:TITLE_LENGTH].rsplit(" ", 1)[0] + "…"


def encodable(text: str) -> str:
    """Return `text` with U+FFFD for each half of a surrogate pair, which neither Gradio nor the API takes."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def ask(conversation: Conversation, text: str) -> Conversation:
    """Return the conversation with a new question at its end."""
    return [*conversation, Entry(role="user", content=encodable(text))]


def reply(
    conversation: Conversation,
    text: str,
    note: str = "",
    *,
    model: str = "",
    cut: bool = False,
    tokens: int = 0,
    thinking: str = "",
) -> Conversation:
    """Return the conversation with an answer to its last question, or unchanged if `text` is empty."""
    if not text:
        return conversation
    text = encodable(text)
    entry = Entry(role="assistant", content=text, note=note, model=model, cut=cut, tokens=tokens)
    return [*conversation, with_thinking(entry, thinking)]


def with_thinking(entry: Entry, thinking: str) -> Entry:
    """Add to an answer what the model thought before it, if anything."""
    if thinking.strip():
        entry["reasoning_content"] = encodable(thinking.strip())
    return entry


def reopen(conversation: Conversation) -> Conversation:
    """Return the conversation without the answer to its last question."""
    return conversation[:-1] if is_answered(conversation) else conversation


def is_answered(conversation: Conversation) -> bool:
    """Return whether the last question has an answer."""
    return bool(conversation) and conversation[-1]["role"] == "assistant"


def is_cut(conversation: Conversation) -> bool:
    """Return whether the last question has an answer that is incomplete."""
    return is_answered(conversation) and conversation[-1].get("cut", False)


def cut(conversation: Conversation, note: str) -> Conversation:
    """Return the conversation with its last answer marked as incomplete."""
    if not is_answered(conversation):
        return conversation
    last = conversation[-1].copy()
    last["note"], last["cut"] = note, True
    return [*conversation[:-1], last]


def before_question(conversation: Conversation, number: int) -> Conversation:
    """Return the turns before the question with that number, counted from 0."""
    places = _questions(conversation)
    return conversation[: places[number]] if number < len(places) else conversation


def from_question(conversation: Conversation, number: int) -> Conversation:
    """Return the turns from the question with that number on."""
    return conversation[len(before_question(conversation, number)) :]


def later_start(chat: Chat) -> int:
    """Return a `start` that leaves out half of the questions that are sent, but never the last one."""
    last = len(_questions(chat["entries"])) - 1
    return min(last, chat["start"] + (last - chat["start"] + 2) // 2)


def _questions(conversation: Conversation) -> list[int]:
    return [place for place, entry in enumerate(conversation) if entry["role"] == "user"]


def for_model(conversation: Conversation, system_prompt: str = "") -> list[Message]:
    """Return role and content of each turn, the system prompt first, with alternating roles.

    An unanswered question is left out unless it is the last, because many chat templates refuse two
    questions in a row.
    """
    messages: list[Message] = []
    if system_prompt.strip():
        messages.append(Message(role="system", content=encodable(system_prompt.strip())))
    following = [entry["role"] for entry in conversation[1:]] + ["assistant"]
    for entry, next_role in zip(conversation, following, strict=False):
        if entry["role"] != next_role:
            messages.append(Message(role=entry["role"], content=entry["content"]))
    return messages


def for_chatbot(
    conversation: Conversation,
    notice: str = "",
    choices: Sequence[tuple[str, str]] = (),
    start: int = 0,
    thinking: str = "",
) -> list[dict[str, Any]]:
    """Return Gradio's messages: questions verbatim, thoughts, answers as Markdown, notes, and the notice.

    choices: (label, value) of the buttons below the notice. thinking: what is thought of the last question
    """
    shown: list[dict[str, Any]] = []
    first_sent = len(before_question(conversation, start)) if start else 0
    for place, entry in enumerate(conversation):
        if first_sent and place == first_sent:
            shown.append(_remark("divider", "The messages above are no longer sent"))
        if thoughts := entry.get("reasoning_content"):
            shown.append(_thoughts(thoughts))
        shown.append(_shown(entry))
        if note := " · ".join(filter(None, [entry.get("model"), entry.get("note")])):
            shown.append(_remark("note", note))
    if thinking.strip():
        shown.append(_thoughts(encodable(thinking), over=bool(notice)))
    if notice:
        shown.append(_remark("notice", notice))
    if choices and shown:
        shown[-1]["options"] = [{"label": label, "value": value} for label, value in choices]
    return shown


def questions_before(chatbot: Sequence[dict[str, Any]], index: int) -> int:
    """Return the number of questions before the message at `index` of Gradio's value."""
    return sum(message["role"] == "user" for message in chatbot[:index])


def _shown(entry: Entry) -> dict[str, Any]:
    if entry["role"] == "user":
        # Not Markdown: pasted code and documentation must look as they were pasted. HTML drops the first
        # line break in a <pre>.
        return _message("user", f'<pre class="question">\n{_verbatim(entry["content"])}</pre>')
    return _message("assistant", entry["content"])


def _verbatim(text: str) -> str:
    """Return the text as HTML in which no LaTeX is read."""
    return html.escape(text).replace("$", "&#36;")


def _thoughts(text: str, *, over: bool = True) -> dict[str, Any]:
    """Return a box that is open while the model thinks and closed once that is over. Its text is verbatim.

    Gradio's own accordion for thoughts has no name for screen readers.
    """
    begin = "<details><summary>Thoughts" if over else "<details open><summary>Thinking"
    shown = _verbatim(text).replace("\n", "&#10;")  # an empty line would end the HTML
    return _message("assistant", f'<div class="thoughts">{begin}</summary><pre>{shown}</pre></details></div>')


def _remark(kind: str, text: str) -> dict[str, Any]:
    # A separate message, because the copy button of an answer would copy it too.
    return _message("assistant", f'<div class="{kind}">{html.escape(text)}</div>')


def _message(role: Role, text: str) -> dict[str, Any]:
    # Gradio removes the indentation of a string, but not that of a part.
    return {"role": role, "content": [{"type": "text", "text": text}]}
