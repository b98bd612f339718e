"""How many answers may be in progress at once: running, or waiting in the engine's queue."""

import asyncio
import contextlib
from collections.abc import Iterator

from api.errors import Overloaded
from api.telemetry import Metrics


class Admission:
    def __init__(self, limit: int, metrics: Metrics) -> None:
        self._limit = limit
        self._gauge = metrics.in_progress
        self._in_progress = 0
        self._idle = asyncio.Event()
        self._idle.set()

    @contextlib.contextmanager
    def slot(self, answers: int) -> Iterator[None]:
        """Places for a request that wants so many answers.

        Raises: Overloaded at once when they are not free; nothing waits here.
        """
        if self._in_progress + answers > self._limit:
            raise Overloaded("Too many requests are in progress. Try again in a moment.")
        self._in_progress += answers
        self._gauge.inc(answers)
        self._idle.clear()
        try:
            yield
        finally:
            self._in_progress -= answers
            self._gauge.dec(answers)
            if self._in_progress == 0:
                self._idle.set()

    async def wait_idle(self, timeout_s: float) -> bool:
        """Whether all requests ended in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True
