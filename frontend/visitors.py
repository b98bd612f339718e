"""Limits on what one visitor may do, so that none starves the others. A visitor is an IP address."""

import math
import time
from collections import Counter, deque
from collections.abc import Iterator
from contextlib import contextmanager

from errors import TooMany

WINDOW_S = 60.0


class Visitors:
    """Count each visitor's running answers, and the messages and votes of the last minute.

    streams: the limit of concurrent answers; a comparison takes two
    messages: the limit of messages in `WINDOW_S`, and of votes
    """

    def __init__(self, streams: int, messages: int) -> None:
        self._streams = streams
        self._running: Counter[str] = Counter()
        self._messages = _Rate(messages, "messages a minute")
        self._votes = _Rate(messages, "votes a minute")

    @contextmanager
    def admitted(self, visitor: str, streams: int) -> Iterator[None]:
        """Hold places for `streams` answers to one message.

        Raises: TooMany
        """
        if self._running[visitor] + streams > self._streams:
            raise TooMany("concurrent answers")
        self._messages.count(visitor)
        self._running[visitor] += streams
        try:
            yield
        finally:
            self._running[visitor] -= streams
            if not self._running[visitor]:
                del self._running[visitor]

    def count_vote(self, visitor: str) -> None:
        """Count a vote, whether or not it is stored.

        Raises: TooMany
        """
        self._votes.count(visitor)


class _Rate:
    """Allow each visitor at most `limit` events in `WINDOW_S`."""

    def __init__(self, limit: int, what: str) -> None:
        self._limit = limit
        self._what = what
        self._recent: dict[str, deque[float]] = {}

    def count(self, visitor: str) -> None:
        """Count one event.

        Raises: TooMany, with the seconds until the next event is allowed
        """
        now = time.monotonic()
        self._forget(now)
        recent = self._recent.setdefault(visitor, deque())
        if len(recent) >= self._limit:
            raise TooMany(self._what, math.ceil(recent[0] + WINDOW_S - now))
        recent.append(now)

    def _forget(self, now: float) -> None:
        for visitor, times in list(self._recent.items()):
            while times and times[0] + WINDOW_S <= now:
                times.popleft()
            if not times:
                del self._recent[visitor]
