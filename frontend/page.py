"""Build the page as Gradio Blocks and connect each event to its handler.

`turn_events` handles the events of one turn, `chat_events` those of whole chats. page.js has what happens in
the browser alone.
"""

from collections.abc import Awaitable, Callable
from typing import Any

import gradio as gr

import layout
import votes
from chat_events import ChatEvents
from client import Api
from layout import Components
from settings import Settings
from turn_events import TurnEvents
from updates import Update
from visitors import Visitors

MAX_CHATS = 100  # concurrent answers; below this number the API decides who must wait
STATUS_EVERY_S = 4
# Take values as the browser sends them. Gradio would check a choice against those that it has offered, which
# it forgets at a restart.
QUIET: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "preprocess": False}
# Only answers go through Gradio's queue. Its browser code closes the one stream of a page when the last
# queued event ends, and an event that joins at that moment would wait for the next.
AT_ONCE: dict[str, Any] = QUIET | {"queue": False}

# These run in the browser. It writes and reads the files, so nothing is uploaded.
SAVE_FILE = "file => finechat.save(file)"
OPEN_FILE = "() => finechat.open()"
KEEP = "(...values) => [values]"
RECALL = "(kept, ...values) => values.map((value, i) => kept?.[i] ?? value)"


def build_page(settings: Settings, api: Api) -> gr.Blocks:
    """Return the whole page in front of `api`."""
    page = gr.Blocks(title=settings.title, fill_height=True, analytics_enabled=False)
    visitors = Visitors(settings.visitor_answers, settings.visitor_messages_per_minute)
    with page:
        ui = layout.lay_out(settings)
        chat_events = ChatEvents(api, ui, settings)
        turn_events = TurnEvents(api, ui, settings, visitors)
        _wire_turns(ui, turn_events)
        _wire_chats(ui, chat_events, turn_events)
        page.load(
            None,
            [ui.kept_controls, *ui.controls],
            [*ui.controls],
            js=RECALL,
            **AT_ONCE,
        )
        page.load(chat_events.load, {ui.kept, ui.history}, ui.chat_outputs, **AT_ONCE)
        _wire_settings_and_status(page, ui, chat_events)
    page.max_threads = MAX_CHATS  # by default Gradio runs 40 at a time
    page.queue(default_concurrency_limit=MAX_CHATS)
    return page


def _wire_turns(ui: Components, turn_events: TurnEvents) -> None:
    read = {ui.kept, ui.listed, ui.chat_input, ui.comparing}
    asking: dict[str, Any] = {"inputs": read, "outputs": ui.turn_outputs, **AT_ONCE}
    editing = asking | {"inputs": read | {*ui.chatbots}}
    choosing = asking | {
        "inputs": read | {ui.history},
        "outputs": [*ui.turn_outputs, ui.history],
    }
    asked = [
        gr.on([ui.send.click, ui.chat_input.submit], turn_events.ask, **asking),
        ui.chatbot.example_select(turn_events.try_example, **asking),
        *(box.retry(turn_events.retry, **asking) for box in ui.chatbots),
        *(box.edit(turn_events.edit, **editing) for box in ui.chatbots),
        *(box.option_select(turn_events.choose, **choosing) for box in ui.chatbots),
    ]
    chosen = {ui.model, ui.rival_model, ui.comparing, *ui.controls}
    answered = [*ui.chatbots, ui.kept, ui.meter]
    closed = [ui.send, ui.stop, ui.vote, *ui.vote_outputs]
    for event in asked:
        answer = event.then(turn_events.answer, {ui.kept, ui.asked, *chosen}, answered, **QUIET)
        answer.then(turn_events.close, {ui.kept}, closed, **AT_ONCE)
    ui.stop.click(turn_events.stop, None, None, **AT_ONCE)
    for box in ui.chatbots:
        box.undo(
            turn_events.undo,
            {ui.kept, ui.comparing, ui.listed},
            ui.turn_outputs,
            **AT_ONCE,
        )
    for verdict, button in zip(votes.VERDICTS, ui.verdicts, strict=True):
        button.click(_vote_handler(turn_events, verdict), {ui.kept}, ui.vote_outputs, **AT_ONCE)


def _vote_handler(turn_events: TurnEvents, verdict: str) -> Callable[..., Awaitable[Update]]:
    # Not `functools.partial`, in whose signature Gradio finds no `gr.Request`.
    async def vote(inputs: Update, request: gr.Request) -> Update:
        return await turn_events.vote(verdict, inputs, request)

    return vote


def _wire_chats(ui: Components, chat_events: ChatEvents, turn_events: TurnEvents) -> None:
    chats = {ui.kept, ui.history, ui.comparing}
    for event, handler, more in (
        (ui.new_chat.click, chat_events.new, set()),
        (ui.chats.input, chat_events.open, {ui.chats}),
        (ui.delete.click, chat_events.delete, set()),
        (ui.comparing.input, chat_events.compare, set()),
    ):
        stopped = event(turn_events.stop, None, None, **AT_ONCE)
        stopped.then(handler, chats | more, ui.chat_outputs, **AT_ONCE)
    for button, form in (
        (ui.to_json, chat_events.to_json),
        (ui.to_markdown, chat_events.to_markdown),
    ):
        made = button.click(form, {ui.kept}, [ui.file], **AT_ONCE)
        made.then(None, [ui.file], None, js=SAVE_FILE, **AT_ONCE)
    chosen = ui.from_file.click(None, None, [ui.file], js=OPEN_FILE, **AT_ONCE)
    stopped = chosen.then(turn_events.stop, None, None, **AT_ONCE)
    stopped.then(chat_events.from_file, {*chats, ui.file}, ui.chat_outputs, **AT_ONCE)


def _wire_settings_and_status(page: gr.Blocks, ui: Components, chat_events: ChatEvents) -> None:
    for control in ui.controls:
        control.change(None, [*ui.controls], [ui.kept_controls], js=KEEP, **AT_ONCE)
    refreshing: dict[str, Any] = {
        "inputs": {ui.names, ui.model, ui.rival_model, ui.offered},
        "outputs": [
            ui.banner,
            ui.names,
            ui.model,
            ui.rival_model,
            ui.attribution,
            ui.offered,
        ],
        "concurrency_limit": None,
        **AT_ONCE,
    }
    page.load(chat_events.refresh_status, **refreshing)
    ui.model.input(chat_events.refresh_status, **refreshing)
    # Not a part of the tick, which must touch neither a running answer nor a slider that is being moved.
    offering: dict[str, Any] = {"inputs": {ui.model, ui.max_tokens}, "outputs": [ui.chatbot, ui.max_tokens]}
    ui.offered.change(chat_events.show_offer, **offering, **AT_ONCE)
    gr.Timer(STATUS_EVERY_S).tick(chat_events.refresh_status, **refreshing)
