"""One client's connection: cut when it keeps the server waiting.

uvicorn waits for ever for the first request, for the rest of a head, for a body whose answer is sent, and
for a client to read the end of an answer. A few thousand such connections use up the process's files.
"""

import asyncio

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_TIMEOUT_S = 10.0
LINGER_TIMEOUT_S = 2.0  # for the rest of a body that is not wanted any more
READ_TIMEOUT_S = 30.0  # for what is left of an answer, which a slow line may still carry


class Connection(H11Protocol):
    """Between requests, and before the first, time runs; while one is answered, its own limits hold."""

    _cut: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._cut_in(HEAD_TIMEOUT_S)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Closing at once on a client that still sends would lose it the answer."""
        self._cut_in(LINGER_TIMEOUT_S if self.conn.their_state is h11.SEND_BODY else READ_TIMEOUT_S)
        super().on_response_complete()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        super().connection_lost(exc)

    def _cut_in(self, seconds: float) -> None:
        self._stop_waiting()
        self._cut = self.loop.call_later(seconds, self.transport.abort)

    def _stop_waiting(self) -> None:
        if self._cut is not None:
            self._cut.cancel()
            self._cut = None
