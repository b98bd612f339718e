"""What each event of a turn does; every handler returns the new values of the components it changes."""

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
from layout import Parts
from settings import Settings
from updates import Update, chat_list_update, chat_update, meter_update, send_or_stop_update, vote_update
from visitors import Visitors
from votes import VoteFile

logger = logging.getLogger(__name__)

SAVE_EVERY_S = 2.0
STOPS_WITHIN_S = 5.0  # what takes longer was left behind by a browser that is gone


class TurnEvents:
    """Events that ask the model, and those about its answer."""

    def __init__(self, api: Api, parts: Parts, settings: Settings, visitors: Visitors) -> None:
        self._api = api
        self._parts = parts
        self._settings = settings
        self._visitors = visitors
        self._votes = VoteFile(settings.votes) if settings.votes else None
        self._stops: dict[str, asyncio.Event] = {}  # of the sessions with an answer under way

    def ask(self, got: Update) -> Update:
        """Send, or Enter: a new question."""
        text = got[self._parts.chat_input] or ""
        return self._ask(self._chat(got), text, got) if text.strip() else {self._parts.asked: False}

    def try_example(self, got: Update, chosen: gr.SelectData) -> Update:
        """An example prompt, sent as it is."""
        return self._ask(self._chat(got), chosen.value["text"], got)

    def retry(self, got: Update) -> Update:
        """The last question again; its answer, if any, gives way."""
        open_chat = self._chat(got)
        for side in SIDES:
            open_chat[side] = conversations.reopen(open_chat[side])
        return self._begin(open_chat)

    def edit(self, got: Update, edited: gr.EditData) -> Update:
        """Another text for a question; what followed it gives way."""
        open_chat = self._chat(got)
        # Gradio tells its copy of the box for this session, so by its name.
        [box] = [box for box in self._parts.boxes if box.elem_id == getattr(edited.target, "elem_id", "")]
        number = conversations.questions_before(got[box], edited.index)
        for side in SIDES:
            open_chat[side] = conversations.before_question(open_chat[side], number)
        open_chat["start"] = min(open_chat["start"], number)
        return self._ask(open_chat, str(edited.value), got)

    def choose(self, got: Update, chosen: gr.SelectData) -> Update:
        """One of the buttons below a notice; see `texts.CHOICES`."""
        open_chat = self._chat(got)
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
                others = history.put(history.restore_history(got[self._parts.history]), open_chat)
                return self._ask(conversations.new_chat(), question, got) | {self._parts.history: others}
            case _:
                return self.retry(got)

    def _ask(self, open_chat: Chat, text: str, got: Update) -> Update:
        for side in self._sides(got):
            open_chat[side] = conversations.ask(open_chat[side], text)
        open_chat["at"] = time.time()
        known = [(str(title), str(id_)) for title, id_ in got[self._parts.listed] or []]
        others = [pair for pair in known if pair[1] != open_chat["id"]]
        chats = [(conversations.title_of(open_chat), open_chat["id"]), *others]
        cleared = {self._parts.chat_input: ""}
        return self._begin(open_chat) | chat_list_update(self._parts, chats, open_chat) | cleared

    def _begin(self, open_chat: Chat) -> Update:
        parts = self._parts
        open_chat.pop("ballot", None)
        begun = (
            chat_update(parts, open_chat)
            | send_or_stop_update(parts, streaming=True)
            | vote_update(parts, wanted=False)
        )
        return begun | {parts.asked: True}

    async def answer(self, got: Update, request: gr.Request) -> AsyncGenerator[Update, None]:
        """The open question's answer as it comes, or the rest of one that was cut.

        An event of its own with few outputs: at every redraw Gradio makes each output that is not given anew.
        """
        parts, open_chat = self._parts, self._chat(got)
        sides = [side for side in self._sides(got) if got[parts.asked] and not _is_whole(open_chat[side])]
        if not sides:
            yield {}
            return
        await self.stop(request)
        session = str(request.session_hash)
        stop = self._stops[session] = asyncio.Event()
        try:
            with self._visitors.admitted(_address(request), len(sides)):
                async with aclosing(self._streamed(open_chat, sides, got, stop)) as updates:
                    async for update in updates:
                        yield update
            status = await self._api.status()
            model = status.model(got[parts.model])
            room = model.context_tokens if model else None
            yield meter_update(parts, open_chat, room or self._settings.context_tokens)
        except TooMany as refused:
            yield chat_update(parts, open_chat, texts.visitor_notice(refused), ("retry",))
        finally:
            if self._stops.get(session) is stop:
                del self._stops[session]

    def close(self, got: Update) -> Update:
        """After an answer: Send again, and a vote where two were given."""
        open_chat = self._chat(got)
        votable = vote_update(self._parts, wanted="ballot" in open_chat)
        return send_or_stop_update(self._parts, streaming=False) | votable

    async def _streamed(
        self,
        open_chat: Chat,
        sides: list[conversations.Side],
        got: Update,
        stop: asyncio.Event,
    ) -> AsyncGenerator[Update, None]:
        parts, names = self._parts, {"entries": got[self._parts.model], "rival": got[self._parts.rival_model]}
        streams, coming, saved_at = [], set(sides), time.monotonic()
        votable = sides == list(SIDES) and not any(conversations.is_answered(open_chat[s]) for s in sides)
        shown = {
            box: conversations.for_chatbot(open_chat[side], start=open_chat["start"])
            for side, box in zip(SIDES, parts.boxes, strict=True)
        }
        for side in sides:
            asked = conversations.reopen(open_chat[side])
            begun = open_chat[side][-1]["content"] if conversations.is_answered(open_chat[side]) else ""
            question = turn.Question(
                asked, got[parts.knobs[0]], self._sampling(got), open_chat["start"], begun
            )
            streams.append(turn.answer(self._api, str(names[side]), question))
        async with aclosing(turn.together(stop, *streams)) as turns:
            async for place, latest in turns:
                side = sides[place]
                open_chat[side] = latest.conversation
                choices, start = texts.choice_buttons(latest.choices), open_chat["start"]
                shown[parts.boxes[SIDES.index(side)]] = conversations.for_chatbot(
                    latest.conversation, latest.notice, choices, start
                )
                update = dict(shown)
                if latest.over:
                    coming.discard(side)
                if votable and not coming:
                    self._issue_ballot(open_chat, got)
                if latest.over or time.monotonic() - saved_at > SAVE_EVERY_S:
                    saved_at = time.monotonic()
                    update[parts.kept] = open_chat | {
                        side: conversations.cut(open_chat[side], texts.CUT_OFF) for side in coming
                    }
                yield update
        if coming:
            yield self._stopped(open_chat, coming)

    def _issue_ballot(self, open_chat: Chat, got: Update) -> None:
        """Allow a vote on two answers that have just come from the API, each whole and from its beginning."""
        if self._votes and all(_is_whole(open_chat[side]) for side in SIDES):
            prompt, sampling = got[self._parts.knobs[0]] or "", self._sampling(got).body()
            if ballot := self._votes.ballot(open_chat, prompt, sampling):
                open_chat["ballot"] = ballot

    def _stopped(self, open_chat: Chat, coming: set[conversations.Side]) -> Update:
        for side in coming:
            open_chat[side] = conversations.cut(open_chat[side], texts.STOPPED)
        if any(conversations.is_answered(open_chat[side]) for side in coming):
            return chat_update(self._parts, open_chat, "", ("continue", "retry"))
        return chat_update(self._parts, open_chat, texts.STOPPED_EARLY, ("retry",))

    async def stop(self, request: gr.Request) -> None:
        """Ends the answer that is under way, if any; what came stays. Returns when its last word is sent.

        Not Gradio's `cancels`: a piece that is on its way would come after what follows here.
        """
        session, deadline = str(request.session_hash), time.monotonic() + STOPS_WITHIN_S
        while (under_way := self._stops.get(session)) and time.monotonic() < deadline:
            under_way.set()
            await asyncio.sleep(0.02)

    def undo(self, got: Update) -> Update:
        """Takes the last question back into the input box."""
        open_chat, text = self._chat(got), ""
        for side in SIDES:
            asked = conversations.reopen(open_chat[side])
            text = asked[-1]["content"] if asked else text
            open_chat[side] = asked[:-1]
        open_chat.pop("ballot", None)
        hidden = vote_update(self._parts, wanted=False)
        return {self._parts.chat_input: text} | chat_update(self._parts, open_chat) | hidden

    async def vote(self, verdict: str, got: Update, request: gr.Request) -> Update:
        """Store which of two answers is better; see `votes.VERDICTS`."""
        parts, address = self._parts, _address(request)
        hidden = {button: gr.update(visible=False) for button in parts.verdicts}
        try:
            self._visitors.count_vote(address)
            if not self._votes:
                raise VoteRefused("unknown")
            await asyncio.to_thread(self._votes.cast, self._chat(got), verdict, address)
        except (TooMany, VoteRefused) as refused:
            logger.warning("vote refused reason=%s", str(refused).replace(" ", "_"))
            notice = {parts.vote_said: html.escape(texts.vote_notice(refused))}
            return notice | hidden if str(refused) in ("unknown", "repeated") else notice
        return {parts.vote_said: texts.VOTED} | hidden

    def _chat(self, got: Update) -> Chat:
        return conversations.restore(got[self._parts.kept])

    def _sides(self, got: Update) -> tuple[conversations.Side, ...]:
        return SIDES if got[self._parts.comparing] else SIDES[:1]

    def _sampling(self, got: Update) -> Sampling:
        _, temperature, top_p, max_tokens, seed, stop = (got[knob] for knob in self._parts.knobs)
        return Sampling(
            temperature=temperature,
            max_tokens=int(max_tokens),
            top_p=None if top_p == 1 else top_p,
            seed=None if seed is None else int(seed),
            stop=tuple(line.replace("\\n", "\n") for line in str(stop or "").splitlines() if line)[:4],
        )


def _address(request: gr.Request) -> str:
    return request.client.host if request.client else ""


def _is_whole(conversation: Conversation) -> bool:
    return conversations.is_answered(conversation) and not conversations.is_cut(conversation)
