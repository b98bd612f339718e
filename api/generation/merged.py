"""Generate for several prompts at once, as one stream of deltas."""

import asyncio
import dataclasses
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from api.engine.delta import Delta


async def merged(streams: Sequence[AsyncGenerator[Delta, None]], each: int) -> AsyncGenerator[Delta, None]:
    """Yield the deltas of several prompts as they come. each: the number of answers to one prompt.

    Closing this generator closes all streams; the first failure ends it.
    """
    queue: asyncio.Queue[Delta | Exception | None] = asyncio.Queue(maxsize=1)

    async def pump(number: int, stream: AsyncGenerator[Delta, None]) -> None:
        try:
            async with aclosing(stream):
                async for delta in stream:
                    await queue.put(dataclasses.replace(delta, index=number * each + delta.index))
        except Exception as error:
            await queue.put(error)
        else:
            await queue.put(None)

    tasks = [asyncio.create_task(pump(number, stream)) for number, stream in enumerate(streams)]
    running = len(tasks)
    try:
        while running:
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                running -= 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
