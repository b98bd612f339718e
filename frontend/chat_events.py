"""Handlers of whole chats: open, delete, compare, export, import; and of the API's status."""

import html
from dataclasses import astuple

import gradio as gr

import chat_files
import conversations
import history
import texts
from client import Api
from conversations import Chat
from layout import Components
from offer import offer_of
from settings import Settings
from updates import (
    Update,
    chat_list_update,
    chat_update,
    meter_update,
    offer_update,
    restored_chat_update,
    send_or_stop_update,
    vote_update,
)


class ChatEvents:
    """Each handler returns the new values of the components that it changes."""

    def __init__(self, api: Api, ui: Components, settings: Settings) -> None:
        self._api = api
        self._ui = ui
        self._settings = settings

    async def load(self, inputs: Update) -> Update:
        """Show the chats that the browser has stored."""
        open_chat, others = self._restore(inputs)
        return await self._open(open_chat, others, comparing=bool(open_chat["rival"]))

    async def new(self, inputs: Update) -> Update:
        """Open an empty chat and move the open one to the history."""
        open_chat, others = self._restore(inputs)
        others = history.put(others, open_chat)
        return await self._open(conversations.new_chat(), others, comparing=inputs[self._ui.comparing])

    async def open(self, inputs: Update) -> Update:
        """Open the chat that was chosen in the side list."""
        open_chat, others = self._restore(inputs)
        found, rest = history.take(others, inputs[self._ui.chats])
        if not found:
            return await self._open(open_chat, others, comparing=bool(open_chat["rival"]))
        return await self._open(found, history.put(rest, open_chat), comparing=bool(found["rival"]))

    async def delete(self, inputs: Update) -> Update:
        """Delete the open chat."""
        _, others = self._restore(inputs)
        return await self._open(conversations.new_chat(), others, comparing=inputs[self._ui.comparing])

    async def compare(self, inputs: Update) -> Update:
        """Start to compare two models on the conversation so far, or return to the first alone."""
        open_chat, others = self._restore(inputs)
        comparing = bool(inputs[self._ui.comparing])
        open_chat["rival"] = list(open_chat["entries"]) if comparing else []
        return await self._open(open_chat, others, comparing=comparing)

    def to_json(self, inputs: Update) -> Update:
        """Export the open chat for programs."""
        return self._file(inputs, "json", chat_files.to_json)

    def to_markdown(self, inputs: Update) -> Update:
        """Export the open chat for people."""
        return self._file(inputs, "md", chat_files.to_markdown)

    async def from_file(self, inputs: Update) -> Update:
        """Open the chat in a file that the browser has read."""
        text = inputs[self._ui.file]
        if not text:
            return {self._ui.file: None}
        open_chat, others = self._restore(inputs)
        try:
            read = chat_files.from_text(str(text))
        except chat_files.FileError as error:
            return chat_update(self._ui, open_chat, str(error))
        others = history.put(others, open_chat)
        return await self._open(read, others, comparing=bool(read["rival"]))

    async def refresh_status(self, inputs: Update) -> Update:
        """Offer the API's models and say what the chosen one is for; show the banner while there are none."""
        ui, status = self._ui, await self._api.status()
        reason = texts.explain(status.failure) if status.failure else ""
        update: Update = {
            ui.banner: gr.update(
                value=f'<div role="status">{html.escape(reason)}</div>', visible=bool(reason)
            )
        }
        model = status.model(inputs[ui.model])
        described = [*astuple(model)[:-1], *model.examples] if model else ["not known yet"]
        if described != inputs[ui.offered] and (model or not inputs[ui.offered]):
            update[ui.offered] = described
        names = [model.id for model in status.models]
        if names and names != inputs[ui.names]:
            second = names[1] if len(names) > 1 else names[0]
            update |= {
                ui.names: names,
                ui.model: _picker(names, inputs[ui.model], names[0]),
                ui.rival_model: _picker(names, inputs[ui.rival_model], second),
            }
            if not self._settings.attribution:
                licences = {model.licence.lower() for model in status.models}
                built = any(licence.startswith("llama") for licence in licences)
                update[ui.attribution] = texts.BUILT_WITH_LLAMA if built else ""
        return update

    async def show_offer(self, inputs: Update) -> Update:
        """Show what the chosen model is for, prompts to try, and how long an answer may be."""
        model = (await self._api.status()).model(inputs[self._ui.model])
        max_tokens = int(inputs[self._ui.max_tokens] or 0)
        return offer_update(self._ui, offer_of(model, self._settings), max_tokens)

    def _restore(self, inputs: Update) -> tuple[Chat, list[Chat]]:
        open_chat = conversations.restore(inputs[self._ui.kept])
        others = history.restore_history(inputs[self._ui.history])
        return open_chat, [chat for chat in others if chat["id"] != open_chat["id"]]

    async def _open(self, open_chat: Chat, others: list[Chat], *, comparing: bool) -> Update:
        ui, status = self._ui, await self._api.status()
        offer = offer_of(status.model(""), self._settings)
        return (
            restored_chat_update(ui, open_chat, offer.to_follow(open_chat))
            | chat_list_update(ui, history.titles(open_chat, others), open_chat)
            | send_or_stop_update(ui, streaming=False)
            | meter_update(ui, open_chat, offer.context_tokens)
            | vote_update(ui, wanted=False)
            | {
                ui.history: others,
                ui.comparing: comparing,
                ui.rival: gr.update(value=conversations.for_chatbot(open_chat["rival"]), visible=comparing),
                ui.rival_model: gr.update(visible=comparing),
            }
        )

    def _file(self, inputs: Update, ending: str, form: object) -> Update:
        open_chat = conversations.restore(inputs[self._ui.kept])
        name = "".join(c if c.isalnum() else "-" for c in conversations.title_of(open_chat).lower())[:40]
        assert callable(form)
        return {self._ui.file: {"name": f"{name.strip('-')}.{ending}", "text": form(open_chat)}}


def _picker(names: list[str], chosen: object, default: str) -> Update:
    update: Update = gr.update(choices=names, value=chosen if chosen in names else default)
    return update
