"""Admission: a place for every answer in progress, and turns in the engine, fair between keys.

A request gets its places at once or is refused: an overloaded service answers before it has done any work.
Then it waits for a turn. The next turn goes to the highest class that waits; within the class to the key
with the fewest answers running, and among equals to the key whose last turn is longest ago, so that one key's
burst does not delay another's single request. Within a key the order is first come, first served.

The class begins as the key's priority and grows by one for every AGE_S of waiting. So no request starves: a
later one begins below one that has waited long enough, whatever its priority.
"""

import asyncio
import contextlib
import itertools
import time
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field

from api.errors import InvalidRequest, Overloaded
from api.ledger.keys import NORMAL
from api.telemetry.metrics import Metrics

AGE_S = 5.0


@dataclass(eq=False, slots=True)
class _Waiter:
    number: int
    key: str
    answers: int
    tokens: int
    priority: int
    begun: float = field(default_factory=time.perf_counter)
    turn: asyncio.Future[None] = field(default_factory=asyncio.Future)


class Admission:
    """Decide which requests wait and which run.

    limit: answers in progress. running: those in the engine. queued_tokens: of waiting requests.
    """

    def __init__(self, limit: int, running: int, queued_tokens: int, metrics: Metrics) -> None:
        self._limit = limit
        self._capacity = running
        self._queued_tokens = queued_tokens
        self._metrics = metrics
        self._in_progress = 0
        self._running: Counter[str] = Counter()
        self._waiting: dict[str, deque[_Waiter]] = {}
        self._waiting_tokens = 0
        self._last_turn: dict[str, int] = {}
        self._numbers = itertools.count()
        self._idle = asyncio.Event()
        self._idle.set()

    @property
    def running(self) -> int:
        """Return the number of answers that have a turn in the engine."""
        return self._running.total()

    @property
    def waiting(self) -> int:
        """Return the number of answers that wait for a turn."""
        return self._in_progress - self.running

    @property
    def waiting_tokens(self) -> int:
        """Return how many tokens the waiting requests can cost at most."""
        return self._waiting_tokens

    @contextlib.contextmanager
    def places(self, answers: int, field: str = "n") -> Iterator[None]:
        """Hold a place for each answer of a request. field: the one that asks for so many.

        Raises: InvalidRequest if there are never so many places, Overloaded if they are not free now.
        """
        if answers > self._limit:
            raise InvalidRequest(
                f"The request asks for {answers} answers, and this service has places for {self._limit} "
                "at most. Ask for fewer.",
                param=field,
            )
        if self._in_progress + answers > self._limit:
            raise Overloaded("Too many requests are in progress. Try again in a moment.")
        self._in_progress += answers
        self._metrics.in_progress.inc(answers)
        self._idle.clear()
        try:
            yield
        finally:
            self._in_progress -= answers
            self._metrics.in_progress.dec(answers)
            if self._in_progress == 0:
                self._idle.set()

    @contextlib.asynccontextmanager
    async def turn(self, key: str, answers: int, tokens: int, priority: int = NORMAL) -> AsyncIterator[None]:
        """Wait for room in the engine, then hold it. tokens: what the request can cost at most.

        Raises: Overloaded at once if too many tokens wait already; one request may always wait.
        """
        waiter = _Waiter(next(self._numbers), key, min(answers, self._capacity), tokens, priority)
        await self._wait(waiter)
        try:
            yield
        finally:
            self._release(waiter)

    async def wait_idle(self, timeout_s: float) -> bool:
        """Wait until no request is in progress, and return whether that was in time."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def _wait(self, waiter: _Waiter) -> None:
        if self._waiting and self._waiting_tokens + waiter.tokens > self._queued_tokens:
            raise Overloaded("Too much work is waiting. Try again in a moment.")
        self._waiting.setdefault(waiter.key, deque()).append(waiter)
        self._waiting_tokens += waiter.tokens
        self._give_turns()
        try:
            await waiter.turn
        except asyncio.CancelledError:
            if waiter.turn.cancelled():
                self._leave_queue(waiter)
                self._give_turns()  # the others may have waited behind it
            else:  # it got its turn in the same moment
                self._release(waiter)
            raise

    def _give_turns(self) -> None:
        while self._waiting:
            key = min(self._waiting, key=self._claim)
            waiter = self._waiting[key][0]
            if waiter.turn.cancelled():
                self._leave_queue(waiter)
                continue
            if self._running.total() + waiter.answers > self._capacity:
                return
            self._leave_queue(waiter)
            self._running[key] += waiter.answers
            self._last_turn[key] = next(self._numbers)
            waiter.turn.set_result(None)

    def _claim(self, key: str) -> tuple[int, int, int, int]:
        """Return a key's rank; the lowest is next."""
        first = self._waiting[key][0]
        climbed = int((time.perf_counter() - first.begun) / AGE_S)
        return -first.priority - climbed, self._running[key], self._last_turn.get(key, -1), first.number

    def _leave_queue(self, waiter: _Waiter) -> None:
        waiters = self._waiting.get(waiter.key, deque())
        if waiter not in waiters:
            return
        waiters.remove(waiter)
        if not waiters:
            del self._waiting[waiter.key]
        self._waiting_tokens -= waiter.tokens

    def _release(self, waiter: _Waiter) -> None:
        self._running[waiter.key] -= waiter.answers
        if not self._running[waiter.key]:
            del self._running[waiter.key]
        self._give_turns()
