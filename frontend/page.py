"""The page: its layout in Gradio's Blocks, and which event calls what.

In: settings and the API. Out: Blocks that are not yet served. What a turn is, is in `chat`.
"""

import html
from collections.abc import AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import gradio as gr

import chat
import conversations
import words
from client import Api, Sampling
from conversations import Conversation
from settings import Settings

MAX_CHATS = 64  # at once; the API decides below that who must wait
STATUS_EVERY_S = 4
LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

Update = dict[Any, Any]  # Gradio: component to new value


@dataclass(frozen=True)
class Parts:
    """The components that events read or write."""

    banner: gr.HTML
    model: gr.HTML
    chatbot: gr.Chatbot
    chat_input: gr.Textbox
    send: gr.Button
    stop: gr.Button
    new_chat: gr.Button
    system_prompt: gr.Textbox
    temperature: gr.Slider
    max_tokens: gr.Slider
    kept: gr.BrowserState


def build_page(settings: Settings, api: Api) -> gr.Blocks:
    """The whole page, in front of `api`."""
    page = gr.Blocks(title=settings.title, fill_height=True, analytics_enabled=False)
    with page:
        parts = _lay_out(settings)
        _wire(page, parts, Handlers(api, parts))
    page.queue(default_concurrency_limit=MAX_CHATS)
    return page


def _lay_out(settings: Settings) -> Parts:
    with gr.Row(elem_id="header"):
        gr.HTML(f"<h1>{html.escape(settings.title)}</h1>", elem_id="title")
        model = gr.HTML(elem_id="model")
        knobs = _knobs(settings)
        new_chat = gr.Button("New chat", elem_id="new-chat", size="sm", min_width=90)
    banner = gr.HTML(elem_id="banner", visible=False)
    chatbot = gr.Chatbot(
        elem_id="chatbot",
        show_label=False,
        container=False,
        scale=1,
        height="auto",
        layout="bubble",
        buttons=["copy"],
        feedback_options=None,
        latex_delimiters=LATEX,
        placeholder=settings.intro,
        examples=[{"text": e.prompt, "display_text": e.title} for e in settings.examples],
    )
    with gr.Row(elem_id="composer"):
        chat_input = gr.Textbox(
            elem_id="chat-input",
            label="Message",
            placeholder="Write a message",
            show_label=False,
            container=False,
            max_lines=12,
            autofocus=True,
            scale=1,
        )
        send = gr.Button("Send", elem_id="send", variant="primary", scale=0, min_width=72)
        stop = gr.Button("Stop", elem_id="stop", visible=False, scale=0, min_width=72)
    return Parts(banner, model, chatbot, chat_input, send, stop, new_chat, *knobs, _kept(settings))


def _knobs(settings: Settings) -> tuple[gr.Textbox, gr.Slider, gr.Slider]:
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        system_prompt = gr.Textbox(
            elem_id="system-prompt",
            value="",
            label="System prompt",
            placeholder="None: the model's own",
            max_lines=6,
        )
        temperature = gr.Slider(
            0, 2, settings.temperature, step=0.05, elem_id="temperature", label="Temperature"
        )
        max_tokens = gr.Slider(
            16,
            4096,
            settings.max_tokens,
            step=16,
            elem_id="max-tokens",
            label="Answer length, at most (tokens)",
        )
    return system_prompt, temperature, max_tokens


def _kept(settings: Settings) -> gr.BrowserState:
    # Gradio's default secret is new in each process, which would lose every history at a restart.
    # It is part of the page, so it only veils the text in the browser's storage.
    return gr.BrowserState([], storage_key="conversation", secret=settings.history_secret.get_secret_value())


