"""One turn: a conversation that ends with a question in, its growing states out. No Gradio here."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

import words
from client import Answer, Api, Sampling
from conversations import Conversation, for_model, reply
from errors import ApiError

HEARTBEAT_S = 1.0
REDRAW_S = 0.2  # a redraw costs the page about 4 ms of CPU, and fifty chats share one process


@dataclass(frozen=True)
class Turn:
    """The conversation as it stands, and what to tell the reader if something is wrong."""

    conversation: Conversation
    notice: str = ""


async def answer(
    api: Api, question: Conversation, system_prompt: str, sampling: Sampling
) -> AsyncGenerator[Turn, None]:
    """At least one turn, the last one final. Failures become notices; what came stays."""
    status = await api.status()
    if status.failure:
        yield Turn(question, f"{words.why_not(status.failure)} {words.AGAIN}")
        return
    so_far, drawn_at = Answer(), float("-inf")
    messages = for_model(question, system_prompt)
    try:
        stream = api.stream(status.model, messages, sampling)
        async with aclosing(_with_heartbeat(stream)) as answers:
            async for arrived in answers:
                so_far = arrived or so_far
                if time.monotonic() - drawn_at > REDRAW_S:
                    drawn_at = time.monotonic()
                    yield Turn(reply(question, so_far.text))
    except ApiError as failure:
        again = "" if so_far.text else f" {words.AGAIN}"
        yield Turn(reply(question, so_far.text, words.CUT_OFF), words.why_not(failure) + again)
        return
    notice = "" if so_far.text else words.EMPTY
    yield Turn(reply(question, so_far.text, words.about(so_far)), notice)


async def _with_heartbeat(
    stream: AsyncGenerator[Answer, None],
) -> AsyncGenerator[Answer | None, None]:
    """The stream, with None for each second of silence.

    Gradio notices that a reader has left only when it is given something; without this a closed
    page would hold its place in the API's queue until the first token.
    """
    async with aclosing(stream):
        ended = False
        while not ended:
            arrival = asyncio.ensure_future(anext(stream, None))
            try:
                while not (await asyncio.wait({arrival}, timeout=HEARTBEAT_S))[0]:
                    yield None
                if answer := arrival.result():
                    yield answer
                else:
                    ended = True
            finally:
                arrival.cancel()
                await asyncio.wait({arrival})
