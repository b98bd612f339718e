"""One client's connection, closed when the client keeps the server waiting.

uvicorn waits for ever for the first request, for the rest of a head, for a body whose answer has been sent,
and for a client to read the end of an answer. A few thousand such connections use up the process's files.
"""

import asyncio
from collections.abc import Callable
from functools import partial
from typing import Any

import h11
from starlette.types import Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http.idle import IdleConnections
from api.http.read_queue import ReadQueue
from api.http.write_queue import ChunkWriter, WriteQueue

HEAD_TIMEOUT_S = 10.0
LINGER_TIMEOUT_S = 2.0  # for the rest of a body that is not wanted any more
READ_TIMEOUT_S = 30.0  # for what is left of an answer, or for most of the 64 KiB of one that wait


class Connection(H11Protocol):
    """Close a client that sends no request, keeps sending after the answer, or stops reading.

    It uses one timer a connection and none a chunk. While a request is answered, its own limits hold. While
    the connection waits for its next request, uvicorn's keep-alive timer and `IdleConnections` do.
    """

    _closing: asyncio.TimerHandle | None = None

    def __init__(
        self, *, reads: ReadQueue, writes: WriteQueue, idle: IdleConnections, **options: Any
    ) -> None:
        """reads, writes, idle: the server's; options: uvicorn's."""
        super().__init__(**options)
        self.app = self._answer
        self._reads = reads
        self._writes = writes
        self._idle = idle

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        writer = ChunkWriter(scope, send, self.transport, self.flow, self._writes)
        await self.config.loaded_app(scope, receive, writer.send)

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        if self._idle.remove(self.timeout_keep_alive_handler):
            self._close_in(HEAD_TIMEOUT_S, self.transport.abort)
        if not self._reads.take(partial(self._read, data)):
            self.transport.pause_reading()  # so at most one read of each connection waits

    def _read(self, data: bytes) -> None:
        if self.transport.is_closing():
            return
        if not self.flow.read_paused:  # that is uvicorn's, for a long body
            self.transport.resume_reading()
        super().data_received(data)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._close_in(HEAD_TIMEOUT_S, transport.abort)

    def handle_events(self) -> None:
        super().handle_events()
        if self.cycle is not None and not self.cycle.response_complete and not self.flow.write_paused:
            self._stop_waiting()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._close_in(READ_TIMEOUT_S, self._abort_unread)

    def resume_writing(self) -> None:
        super().resume_writing()
        if not self.cycle.response_complete:
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Wait for a client that still sends or reads: closing at once would cost it the answer."""
        still_sends = self.conn.their_state is h11.SEND_BODY
        if still_sends:
            self._close_in(LINGER_TIMEOUT_S, self.transport.abort)
        else:
            self._close_in(READ_TIMEOUT_S, self._abort_unread)
        super().on_response_complete()
        if self.timeout_keep_alive_task is not None and not still_sends:
            self._idle.add(self.timeout_keep_alive_handler)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_waiting()
        self._idle.remove(self.timeout_keep_alive_handler)
        self._unset_keepalive_if_required()  # uvicorn leaves it where the client has reset the connection
        super().connection_lost(exc)

    def _close_in(self, seconds: float, close: Callable[[], None]) -> None:
        self._stop_waiting()
        self._closing = self.loop.call_later(seconds, close)

    def _abort_unread(self) -> None:
        """Close the connection unless the client has read all of the answer and only waits."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()

    def _stop_waiting(self) -> None:
        if self._closing is not None:
            self._closing.cancel()
            self._closing = None
