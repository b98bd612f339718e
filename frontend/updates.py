"""Component values for a state of the chat: what `turn_events` and `chat_events` return."""

import html
from typing import Any

import gradio as gr

import conversations
import texts
from conversations import SIDES, Chat
from layout import Parts

Update = dict[Any, Any]  # Gradio: component to new value


def chat_update(parts: Parts, chat: Chat, notice: str = "", choices: tuple[str, ...] = ()) -> Update:
    """The whole chat, in both boxes; the notice stands in the first."""
    shown = conversations.for_chatbot(chat["entries"], notice, texts.choice_buttons(choices), chat["start"])
    rival = conversations.for_chatbot(chat["rival"], start=chat["start"])
    return {parts.kept: chat, parts.chatbot: shown, parts.rival: rival}


def restored_chat_update(parts: Parts, chat: Chat) -> Update:
    """The chat as it was left: an open question or a cut answer can be gone on with."""
    if conversations.is_cut(chat["entries"]):
        return chat_update(parts, chat, "", ("continue", "retry"))
    if chat["entries"] and not conversations.is_answered(chat["entries"]):
        return chat_update(parts, chat, texts.NO_ANSWER_YET, ("retry",))
    return chat_update(parts, chat)


def send_or_stop_update(parts: Parts, *, streaming: bool) -> Update:
    """Stop while an answer is under way, else Send."""
    return {parts.send: gr.update(visible=not streaming), parts.stop: gr.update(visible=streaming)}


def chat_list_update(parts: Parts, chats: list[tuple[str, str]], chat: Chat) -> Update:
    """The side list with `chat` open."""
    known = any(chat_id == chat["id"] for _, chat_id in chats)
    return {
        parts.listed: [list(pair) for pair in chats],
        parts.chats: gr.update(choices=chats, value=chat["id"] if known else None),
    }


def vote_update(parts: Parts, *, wanted: bool) -> Update:
    """The question which answer is better."""
    return {
        parts.vote: gr.update(visible=wanted),
        parts.vote_said: html.escape(texts.ASK_TO_VOTE),
        **{button: gr.update(visible=True) for button in parts.verdicts},
    }


def meter_update(parts: Parts, chat: Chat, room: int | None) -> Update:
    """How much of the model's context the conversation takes; nothing while the API has not told."""
    used = max((chat[side][-1].get("tokens", 0) for side in SIDES if chat[side]), default=0)
    if not used:
        return {parts.meter: ""}
    said, label = texts.context_text(used, room), "Context that the conversation takes"
    if room is None:
        return {parts.meter: f'<div class="meter">{said}</div>'}
    share = min(1, used / room)
    state = "full" if share > 0.9 else "high" if share > 0.7 else ""
    return {
        parts.meter: f'<div class="meter {state}" role="meter" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="{room}" aria-valuenow="{used}" aria-valuetext="{said}">'
        f'<span class="bar"><span style="width:{share:.0%}"></span></span>{said}</div>'
    }