def _wire(page: gr.Blocks, parts: Parts, handlers: "Handlers") -> None:
    quiet: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden"}
    knobs = [parts.system_prompt, parts.temperature, parts.max_tokens]
    turn = [parts.chat_input, parts.chatbot, parts.kept, parts.send, parts.stop]
    whole = [parts.chat_input, parts.chatbot, parts.kept]
    streams = [
        gr.on(
            [parts.send.click, parts.chat_input.submit],
            handlers.ask,
            [parts.chat_input, parts.kept, *knobs],
            turn,
            **quiet,
        ),
        parts.chatbot.example_select(handlers.try_example, [parts.kept, *knobs], turn, **quiet),
        parts.chatbot.retry(handlers.retry, [parts.kept, *knobs], turn, **quiet),
    ]
    parts.stop.click(handlers.stop, [parts.chatbot, parts.kept], turn, cancels=streams, **quiet)
    parts.new_chat.click(handlers.clear, None, turn, cancels=streams, **quiet)
    parts.chatbot.undo(handlers.undo, [parts.kept], whole, **quiet)
    page.load(handlers.restore, [parts.kept], [parts.chatbot], **quiet)
    look: dict[str, Any] = {"outputs": [parts.banner, parts.model], "concurrency_limit": None}
    page.load(handlers.look, **look, **quiet)
    gr.Timer(STATUS_EVERY_S).tick(handlers.look, **look, **quiet)


class Handlers:
    """What each event does; every one returns the new values of the components it changes."""

    def __init__(self, api: Api, parts: Parts) -> None:
        self._api = api
        self._parts = parts

    async def ask(self, text: str, kept: object, *knobs: Any) -> AsyncIterator[Update]:
        """Send, or Enter: a new question."""
        yield {self._parts.chat_input: ""}
        if text.strip():
            question = conversations.ask(conversations.restore(kept), text)
            async for update in self._answer(question, *knobs):
                yield update

    async def try_example(
        self,
        kept: object,
        system_prompt: str,
        temperature: float,
        max_tokens: float,
        chosen: gr.SelectData,
    ) -> AsyncIterator[Update]:
        """An example prompt, sent as it is."""
        question = conversations.ask(conversations.restore(kept), chosen.value["text"])
        async for update in self._answer(question, system_prompt, temperature, max_tokens):
            yield update

    async def retry(self, kept: object, *knobs: Any) -> AsyncIterator[Update]:
        """The last question again; its answer, if any, gives way."""
        question = conversations.reopen(conversations.restore(kept))
        async for update in self._answer(question, *knobs):
            yield update

    async def _answer(
        self, question: Conversation, system_prompt: str, temperature: float, max_tokens: float
    ) -> AsyncIterator[Update]:
        parts, turn = self._parts, chat.Turn(question)
        yield self._show(question) | _buttons(parts, streaming=True)
        sampling = Sampling(temperature, int(max_tokens))
        async with aclosing(chat.answer(self._api, question, system_prompt, sampling)) as turns:
            async for turn in turns:
                yield {parts.chatbot: conversations.for_chatbot(turn.conversation, turn.notice)}
        yield {parts.kept: turn.conversation} | _buttons(parts, streaming=False)

    def stop(self, shown: list[dict[str, Any]], kept: object) -> Update:
        """Keeps what the reader has seen; Gradio has cancelled the stream itself."""
        conversation = conversations.restore(kept)
        answer = conversations.shown_answer(shown, conversation)
        conversation = conversations.reply(conversation, answer, words.STOPPED)
        notice = "" if answer else words.STOPPED_EARLY
        return self._show(conversation, notice) | _buttons(self._parts, streaming=False)

    def clear(self) -> Update:
        """A new chat."""
        return self._show([]) | _buttons(self._parts, streaming=False)

    def undo(self, kept: object) -> Update:
        """Takes the last question back into the input box."""
        question = conversations.reopen(conversations.restore(kept))
        return {self._parts.chat_input: question[-1]["content"]} | self._show(question[:-1])

    def restore(self, kept: object) -> Update:
        """The conversation as the browser kept it."""
        conversation = conversations.restore(kept)
        open_question = conversation and not conversations.is_answered(conversation)
        notice = words.NO_ANSWER_YET if open_question else ""
        return {self._parts.chatbot: conversations.for_chatbot(conversation, notice)}

    async def look(self) -> Update:
        """The served model's name, and the banner while there is none."""
        status = await self._api.status()
        reason = words.why_not(status.failure) if status.failure else ""
        return {
            self._parts.banner: gr.HTML(html.escape(reason), visible=bool(reason)),
            self._parts.model: html.escape(status.model),
        }

    def _show(self, conversation: Conversation, notice: str = "") -> Update:
        return {
            self._parts.kept: conversation,
            self._parts.chatbot: conversations.for_chatbot(conversation, notice),
        }


def _buttons(parts: Parts, *, streaming: bool) -> Update:
    return {parts.send: gr.Button(visible=not streaming), parts.stop: gr.Button(visible=streaming)}
