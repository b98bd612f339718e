"""One turn: a conversation that ends with a question in, its growing states out. No Gradio here."""

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
REDRAW_EACH_S = 0.01  # more for each chat under way: a redraw costs the process a few ms of CPU


@dataclass(frozen=True)
class Question:
    """What to answer.

    conversation: ends with a question. start: how many questions, with their answers, are not sent
    begun: what a cut answer already says; the model goes on from there
    """

    conversation: Conversation
    system_prompt: str
    sampling: Sampling
    start: int = 0
    begun: str = ""

    @property
    def _sent(self) -> Conversation:
        return from_question(self.conversation, self.start)

    @property
    def is_alone(self) -> bool:
        """Whether nothing before it is sent."""
        return len(self._sent) == 1

    def messages(self) -> list[Message]:
        """What the API gets. To go on is asked in words: no field of OpenAI's API says it."""
        messages = for_model(self._sent, self.system_prompt)
        if self.begun:
            messages.append(Message(role="assistant", content=self.begun))
            messages.append(Message(role="user", content=texts.CONTINUE_PROMPT))
        return messages


@dataclass(frozen=True)
class Turn:
    """The conversation as it stands, and what to tell the reader if something is wrong.

    choices: names of what the reader may do about it. over: whether it is the last turn
    """

    conversation: Conversation
    notice: str = ""
    choices: tuple[str, ...] = ()
    over: bool = False


async def answer(api: Api, name: str, question: Question) -> AsyncGenerator[Turn, None]:
    """At least one turn, the last one over. Failures become notices; what came stays.

    name: the model that is asked; the first of the list if it is gone
    """
    conversation = question.conversation
    so_far = Answer(question.begun)
    status = await api.status()
    served = status.model(name)
    model = served.id if served else ""
    try:
        if status.failure:
            raise status.failure
        coming = api.fill(so_far, model, question.messages(), question.sampling)
        async with aclosing(_redraws(so_far, asyncio.create_task(coming))) as redraws:
            async for _ in redraws:
                yield Turn(reply(conversation, so_far.text))
    except ApiError as failure:
        kept = reply(conversation, so_far.text, texts.CUT_OFF, model=model, cut=True)
        said = texts.failure_notice(failure, begun=bool(so_far.text), alone=question.is_alone)
        yield Turn(kept, *said, over=True)
        return
    if not so_far.text:
        yield Turn(conversation, texts.EMPTY, ("retry",), over=True)
        return
    is_cut = so_far.finish_reason == "length"
    whole = reply(
        conversation,
        so_far.text,
        texts.answer_note(so_far),
        model=model,
        cut=is_cut,
        tokens=so_far.all_tokens,
    )
    yield Turn(whole, *texts.length_notice(so_far), over=True)


_under_way: set[asyncio.Task[None]] = set()


async def _redraws(so_far: Answer, coming: asyncio.Task[None]) -> AsyncGenerator[None, None]:
    """A beat whenever there is something new to draw, and one in each second of silence.

    Gradio notices that a reader has left only when it is given something; without the latter a closed
    page would hold its place in the API's queue until the first token. Raises what `coming` raises.
    """
    drawn, drawn_at = so_far.text, time.monotonic()
    _under_way.add(coming)
    try:
        while True:
            pause_s = REDRAW_S + REDRAW_EACH_S * len(_under_way) if drawn else REDRAW_S
            if (await asyncio.wait({coming}, timeout=pause_s))[0]:
                coming.result()
                return
            if so_far.text != drawn or time.monotonic() - drawn_at > HEARTBEAT_S:
                drawn, drawn_at = so_far.text, time.monotonic()
                yield
    finally:
        _under_way.discard(coming)
        coming.cancel()
        await asyncio.wait({coming})


async def together(
    stop: asyncio.Event, *streams: AsyncGenerator[Turn, None]
) -> AsyncGenerator[tuple[int, Turn], None]:
    """(place of the stream, turn) of all as they come, until `stop`; closing this closes all."""
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
