"""What stands where on the page, and under which name the events and tests find it."""

import html
from dataclasses import dataclass
from typing import Any

import gradio as gr

from settings import Settings

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
VERDICT_LABELS = ("Left is better", "Right is better", "Equally good", "Neither")


@dataclass(frozen=True)
class Parts:
    """The components that events read or write.

    kept, history: the open chat and the others, in the browser. listed: (title, id) of all
    asked: whether the model is to be asked
    names: the models that the pickers offer. file: the text of a file on its way in or out
    """

    chats: gr.Radio
    new_chat: gr.Button
    attribution: gr.HTML
    model: gr.Dropdown
    rival_model: gr.Dropdown
    comparing: gr.Checkbox
    knobs: tuple[Any, ...]
    to_json: gr.Button
    to_markdown: gr.Button
    from_file: gr.Button
    delete: gr.Button
    banner: gr.HTML
    chatbot: gr.Chatbot
    rival: gr.Chatbot
    vote: gr.Row
    vote_said: gr.HTML
    verdicts: tuple[gr.Button, ...]
    chat_input: gr.Textbox
    send: gr.Button
    stop: gr.Button
    meter: gr.HTML
    kept: gr.BrowserState
    history: gr.BrowserState
    kept_knobs: gr.BrowserState
    listed: gr.JSON
    asked: gr.Checkbox
    names: gr.JSON
    file: gr.JSON

    @property
    def boxes(self) -> tuple[gr.Chatbot, gr.Chatbot]:
        """Where answers are shown: the conversation, and the rival's."""
        return self.chatbot, self.rival

    @property
    def of_vote(self) -> list[Any]:
        """What a vote may change."""
        return [self.vote_said, *self.verdicts]

    @property
    def of_turn(self) -> list[Any]:
        """What a turn may change."""
        changed = [self.chat_input, *self.boxes, self.kept, self.send, self.stop, self.meter]
        return [*changed, self.chats, self.listed, self.asked, self.vote, *self.of_vote]

    @property
    def of_chat(self) -> list[Any]:
        """What another chat may change."""
        return [*self.of_turn, self.history, self.comparing, self.rival_model]


def lay_out(settings: Settings) -> Parts:
    """All of it, within the Blocks that are open."""
    with gr.Row(elem_id="frame"):
        with gr.Column(elem_id="side", scale=0, min_width=0):
            parts = _side(settings)
        with gr.Column(elem_id="main", min_width=0):
            # The visible title is at the side, which a phone does not show.
            gr.HTML(f"<h1>{html.escape(settings.title)}</h1>", elem_id="heading")
            with gr.Row(elem_id="header"):
                parts |= _header(settings)
            parts["banner"] = gr.HTML(elem_id="banner", visible=False)
            with gr.Row(elem_id="boxes"):
                parts["chatbot"] = _box("chatbot", settings)
                parts["rival"] = _box("rival", settings, visible=False)
            with gr.Row(elem_id="vote", visible=False) as parts["vote"]:
                parts["vote_said"] = gr.HTML(elem_id="vote-said")
                parts["verdicts"] = tuple(gr.Button(label, size="sm") for label in VERDICT_LABELS)
            with gr.Row(elem_id="composer"):
                parts |= _composer()
            parts["meter"] = gr.HTML(elem_id="meter")
    return Parts(**parts, **_memory(settings))


def _side(settings: Settings) -> dict[str, Any]:
    gr.HTML(f'<div aria-hidden="true">{html.escape(settings.title)}</div>', elem_id="title")
    new_chat = gr.Button("New chat", elem_id="new-chat")
    chats = gr.Radio([], label="Chats", elem_id="chats", container=False)
    gr.HTML("Chats are kept in this browser only.", elem_id="where-kept")
    attribution = gr.HTML(html.escape(settings.attribution), elem_id="attribution")
    return {"new_chat": new_chat, "chats": chats, "attribution": attribution}


def _header(settings: Settings) -> dict[str, Any]:
    gr.Button("Chats", elem_id="menu", scale=0, min_width=0).click(None, js="() => finechat.menu()")
    parts: dict[str, Any] = {}
    with gr.Row(elem_id="models"):
        parts["model"] = _picker("model", "Model")
        parts["rival_model"] = _picker("rival-model", "Model on the right", visible=False)
    parts["comparing"] = gr.Checkbox(label="Compare", elem_id="comparing", container=False)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        parts["knobs"] = _knobs(settings)
    with gr.Accordion("More", open=False, elem_id="more"):
        parts["to_json"] = gr.Button("Export as JSON", elem_id="to-json")
        parts["to_markdown"] = gr.Button("Export as Markdown", elem_id="to-markdown")
        parts["from_file"] = gr.Button("Import a chat", elem_id="from-file")
        gr.Button("Light or dark", elem_id="theme").click(None, js="() => finechat.theme()")
        parts["delete"] = gr.Button("Delete this chat", elem_id="delete")
    return parts


def _picker(name: str, label: str, *, visible: bool = True) -> gr.Dropdown:
    return gr.Dropdown(
        [],
        label=label,
        elem_id=name,
        container=False,
        filterable=False,
        interactive=True,
        visible=visible,
    )


def _knobs(settings: Settings) -> tuple[Any, ...]:
    """System prompt, temperature, top-p, length, seed, stop: in the order that `turn_events` reads them."""
    return (
        gr.Textbox(
            "",
            elem_id="system-prompt",
            label="System prompt",
            placeholder="None: the model's own",
            lines=2,
            max_lines=6,
        ),
        gr.Slider(0, 2, settings.temperature, step=0.05, elem_id="temperature", label="Temperature"),
        gr.Slider(0.05, 1, 1, step=0.05, elem_id="top-p", label="Top-p"),
        gr.Slider(
            16,
            4096,
            settings.max_tokens,
            step=16,
            elem_id="max-tokens",
            label="Answer length, at most (tokens)",
        ),
        gr.Number(None, precision=0, elem_id="seed", label="Seed", placeholder="None: every answer differs"),
        gr.Textbox(
            "",
            elem_id="stop-texts",
            label="Stop texts, one a line",
            placeholder="None: the model ends by itself",
            lines=1,
            max_lines=4,
        ),
    )


def _box(name: str, settings: Settings, *, visible: bool = True) -> gr.Chatbot:
    return gr.Chatbot(
        elem_id=name,
        show_label=False,
        container=False,
        scale=1,
        height="auto",
        layout="bubble",
        buttons=["copy"],
        editable="user",
        group_consecutive_messages=False,
        feedback_options=None,
        latex_delimiters=LATEX,
        placeholder=settings.intro if visible else "",
        examples=[{"text": e.prompt, "display_text": e.title} for e in settings.examples]
        if visible
        else None,
        visible=visible,
    )


def _composer() -> dict[str, Any]:
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
    return {"chat_input": chat_input, "send": send, "stop": stop}


def _memory(settings: Settings) -> dict[str, Any]:
    # Gradio's default secret is new in each process, which would lose every history at a restart.
    # It is part of the page, so it only veils the text in the browser's storage.
    secret = settings.history_secret.get_secret_value()
    return {
        "kept": gr.BrowserState({}, storage_key="chat", secret=secret),
        # The storage key keeps its first name: browsers hold chats under it.
        "history": gr.BrowserState([], storage_key="shelf", secret=secret),
        "kept_knobs": gr.BrowserState([], storage_key="settings", secret=secret),
        "asked": gr.Checkbox(visible=False),
        **{name: gr.JSON(visible=False) for name in ("listed", "names", "file")},
    }
