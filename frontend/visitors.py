"""How much one visitor may ask for, so that none starves the others. A visitor is an address."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from errors import TooMany

WINDOW_S = 60.0


class Visitors:
    """Answers under way and messages in the last minute, by visitor.

    streams: answers at once (two where models are compared). messages: in `WINDOW_S`
    """

    def __init__(self, streams: int, messages: int) -> None:
        self._streams = streams
        self._messages = messages
        self._under_way: Counter[str] = Counter()
        self._recent: dict[str, deque[float]] = {}

    @contextmanager
    def admitted(self, visitor: str, streams: int) -> Iterator[None]:
        """Holds places for `streams` answers to one message.

        Raises: TooMany
        """
        self._admit(visitor, streams)
        self._under_way[visitor] += streams
        try:
            yield
        finally:
            self._under_way[visitor] -= streams
            if not self._under_way[visitor]:
                del self._under_way[visitor]

    def _admit(self, visitor: str, streams: int) -> None:
        now = time.monotonic()
        self._forget(now)
        if self._under_way[visitor] + streams > self._streams:
            raise TooMany("answers at once")
        recent = self._recent.setdefault(visitor, deque())
        if len(recent) >= self._messages:
            raise TooMany("messages a minute", math.ceil(recent[0] + WINDOW_S - now))
        recent.append(now)

    def _forget(self, now: float) -> None:
        for visitor, times in list(self._recent.items()):
            while times and times[0] + WINDOW_S <= now:
                times.popleft()
            if not times:
                del self._recent[visitor]
