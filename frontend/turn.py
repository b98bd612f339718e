"""Answer one question: take a conversation that ends with it, yield the growing states. No Gradio here."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, aclosing
from dataclasses import dataclass

import texts
from client import Answer, Api, Sampling
from conversations import Conversation, Message, for_model, from_question, reply
from errors import ApiError

HEARTBEAT_S = 1.0
REDRAW_S = 0.1
REDRAW_EACH_S = 0.01  # more for each running chat, because a redraw costs a few ms of CPU


@dataclass(frozen=True)
class Question:
    """The question to answer.

    conversation: ends with the question
    start: the number of questions that, with their answers, are not sent
    prefix, thoughts: the text of an incomplete answer, which the model continues, and what it thought before
    """

    conversation: Conversation
    system_prompt: str
    sampling: Sampling
    start: int = 0
    prefix: str = ""
    thoughts: str = ""

    @property
    def _sent(self) -> Conversation:
        return from_question(self.conversation, self.start)

    @property
    def is_alone(self) -> bool:
        """Whether nothing is sent before it."""
        return len(self._sent) == 1

    def messages(self) -> list[Message]:
        """The messages for the API. No field of OpenAI's API asks to continue, so a message does."""
        messages = for_model(self._sent, self.system_prompt)
        if self.prefix:
            messages.append(Message(role="assistant", content=self.prefix))
            messages.append(Message(role="user", content=texts.CONTINUE_PROMPT))
        return messages


@dataclass(frozen=True)
class Turn:
    """The conversation so far, and a notice if something is wrong.

    choices: the names of what the reader can do about it. over: whether this is the last state
    thinking: what the model thinks before its answer begins
    """

    conversation: Conversation
    notice: str = ""
    choices: tuple[str, ...] = ()
    over: bool = False
    thinking: str = ""


async def answer(api: Api, name: str, question: Question) -> AsyncGenerator[Turn, None]:
    """Yield at least one state, of which the last is over. Failures become notices; what arrived is kept.

    name: the model to ask; if the API no longer has it, the first of its list
    """
    conversation = question.conversation
    answered = Answer(question.prefix, f"{question.thoughts}\n\n" if question.thoughts else "")
    status = await api.status()
    served = status.model(name)
    model = served.id if served else ""
    try:
        if status.failure:
            raise status.failure
        coming = api.fill(answered, model, question.messages(), question.sampling)
        async with aclosing(_redraws(answered, asyncio.create_task(coming))) as redraws:
            async for _ in redraws:
                so_far = reply(conversation, answered.text, thinking=answered.thinking)
                yield Turn(so_far, thinking="" if answered.text else answered.thinking)
    except ApiError as failure:
        kept = reply(
            conversation, answered.text, texts.CUT_OFF, model=model, cut=True, thinking=answered.thinking
        )
        notice = texts.failure_notice(failure, begun=bool(answered.text), alone=question.is_alone)
        yield Turn(kept, *notice, over=True, thinking="" if answered.text else answered.thinking)
        return
    if not answered.text:
        empty = texts.ONLY_THOUGHT if answered.thinking else texts.EMPTY
        yield Turn(conversation, empty, ("retry",), over=True, thinking=answered.thinking)
        return
    is_cut = answered.finish_reason == "length"
    whole = reply(
        conversation,
        answered.text,
        texts.answer_note(answered),
        model=model,
        cut=is_cut,
        tokens=answered.all_tokens,
        thinking=answered.thinking,
    )
    yield Turn(whole, *texts.length_notice(answered), over=True)


_running: set[asyncio.Task[None]] = set()


async def _redraws(answered: Answer, coming: asyncio.Task[None]) -> AsyncGenerator[None, None]:
    """Yield when there is something new to draw, and once in each second of silence.

    Gradio notices that a reader has left only when it gets an update. Without one in silence, a closed page
    would hold its place in the API's queue until the first token. Raises what `coming` raises.
    """
    drawn, drawn_at = _drawable(answered), time.monotonic()
    _running.add(coming)
    try:
        while True:
            pause_s = REDRAW_S + REDRAW_EACH_S * len(_running) if any(drawn) else REDRAW_S
            if (await asyncio.wait({coming}, timeout=pause_s))[0]:
                coming.result()
                return
            if _drawable(answered) != drawn or time.monotonic() - drawn_at > HEARTBEAT_S:
                drawn, drawn_at = _drawable(answered), time.monotonic()
                yield
    finally:
        _running.discard(coming)
        coming.cancel()
        await asyncio.wait({coming})


def _drawable(answered: Answer) -> tuple[int, int]:
    """Return what changes when there is something new to draw."""
    return len(answered.thinking), len(answered.text)


async def together(
    stop: asyncio.Event, *streams: AsyncGenerator[Turn, None]
) -> AsyncGenerator[tuple[int, Turn], None]:
    """Yield (index of the stream, state) as they arrive, until `stop`. Closing this closes all streams."""
    async with AsyncExitStack() as open_streams:
        for stream in streams:
            await open_streams.enter_async_context(aclosing(stream))
        stopped = asyncio.ensure_future(stop.wait())
        arrivals = {asyncio.ensure_future(anext(s, None)): place for place, s in enumerate(streams)}
        try:
            while arrivals and not stop.is_set():
                await asyncio.wait({*arrivals, stopped}, return_when=asyncio.FIRST_COMPLETED)
                for arrival in [task for task in arrivals if task.done()]:
                    place, turn = arrivals.pop(arrival), arrival.result()
                    if turn is not None:
                        arrivals[asyncio.ensure_future(anext(streams[place], None))] = place
                        yield place, turn
        finally:
            for task in (stopped, *arrivals):
                task.cancel()
            await asyncio.wait({stopped, *arrivals})
