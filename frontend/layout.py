"""The components of the page and their arrangement. Tests and CSS find them by their `elem_id`."""

import html
from dataclasses import dataclass
from typing import Any, cast

import gradio as gr

import texts
from offer import LENGTH_STEP, LONGEST_UNKNOWN
from settings import Settings

LATEX: list[dict[str, str | bool]] = [
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]
VERDICT_LABELS = ("Left is better", "Right is better", "Equally good", "Neither")


@dataclass(frozen=True)
class Components:
    """The components that events read or write.

    kept, history: the open chat and the others, in the browser's storage
    listed: (title, id) of all chats. asked: whether the model must answer now
    controls: the settings of an answer. names: the models that the pickers offer
    offered: the model that the page describes
    file: a file that is being exported or imported
    """

    chats: gr.Radio
    new_chat: gr.Button
    attribution: gr.HTML
    model: gr.Dropdown
    rival_model: gr.Dropdown
    comparing: gr.Checkbox
    controls: tuple[Any, ...]
    to_json: gr.Button
    to_markdown: gr.Button
    from_file: gr.Button
    delete: gr.Button
    banner: gr.HTML
    chatbot: gr.Chatbot
    rival: gr.Chatbot
    vote: gr.Row
    vote_text: gr.HTML
    verdicts: tuple[gr.Button, ...]
    chat_input: gr.Textbox
    send: gr.Button
    stop: gr.Button
    meter: gr.HTML
    kept: gr.BrowserState
    history: gr.BrowserState
    kept_controls: gr.BrowserState
    listed: gr.JSON
    asked: gr.Checkbox
    names: gr.JSON
    offered: gr.JSON
    file: gr.JSON

    @property
    def chatbots(self) -> tuple[gr.Chatbot, gr.Chatbot]:
        """The chatbots that show the conversation and the rival's."""
        return self.chatbot, self.rival

    @property
    def max_tokens(self) -> gr.Slider:
        """The answer length among the controls."""
        [slider] = [control for control in self.controls if control.elem_id == "max-tokens"]
        return cast("gr.Slider", slider)

    @property
    def vote_outputs(self) -> list[Any]:
        """The components that a vote may change."""
        return [self.vote_text, *self.verdicts]

    @property
    def turn_outputs(self) -> list[Any]:
        """The components that a turn may change."""
        changed = [self.chat_input, *self.chatbots, self.kept, self.send, self.stop, self.meter]
        return [*changed, self.chats, self.listed, self.asked, self.vote, *self.vote_outputs]

    @property
    def chat_outputs(self) -> list[Any]:
        """The components that opening another chat may change."""
        return [*self.turn_outputs, self.history, self.comparing, self.rival_model]


def lay_out(settings: Settings) -> Components:
    """Create all components within the Blocks context that is open."""
    with gr.Row(elem_id="frame"):
        with gr.Column(elem_id="side", scale=0, min_width=0):
            components = _side(settings)
        with gr.Column(elem_id="main", min_width=0):
            # The visible title is in the side list, which a phone hides.
            gr.HTML(f"<h1>{html.escape(settings.title)}</h1>", elem_id="heading")
            with gr.Row(elem_id="header"):
                components |= _header(settings)
            components["banner"] = gr.HTML(elem_id="banner", visible=False)
            with gr.Row(elem_id="boxes"):
                components["chatbot"] = _chatbot("chatbot")
                components["rival"] = _chatbot("rival", visible=False)
            with gr.Row(elem_id="vote", visible=False) as components["vote"]:
                components["vote_text"] = gr.HTML(elem_id="vote-text")
                components["verdicts"] = tuple(gr.Button(label, size="sm") for label in VERDICT_LABELS)
            with gr.Row(elem_id="composer"):
                components |= _composer()
            components["meter"] = gr.HTML(elem_id="meter")
    return Components(**components, **_memory(settings))


def _side(settings: Settings) -> dict[str, Any]:
    gr.HTML(f'<div aria-hidden="true">{html.escape(settings.title)}</div>', elem_id="title")
    new_chat = gr.Button("New chat", elem_id="new-chat")
    chats = gr.Radio([], label="Chats", elem_id="chats", container=False)
    gr.HTML("Chats are kept in this browser only.", elem_id="where-kept")
    attribution = gr.HTML(html.escape(settings.attribution), elem_id="attribution")
    return {"new_chat": new_chat, "chats": chats, "attribution": attribution}


def _header(settings: Settings) -> dict[str, Any]:
    gr.Button("Chats", elem_id="menu", scale=0, min_width=0).click(None, js="() => finechat.menu()")
    components: dict[str, Any] = {}
    with gr.Row(elem_id="models"):
        components["model"] = _picker("model", "Model")
        components["rival_model"] = _picker("rival-model", "Model on the right", visible=False)
    components["comparing"] = gr.Checkbox(label="Compare", elem_id="comparing", container=False)
    with gr.Accordion("Settings", open=False, elem_id="settings"):
        components["controls"] = _controls(settings)
    with gr.Accordion("More", open=False, elem_id="more"):
        components["to_json"] = gr.Button("Export as JSON", elem_id="to-json")
        components["to_markdown"] = gr.Button("Export as Markdown", elem_id="to-markdown")
        components["from_file"] = gr.Button("Import a chat", elem_id="from-file")
        gr.Button("Light or dark", elem_id="theme").click(None, js="() => finechat.theme()")
        components["delete"] = gr.Button("Delete this chat", elem_id="delete")
    return components


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


def _controls(settings: Settings) -> tuple[Any, ...]:
    """Create the controls of an answer, in the order in which `turn_events` reads them."""
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
            LENGTH_STEP,
            LONGEST_UNKNOWN,
            settings.max_tokens,
            step=LENGTH_STEP,
            elem_id="max-tokens",
            label="Answer length, at most (tokens)",
            info=texts.answer_length_info(None),
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


def _chatbot(name: str, *, visible: bool = True) -> gr.Chatbot:
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
    # Gradio's default secret differs in each process, so a restart would lose every history. The page
    # contains the secret, so it only obscures the text in the browser's storage.
    secret = settings.history_secret.get_secret_value()
    return {
        "kept": gr.BrowserState({}, storage_key="chat", secret=secret),
        # The storage key stays "shelf": browsers already store chats under it.
        "history": gr.BrowserState([], storage_key="shelf", secret=secret),
        "kept_controls": gr.BrowserState([], storage_key="settings", secret=secret),
        "asked": gr.Checkbox(visible=False),
        **{name: gr.JSON(visible=False) for name in ("listed", "names", "offered", "file")},
    }
