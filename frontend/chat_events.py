"""What happens to chats as wholes: opened, put away, compared, exported, imported; and the page's state."""

import html

import gradio as gr

import chat_files
import conversations
import history
import texts
from client import Api
from conversations import Chat
from layout import Parts
from settings import Settings
from updates import (
    Update,
    chat_list_update,
    chat_update,
    meter_update,
    restored_chat_update,
    send_or_stop_update,
    vote_update,
)


class ChatEvents:
    """Every handler returns the new values of the components it changes."""

    def __init__(self, api: Api, parts: Parts, settings: Settings) -> None:
        self._api = api
        self._parts = parts
        self._settings = settings
        self._attribution = settings.attribution

    async def load(self, got: Update) -> Update:
        """The chats as the browser kept them."""
        open_chat, others = self._restore(got)
        return await self._turn_to(open_chat, others, comparing=bool(open_chat["rival"]))

    async def new(self, got: Update) -> Update:
        """An empty chat; the open one is put away."""
        open_chat, others = self._restore(got)
        others = history.put(others, open_chat)
        return await self._turn_to(conversations.new_chat(), others, comparing=got[self._parts.comparing])

    async def open(self, got: Update) -> Update:
        """The chat that was chosen in the side list."""
        open_chat, others = self._restore(got)
        found, rest = history.take(others, got[self._parts.chats])
        if not found:
            return await self._turn_to(open_chat, others, comparing=bool(open_chat["rival"]))
        return await self._turn_to(found, history.put(rest, open_chat), comparing=bool(found["rival"]))

    async def delete(self, got: Update) -> Update:
        """The open chat is forgotten."""
        _, others = self._restore(got)
        return await self._turn_to(conversations.new_chat(), others, comparing=got[self._parts.comparing])

    async def compare(self, got: Update) -> Update:
        """Two models from here on, with the same conversation behind them; or the first alone again."""
        open_chat, others = self._restore(got)
        comparing = bool(got[self._parts.comparing])
        open_chat["rival"] = list(open_chat["entries"]) if comparing else []
        return await self._turn_to(open_chat, others, comparing=comparing)

    def to_json(self, got: Update) -> Update:
        """The open chat as a file for programs."""
        return self._file(got, "json", chat_files.to_json)

    def to_markdown(self, got: Update) -> Update:
        """The open chat as a file for people."""
        return self._file(got, "md", chat_files.to_markdown)

    async def from_file(self, got: Update) -> Update:
        """A chat from a file that the browser has read."""
        text = got[self._parts.file]
        if not text:
            return {self._parts.file: None}
        open_chat, others = self._restore(got)
        try:
            read = chat_files.from_text(str(text))
        except chat_files.FileError as error:
            return chat_update(self._parts, open_chat, str(error))
        others = history.put(others, open_chat)
        return await self._turn_to(read, others, comparing=bool(read["rival"]))

    async def refresh_status(self, got: Update) -> Update:
        """The models on offer, and the banner while there are none."""
        parts, status = self._parts, await self._api.status()
        reason = texts.explain(status.failure) if status.failure else ""
        update: Update = {
            parts.banner: gr.update(
                value=f'<div role="status">{html.escape(reason)}</div>', visible=bool(reason)
            )
        }
        names = [model.id for model in status.models]
        if names and names != got[parts.names]:
            second = names[1] if len(names) > 1 else names[0]
            update |= {
                parts.names: names,
                parts.model: _picker(names, got[parts.model], names[0]),
                parts.rival_model: _picker(names, got[parts.rival_model], second),
            }
            if not self._settings.attribution:
                licences = {model.licence.lower() for model in status.models}
                built = any(licence.startswith("llama") for licence in licences)
                update[parts.attribution] = texts.BUILT_WITH_LLAMA if built else ""
        return update

    def _restore(self, got: Update) -> tuple[Chat, list[Chat]]:
        open_chat = conversations.restore(got[self._parts.kept])
        others = history.restore_history(got[self._parts.history])
        return open_chat, [chat for chat in others if chat["id"] != open_chat["id"]]

    async def _turn_to(self, open_chat: Chat, others: list[Chat], *, comparing: bool) -> Update:
        parts, status = self._parts, await self._api.status()
        model = status.model("")
        room = model.context_tokens if model else None
        return (
            restored_chat_update(parts, open_chat)
            | chat_list_update(parts, history.titles(open_chat, others), open_chat)
            | send_or_stop_update(parts, streaming=False)
            | meter_update(parts, open_chat, room or self._settings.context_tokens)
            | vote_update(parts, wanted=False)
            | {
                parts.history: others,
                parts.comparing: comparing,
                parts.rival: gr.update(
                    value=conversations.for_chatbot(open_chat["rival"]), visible=comparing
                ),
                parts.rival_model: gr.update(visible=comparing),
            }
        )

    def _file(self, got: Update, ending: str, form: object) -> Update:
        open_chat = conversations.restore(got[self._parts.kept])
        name = "".join(c if c.isalnum() else "-" for c in conversations.title_of(open_chat).lower())[:40]
        assert callable(form)
        return {self._parts.file: {"name": f"{name.strip('-')}.{ending}", "text": form(open_chat)}}


def _picker(names: list[str], chosen: object, default: str) -> Update:
    update: Update = gr.update(choices=names, value=chosen if chosen in names else default)
    return update
