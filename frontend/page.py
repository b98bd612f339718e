"""The page's layout in Gradio's Blocks, and which event calls what.

In: settings and the API. Out: Blocks that are not yet served. What the events do is in `turn_events`
(a turn) and `chat_events` (chats as wholes); what happens in the browser alone is in page.js.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

import layout
import votes
from chat_events import ChatEvents
from client import Api
from layout import Parts
from settings import Settings
from turn_events import TurnEvents
from updates import Update
from visitors import Visitors

MAX_CHATS = 100  # at once; the API decides below that who must wait
STATUS_EVERY_S = 4
# Values are taken as the browser sends them: Gradio would check a choice against those that it offered,
# which a restart forgets.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
# Only answers go through Gradio's queue. Its browser side closes the one stream of a page when the
# last event in the queue ends, and an event that joins at that moment would wait for the next.
AT_ONCE: dict[str, Any] = QUIET | {"queue": False}

# What runs in the browser: a file is made and read there, so nothing is uploaded.
SAVE_FILE = "file => finechat.save(file)"
OPEN_FILE = "() => finechat.open()"
KEEP = "(...values) => [values]"
RECALL = "(kept, ...values) => values.map((value, i) => kept?.[i] ?? value)"


def build_page(settings: Settings, api: Api) -> gr.Blocks:
    """The whole page, in front of `api`."""
    page = gr.Blocks(title=settings.title, fill_height=True, analytics_enabled=False)
    visitors = Visitors(settings.visitor_answers, settings.visitor_messages_per_minute)
    with page:
        parts = layout.lay_out(settings)
        chat_events = ChatEvents(api, parts, settings)
        turn_events = TurnEvents(api, parts, settings, visitors)
        _wire_turns(parts, turn_events)
        _wire_chats(parts, chat_events, turn_events)
        page.load(None, [parts.kept_knobs, *parts.knobs], [*parts.knobs], js=RECALL, **AT_ONCE)
        page.load(chat_events.load, {parts.kept, parts.history}, parts.of_chat, **AT_ONCE)
        _wire_settings_and_status(page, parts, chat_events)
    page.max_threads = MAX_CHATS  # Gradio's own 40 would let the rest wait
    page.queue(default_concurrency_limit=MAX_CHATS)
    return page


def _wire_turns(parts: Parts, turn_events: TurnEvents) -> None:
    got = {parts.kept, parts.listed, parts.chat_input, parts.comparing}
    asking: dict[str, Any] = {"inputs": got, "outputs": parts.of_turn, **AT_ONCE}
    editing = asking | {"inputs": got | {*parts.boxes}}
    choosing = asking | {"inputs": got | {parts.history}, "outputs": [*parts.of_turn, parts.history]}
    asked = [
        gr.on([parts.send.click, parts.chat_input.submit], turn_events.ask, **asking),
        parts.chatbot.example_select(turn_events.try_example, **asking),
        *(box.retry(turn_events.retry, **asking) for box in parts.boxes),
        *(box.edit(turn_events.edit, **editing) for box in parts.boxes),
        *(box.option_select(turn_events.choose, **choosing) for box in parts.boxes),
    ]
    chosen = {parts.model, parts.rival_model, parts.comparing, *parts.knobs}
    answered = [*parts.boxes, parts.kept, parts.meter]
    closed = [parts.send, parts.stop, parts.vote, *parts.of_vote]
    for event in asked:
        told = event.then(turn_events.answer, {parts.kept, parts.asked, *chosen}, answered, **QUIET)
        told.then(turn_events.close, {parts.kept}, closed, **AT_ONCE)
    parts.stop.click(turn_events.stop, None, None, **AT_ONCE)
    for box in parts.boxes:
        box.undo(turn_events.undo, {parts.kept, parts.comparing, parts.listed}, parts.of_turn, **AT_ONCE)
    for verdict, button in zip(votes.VERDICTS, parts.verdicts, strict=True):
        button.click(_vote_handler(turn_events, verdict), {parts.kept}, parts.of_vote, **AT_ONCE)


def _vote_handler(turn_events: TurnEvents, verdict: str) -> Callable[..., Awaitable[Update]]:
    # A function of its own, because Gradio finds no `gr.Request` in the signature of a partial.
    async def vote(got: Update, request: gr.Request) -> Update:
        return await turn_events.vote(verdict, got, request)

    return vote


def _wire_chats(parts: Parts, chat_events: ChatEvents, turn_events: TurnEvents) -> None:
    chats = {parts.kept, parts.history, parts.comparing}
    for event, handler, more in (
        (parts.new_chat.click, chat_events.new, set()),
        (parts.chats.input, chat_events.open, {parts.chats}),
        (parts.delete.click, chat_events.delete, set()),
        (parts.comparing.input, chat_events.compare, set()),
    ):
        stopped = event(turn_events.stop, None, None, **AT_ONCE)
        stopped.then(handler, chats | more, parts.of_chat, **AT_ONCE)
    for button, form in ((parts.to_json, chat_events.to_json), (parts.to_markdown, chat_events.to_markdown)):
        made = button.click(form, {parts.kept}, [parts.file], **AT_ONCE)
        made.then(None, [parts.file], None, js=SAVE_FILE, **AT_ONCE)
    chosen = parts.from_file.click(None, None, [parts.file], js=OPEN_FILE, **AT_ONCE)
    stopped = chosen.then(turn_events.stop, None, None, **AT_ONCE)
    stopped.then(chat_events.from_file, {*chats, parts.file}, parts.of_chat, **AT_ONCE)


def _wire_settings_and_status(page: gr.Blocks, parts: Parts, chat_events: ChatEvents) -> None:
    for knob in parts.knobs:
        knob.change(None, [*parts.knobs], [parts.kept_knobs], js=KEEP, **AT_ONCE)
    refreshing: dict[str, Any] = {
        "inputs": {parts.names, parts.model, parts.rival_model},
        "outputs": [parts.banner, parts.names, parts.model, parts.rival_model, parts.attribution],
        "concurrency_limit": None,
        **AT_ONCE,
    }
    page.load(chat_events.refresh_status, **refreshing)
    gr.Timer(STATUS_EVERY_S).tick(chat_events.refresh_status, **refreshing)
