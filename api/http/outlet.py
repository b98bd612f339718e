"""The end of a stream's way: chunks go past ASGI's layers and h11, several in a write when it is behind.

A write costs the system more than all that makes a chunk costs us. So after a round of writes the loop makes
chunks for a while that grows with the number of streams, before it writes again. What one GPU generates comes
more slowly than that, and every chunk then leaves at once.
"""

import asyncio
import time

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from api.errors import ClientGone

REST_S = 30e-6  # for each connection of a round of writes, so 33,000 writes a second at most


class Outbox:
    """What all streams of one server have to write."""

    def __init__(self) -> None:
        self._waiting: list[Outlet] = []
        self._rest_until = 0.0

    def add(self, outlet: "Outlet") -> None:
        self._waiting.append(outlet)
        if len(self._waiting) == 1:
            rest_s = self._rest_until - time.monotonic()
            # Also without a rest this comes after all streams that have a chunk now.
            asyncio.get_running_loop().call_later(max(0.0, rest_s), self._write)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for outlet in waiting:
            outlet.write()
        self._rest_until = time.monotonic() + len(waiting) * REST_S


class Outlet:
    """One answer's: a chunk of a body of unknown length waits for the next round; all else is uvicorn's."""

    def __init__(
        self, scope: Scope, send: Send, transport: asyncio.Transport, flow: FlowControl, outbox: Outbox
    ) -> None:
        """send: uvicorn's; transport, flow: of the connection."""
        self._framed = scope["http_version"] == "1.1"
        self._send = send
        self._transport = transport
        self._flow = flow
        self._outbox = outbox
        self._chunks: list[bytes] = []
        self._bytes = 0

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._framed &= all(name != b"content-length" for name, _ in message["headers"])
        elif self._framed and (body := message.get("body")):
            if not self._chunks:
                self._outbox.add(self)
            self._chunks.append(b"%x\r\n%b\r\n" % (len(body), body))
            self._bytes += len(body)
            if message.get("more_body"):
                if self._bytes >= HIGH_WATER_LIMIT or self._flow.write_paused:
                    await self._until_read()
                return
            self.write()
            message["body"] = b""
        await self._send(message)

    async def _until_read(self) -> None:
        """Raises: ClientGone."""
        self.write()
        await self._flow.drain()
        if self._transport.is_closing():
            raise ClientGone

    def write(self) -> None:
        if self._chunks and not self._transport.is_closing():
            self._transport.write(b"".join(self._chunks))
        self._chunks, self._bytes = [], 0
