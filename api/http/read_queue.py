"""Reads of all connections: one in each turn of the event loop.

The loop passes on everything that sockets have received before it runs anything else. If 256 requests arrived
at once, each would be parsed, then each validated, then each encoded, and the engine would be idle until the
last was as far as the first. One read a turn brings the first request to the engine while the next few are
read, and the tokens of running answers wait for one request instead of 256.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class ReadQueue:
    """The bytes that the connections of one server have received and not yet read."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._free = True  # nothing has been read in this turn

    def take(self, read: Callable[[], None]) -> bool:
        """Call `read` now or in a later turn, and return whether it was now."""
        if not self._free:
            self._waiting.append(read)
            return False
        self._free = False
        asyncio.get_running_loop().call_soon(self._next_turn)
        read()
        return True

    def _next_turn(self) -> None:
        if not self._waiting:
            self._free = True
            return
        asyncio.get_running_loop().call_soon(self._next_turn)
        self._waiting.popleft()()
