"""The beginning of a request's way: one read in each turn of the event loop.

The loop hands over everything that sockets have before it goes on with anything. Of 256 requests that come at
once, each would be parsed, then each validated, then each encoded, and the engine would stand idle until the
last was as far as the first. In turns the first is in the engine when a few more are read; and tokens of
answers that run wait for one request, not for 256.
"""

import asyncio
from collections import deque
from collections.abc import Callable


class Inbox:
    """What all connections of one server have received."""

    def __init__(self) -> None:
        self._waiting: deque[Callable[[], None]] = deque()
        self._free = True  # nothing has been read in this turn

    def take(self, read: Callable[[], None]) -> bool:
        """Call `read`, at once or in a later turn. True: at once."""
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
