"""The connections that wait for their next request, up to a limit.

Clients' pools keep a connection for 60 to 90 s and do not repeat a POST that finds it closed. So connections
may wait for long, and this limit bounds their number instead of a short timeout.
"""

from collections import OrderedDict
from collections.abc import Callable


class IdleConnections:
    """Close the one that has waited longest when there are too many. Each is known by what closes it."""

    def __init__(self, keep_alive_s: int, most: int) -> None:
        """keep_alive_s: how long each may wait; the server's own timer ends it then."""
        self.keep_alive_s = keep_alive_s
        self._most = most
        self._waiting: OrderedDict[Callable[[], None], None] = OrderedDict()  # the longest first

    def add(self, close: Callable[[], None]) -> None:
        self._waiting[close] = None
        if len(self._waiting) > self._most:
            longest, _ = self._waiting.popitem(last=False)
            longest()

    def remove(self, close: Callable[[], None]) -> bool:
        """Return whether it was waiting."""
        if close not in self._waiting:
            return False
        del self._waiting[close]
        return True
