"""Handlers of one turn: ask, retry, edit, answer, stop, vote."""

import asyncio
import html
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import gradio as gr

import conversations
import history
import texts
import turn
from client import Api, Sampling
from conversations import SIDES, Chat, Conversation
from errors import TooMany, VoteRefused
from layout import Components
from offer import Offer, offer_of
from settings import Settings
from updates import Update, chat_list_update, chat_update, meter_update, send_or_stop_update, vote_update
from visitors import Visitors
from votes import VoteFile

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 2.0
STOPS_WITHIN_S = 5.0  # an answer that takes longer belongs to a browser that is gone


class TurnEvents:
    """Each handler returns the new values of the components that it changes."""

    def __init__(self, api: Api, ui: Components, settings: Settings, visitors: Visitors) -> None:
        self._api = api
        self._ui = ui
        self._settings = settings
        self._visitors = visitors
        self._votes = VoteFile(settings.votes) if settings.votes else None
        self._stops: dict[str, asyncio.Event] = {}  # by session, while an answer is running

    def ask(self, inputs: Update) -> Update:
        """Ask a new question (Send, or Enter)."""
        text = inputs[self._ui.chat_input] or ""
        return self._ask(self._chat(inputs), text, inputs) if text.strip() else {self._ui.asked: False}

    def try_example(self, inputs: Update, chosen: gr.SelectData) -> Update:
        """Ask an example prompt."""
        return self._ask(self._chat(inputs), chosen.value["text"], inputs)

    def retry(self, inputs: Update) -> Update:
        """Ask the last question again and drop its answer, if any."""
        open_chat = self._chat(inputs)
        for side in SIDES:
            open_chat[side] = conversations.reopen(open_chat[side])
        return self._begin(open_chat)

    def edit(self, inputs: Update, edited: gr.EditData) -> Update:
        """Replace the text of a question and drop what followed it."""
        open_chat = self._chat(inputs)
        # Gradio passes its copy of the chatbot for this session, so compare names.
        [box] = [box for box in self._ui.chatbots if box.elem_id == getattr(edited.target, "elem_id", "")]
        number = conversations.questions_before(inputs[box], edited.index)
        for side in SIDES:
            open_chat[side] = conversations.before_question(open_chat[side], number)
        open_chat["start"] = min(open_chat["start"], number)
        return self._ask(open_chat, str(edited.value), inputs)

    def choose(self, inputs: Update, chosen: gr.SelectData) -> Update:
        """Do what a button below a notice says; see `texts.CHOICES`."""
        open_chat = self._chat(inputs)
        match chosen.value:
            case "continue":
                return self._begin(open_chat)
            case "shorten":
                open_chat["start"] = conversations.later_start(open_chat)
                return self._begin(open_chat)
            case "new_chat":
                question = open_chat["entries"][-1]["content"]
                for side in SIDES:
                    open_chat[side] = open_chat[side][:-1]
                others = history.put(history.restore_history(inputs[self._ui.history]), open_chat)
                return self._ask(conversations.new_chat(), question, inputs) | {self._ui.history: others}
            case str(name) if name.startswith(texts.ASK):
                return self._ask(open_chat, name.removeprefix(texts.ASK), inputs)
            case _:
                return self.retry(inputs)

    def _ask(self, open_chat: Chat, text: str, inputs: Update) -> Update:
        for side in self._sides(inputs):
            open_chat[side] = conversations.ask(open_chat[side], text)
        open_chat["at"] = time.time()
        known = [(str(title), str(id_)) for title, id_ in inputs[self._ui.listed] or []]
        others = [pair for pair in known if pair[1] != open_chat["id"]]
        chats = [(conversations.title_of(open_chat), open_chat["id"]), *others]
        cleared = {self._ui.chat_input: ""}
        return self._begin(open_chat) | chat_list_update(self._ui, chats, open_chat) | cleared

    def _begin(self, open_chat: Chat) -> Update:
        ui = self._ui
        open_chat.pop("ballot", None)
        begun = (
            chat_update(ui, open_chat)
            | send_or_stop_update(ui, streaming=True)
            | vote_update(ui, wanted=False)
        )
        return begun | {ui.asked: True}

    async def answer(self, inputs: Update, request: gr.Request) -> AsyncGenerator[Update, None]:
        """Stream the answer to the open question, or the rest of an incomplete one.

        This is an event of its own with few outputs, because at each redraw Gradio rebuilds every output
        that the handler does not return.
        """
        ui, open_chat = self._ui, self._chat(inputs)
        sides = [side for side in self._sides(inputs) if inputs[ui.asked] and not _is_whole(open_chat[side])]
        if not sides:
            yield {}
            return
        await self.stop(request)
        session = str(request.session_hash)
        stop = self._stops[session] = asyncio.Event()
        offer = offer_of((await self._api.status()).model(inputs[ui.model]), self._settings)
        try:
            with self._visitors.admitted(_address(request), len(sides)):
                async with aclosing(self._streamed(open_chat, sides, inputs, offer, stop)) as updates:
                    async for update in updates:
                        yield update
            yield meter_update(ui, open_chat, offer.context_tokens)
            if all(_is_whole(open_chat[side]) for side in sides):
                yield chat_update(ui, open_chat, examples=offer.to_follow(open_chat))
        except TooMany as refused:
            yield chat_update(ui, open_chat, texts.visitor_notice(refused), ("retry",))
        finally:
            if self._stops.get(session) is stop:
                del self._stops[session]

    def close(self, inputs: Update) -> Update:
        """After an answer, show Send again, and ask for a vote if there is a ballot."""
        open_chat = self._chat(inputs)
        votable = vote_update(self._ui, wanted="ballot" in open_chat)
        return send_or_stop_update(self._ui, streaming=False) | votable

    async def _streamed(
        self,
        open_chat: Chat,
        sides: list[conversations.Side],
        inputs: Update,
        offer: Offer,
        stop: asyncio.Event,
    ) -> AsyncGenerator[Update, None]:
        ui, coming, saved_at = self._ui, set(sides), time.monotonic()
        votable = sides == list(SIDES) and not any(conversations.is_answered(open_chat[s]) for s in sides)
        shown = {
            box: conversations.for_chatbot(open_chat[side], start=open_chat["start"])
            for side, box in zip(SIDES, ui.chatbots, strict=True)
        }
        sampling = self._sampling(inputs, offer)
        streams = [self._stream(open_chat, side, inputs, sampling) for side in sides]
        async with aclosing(turn.together(stop, *streams)) as turns:
            async for place, latest in turns:
                side = sides[place]
                open_chat[side] = latest.conversation
                choices, start = texts.choice_buttons(latest.choices), open_chat["start"]
                shown[ui.chatbots[SIDES.index(side)]] = conversations.for_chatbot(
                    latest.conversation, latest.notice, choices, start, latest.thinking
                )
                update = dict(shown)
                if latest.over:
                    coming.discard(side)
                if votable and not coming:
                    self._issue_ballot(open_chat, inputs, sampling)
                if latest.over or time.monotonic() - saved_at > SAVE_EVERY_S:
                    saved_at = time.monotonic()
                    update[ui.kept] = open_chat | {
                        side: conversations.cut(open_chat[side], texts.CUT_OFF) for side in coming
                    }
                yield update
        if coming:
            yield self._stopped(open_chat, coming)

    def _stream(
        self, open_chat: Chat, side: conversations.Side, inputs: Update, sampling: Sampling
    ) -> AsyncGenerator[turn.Turn, None]:
        """Ask one side's model the open question, or for the rest of its incomplete answer."""
        conversation = open_chat[side]
        begun = conversation[-1] if conversations.is_answered(conversation) else None
        name = inputs[self._ui.model if side == "entries" else self._ui.rival_model]
        question = turn.Question(
            conversations.reopen(conversation),
            inputs[self._ui.controls[0]],
            sampling,
            open_chat["start"],
            prefix=begun["content"] if begun else "",
            thoughts=begun.get("reasoning_content", "") if begun else "",
        )
        return turn.answer(self._api, str(name), question)

    def _issue_ballot(self, open_chat: Chat, inputs: Update, sampling: Sampling) -> None:
        """Allow a vote on two answers that have just come from the API, each whole and from its beginning."""
        if self._votes and all(_is_whole(open_chat[side]) for side in SIDES):
            prompt = inputs[self._ui.controls[0]] or ""
            if ballot := self._votes.ballot(open_chat, prompt, sampling.body()):
                open_chat["ballot"] = ballot

    def _stopped(self, open_chat: Chat, coming: set[conversations.Side]) -> Update:
        for side in coming:
            open_chat[side] = conversations.cut(open_chat[side], texts.STOPPED)
        if any(conversations.is_answered(open_chat[side]) for side in coming):
            return chat_update(self._ui, open_chat, "", ("continue", "retry"))
        return chat_update(self._ui, open_chat, texts.STOPPED_EARLY, ("retry",))

    async def stop(self, request: gr.Request) -> None:
        """End the running answer, if any, and keep what has arrived. Return when its last update is sent.

        Gradio's `cancels` would not do: an update that is on its way would arrive after the next event's.
        """
        session, deadline = str(request.session_hash), time.monotonic() + STOPS_WITHIN_S
        while (running := self._stops.get(session)) and time.monotonic() < deadline:
            running.set()
            await asyncio.sleep(0.02)

    def undo(self, inputs: Update) -> Update:
        """Move the last question back into the input box."""
        open_chat, text = self._chat(inputs), ""
        for side in SIDES:
            asked = conversations.reopen(open_chat[side])
            text = asked[-1]["content"] if asked else text
            open_chat[side] = asked[:-1]
        open_chat.pop("ballot", None)
        hidden = vote_update(self._ui, wanted=False)
        return {self._ui.chat_input: text} | chat_update(self._ui, open_chat) | hidden

    async def vote(self, verdict: str, inputs: Update, request: gr.Request) -> Update:
        """Store which of two answers is better; see `votes.VERDICTS`."""
        ui, address = self._ui, _address(request)
        hidden = {button: gr.update(visible=False) for button in ui.verdicts}
        try:
            self._visitors.count_vote(address)
            if not self._votes:
                raise VoteRefused("unknown")
            await asyncio.to_thread(self._votes.cast, self._chat(inputs), verdict, address)
        except (TooMany, VoteRefused) as refused:
            logger.warning("vote refused reason=%s", str(refused).replace(" ", "_"))
            notice = {ui.vote_text: html.escape(texts.vote_notice(refused))}
            return notice | hidden if str(refused) in ("unknown", "repeated") else notice
        return {ui.vote_text: texts.VOTED} | hidden

    def _chat(self, inputs: Update) -> Chat:
        return conversations.restore(inputs[self._ui.kept])

    def _sides(self, inputs: Update) -> tuple[conversations.Side, ...]:
        return SIDES if inputs[self._ui.comparing] else SIDES[:1]

    def _sampling(self, inputs: Update, offer: Offer) -> Sampling:
        _, temperature, top_p, max_tokens, seed, stop = (inputs[control] for control in self._ui.controls)
        return Sampling(
            temperature=temperature,
            max_tokens=offer.max_tokens(int(max_tokens)),
            top_p=None if top_p == 1 else top_p,
            seed=None if seed is None else int(seed),
            stop=tuple(line.replace("\\n", "\n") for line in str(stop or "").splitlines() if line)[:4],
        )


def _address(request: gr.Request) -> str:
    return request.client.host if request.client else ""


def _is_whole(conversation: Conversation) -> bool:
    return conversations.is_answered(conversation) and not conversations.is_cut(conversation)
