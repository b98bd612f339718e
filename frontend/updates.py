"""New component values for a state of the chat, which `turn_events` and `chat_events` return."""

import html
from collections.abc import Sequence
from typing import Any

import gradio as gr

import conversations
import texts
from conversations import SIDES, Chat
from layout import Components
from offer import Offer
from settings import Example

Update = dict[Any, Any]  # from a Gradio component to its new value


def chat_update(
    ui: Components,
    chat: Chat,
    notice: str = "",
    choices: tuple[str, ...] = (),
    examples: Sequence[Example] = (),
) -> Update:
    """Show the whole chat in both chatbots, and in the first the notice, its choices and more examples."""
    buttons = texts.choice_buttons(choices) + texts.example_buttons(examples)
    shown = conversations.for_chatbot(chat["entries"], notice, buttons, chat["start"])
    rival = conversations.for_chatbot(chat["rival"], start=chat["start"])
    return {ui.kept: chat, ui.chatbot: shown, ui.rival: rival}


def restored_chat_update(ui: Components, chat: Chat, examples: Sequence[Example]) -> Update:
    """Show the chat as it was left, with a way to continue an open question or an incomplete answer.

    examples: to try next, if the last answer is whole
    """
    if conversations.is_cut(chat["entries"]):
        return chat_update(ui, chat, "", ("continue", "retry"))
    if chat["entries"] and not conversations.is_answered(chat["entries"]):
        return chat_update(ui, chat, texts.NO_ANSWER_YET, ("retry",))
    return chat_update(ui, chat, examples=examples)


def send_or_stop_update(ui: Components, *, streaming: bool) -> Update:
    """Show Stop while an answer is running, otherwise Send."""
    return {ui.send: gr.update(visible=not streaming), ui.stop: gr.update(visible=streaming)}


def chat_list_update(ui: Components, chats: list[tuple[str, str]], chat: Chat) -> Update:
    """Show the side list with `chat` selected."""
    known = any(chat_id == chat["id"] for _, chat_id in chats)
    return {
        ui.listed: [list(pair) for pair in chats],
        ui.chats: gr.update(choices=chats, value=chat["id"] if known else None),
    }


def vote_update(ui: Components, *, wanted: bool) -> Update:
    """Show or hide the question which answer is better."""
    return {
        ui.vote: gr.update(visible=wanted),
        ui.vote_text: html.escape(texts.ASK_TO_VOTE),
        **{button: gr.update(visible=True) for button in ui.verdicts},
    }


def meter_update(ui: Components, chat: Chat, room: int | None) -> Update:
    """Show how much of the model's context the conversation takes; nothing if the API has not reported it."""
    used = max((chat[side][-1].get("tokens", 0) for side in SIDES if chat[side]), default=0)
    if not used:
        return {ui.meter: ""}
    text, label = texts.context_text(used, room), "Context that the conversation takes"
    if room is None:
        return {ui.meter: f'<div class="meter">{text}</div>'}
    share = min(1, used / room)
    state = "full" if share > 0.9 else "high" if share > 0.7 else ""
    return {
        ui.meter: f'<div class="meter {state}" role="meter" aria-label="{label}" aria-valuemin="0" '
        f'aria-valuemax="{room}" aria-valuenow="{used}" aria-valuetext="{text}">'
        f'<span class="bar"><span style="width:{share:.0%}"></span></span>{text}</div>'
    }


def offer_update(ui: Components, offer: Offer, max_tokens: int) -> Update:
    """Show what the model is for, and end the answer length at its context.

    max_tokens: the answer length that is chosen; it is lowered if it is above the end
    """
    examples = [{"text": e.prompt, "display_text": e.title} for e in offer.examples]
    longest, lowered = offer.longest_answer, max_tokens > offer.longest_answer
    info = texts.answer_length_info(offer.context_tokens, max_tokens if lowered else None)
    value = {"value": longest} if lowered else {}
    return {
        ui.chatbot: gr.update(placeholder=offer.intro, examples=examples),
        ui.max_tokens: gr.update(maximum=longest, info=info, **value),
    }
