"""The page's layout in Gradio's Blocks, and which event calls what.

In: settings and the API. Out: Blocks that are not yet served. What the events do is in `handlers`
(a turn) and `desk` (chats as wholes); what happens in the browser alone is in page.js.
"""

from functools import partial
from typing import Any

import gradio as gr

import layout
import votes
from client import Api
from desk import Desk
from handlers import Handlers
from layout import Parts
from settings import Settings
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
        desk = Desk(api, parts, settings)
        handlers = Handlers(api, parts, settings, visitors)
        _wire_turns(parts, handlers)
        _wire_chats(parts, desk, handlers)
        page.load(None, [parts.kept_knobs, *parts.knobs], [*parts.knobs], js=RECALL, **AT_ONCE)
        page.load(desk.load, {parts.kept, parts.shelf}, parts.of_chat, **AT_ONCE)
        _wire_look(page, parts, desk)
    page.max_threads = MAX_CHATS  # Gradio's own 40 would let the rest wait
    page.queue(default_concurrency_limit=MAX_CHATS)
    return page


def _wire_turns(parts: Parts, handlers: Handlers) -> None:
    got = {parts.kept, parts.listed, parts.chat_input, parts.comparing}
    asking: dict[str, Any] = {"inputs": got, "outputs": parts.of_turn, **AT_ONCE}
    editing = asking | {"inputs": got | {*parts.boxes}}
    choosing = asking | {"inputs": got | {parts.shelf}, "outputs": [*parts.of_turn, parts.shelf]}
    asked = [
        gr.on([parts.send.click, parts.chat_input.submit], handlers.ask, **asking),
        parts.chatbot.example_select(handlers.try_example, **asking),
        *(box.retry(handlers.retry, **asking) for box in parts.boxes),
        *(box.edit(handlers.edit, **editing) for box in parts.boxes),
        *(box.option_select(handlers.choose, **choosing) for box in parts.boxes),
    ]
    chosen = {parts.model, parts.rival_model, parts.comparing, *parts.knobs}
    answered = [*parts.boxes, parts.kept, parts.meter]
    closed = [parts.send, parts.stop, parts.vote, *parts.of_vote]
    for event in asked:
        told = event.then(handlers.answer, {parts.kept, parts.asked, *chosen}, answered, **QUIET)
        told.then(handlers.close, {parts.kept}, closed, **AT_ONCE)
    parts.stop.click(handlers.stop, None, None, **AT_ONCE)
    for box in parts.boxes:
        box.undo(handlers.undo, {parts.kept, parts.comparing, parts.listed}, parts.of_turn, **AT_ONCE)
    judged = {parts.kept, parts.model, parts.rival_model, *parts.knobs}
    for verdict, button in zip(votes.VERDICTS, parts.verdicts, strict=True):
        button.click(partial(handlers.vote, verdict), judged, parts.of_vote, **AT_ONCE)


def _wire_chats(parts: Parts, desk: Desk, handlers: Handlers) -> None:
    chats = {parts.kept, parts.shelf, parts.comparing}
    for event, handler, more in (
        (parts.new_chat.click, desk.new, set()),
        (parts.chats.input, desk.open, {parts.chats}),
        (parts.delete.click, desk.delete, set()),
        (parts.comparing.input, desk.compare, set()),
    ):
        stopped = event(handlers.stop, None, None, **AT_ONCE)
        stopped.then(handler, chats | more, parts.of_chat, **AT_ONCE)
    for button, form in ((parts.to_json, desk.to_json), (parts.to_markdown, desk.to_markdown)):
        made = button.click(form, {parts.kept}, [parts.file], **AT_ONCE)
        made.then(None, [parts.file], None, js=SAVE_FILE, **AT_ONCE)
    chosen = parts.from_file.click(None, None, [parts.file], js=OPEN_FILE, **AT_ONCE)
    stopped = chosen.then(handlers.stop, None, None, **AT_ONCE)
    stopped.then(desk.from_file, {*chats, parts.file}, parts.of_chat, **AT_ONCE)


def _wire_look(page: gr.Blocks, parts: Parts, desk: Desk) -> None:
    for knob in parts.knobs:
        knob.change(None, [*parts.knobs], [parts.kept_knobs], js=KEEP, **AT_ONCE)
    look: dict[str, Any] = {
        "inputs": {parts.names, parts.model, parts.rival_model},
        "outputs": [parts.banner, parts.names, parts.model, parts.rival_model, parts.attribution],
        "concurrency_limit": None,
        **AT_ONCE,
    }
    page.load(desk.look, **look)
    gr.Timer(STATUS_EVERY_S).tick(desk.look, **look)
