"""Writes of all streams: chunks skip ASGI's layers and h11, and share a write when they come too fast.

A socket write costs more CPU than producing the chunk. So after a round of writes the loop produces chunks
for a while before it writes again; the pause grows with the number of streams. It costs little at the pace of
one GPU, where a round is mostly over before the next chunks come, and shortens the wait for the first token
when 512 streams share one (docs/log.md, 2026-11-30).
"""

import asyncio
import time

from starlette.types import Message, Scope, Send
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl

from api.errors import ClientGone

PAUSE_S = 30e-6  # for each connection of a round of writes, so 33,000 writes a second at most


class WriteQueue:
    """The answers of one server that have chunks to write."""

    def __init__(self) -> None:
        self._waiting: list[ChunkWriter] = []
        self._pause_until = 0.0

    def add(self, writer: "ChunkWriter") -> None:
        """Write what `writer` holds in the next round."""
        self._waiting.append(writer)
        if len(self._waiting) == 1:
            pause_s = self._pause_until - time.monotonic()
            # Even without a pause the round comes after all streams that have a chunk now.
            asyncio.get_running_loop().call_later(max(0.0, pause_s), self._write)

    def _write(self) -> None:
        waiting, self._waiting = self._waiting, []
        for writer in waiting:
            writer.write()
        self._pause_until = time.monotonic() + len(waiting) * PAUSE_S


class ChunkWriter:
    """Write one answer: chunks of a body of unknown length in rounds, all else through uvicorn."""

    def __init__(
        self, scope: Scope, send: Send, transport: asyncio.Transport, flow: FlowControl, queue: WriteQueue
    ) -> None:
        """send: uvicorn's; transport, flow: the connection's."""
        self._framed = scope["http_version"] == "1.1" and scope["method"] != "HEAD"
        self._send = send
        self._transport = transport
        self._flow = flow
        self._queue = queue
        self._chunks: list[bytes] = []
        self._bytes = 0

    async def send(self, message: Message) -> None:
        """ASGI's `send`. Raises: ClientGone."""
        if message["type"] == "http.response.start":
            self._framed &= all(name != b"content-length" for name, _ in message["headers"])
        elif self._framed and (body := message.get("body")):
            if not self._chunks:
                self._queue.add(self)
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
        """Write, then wait until the client has read most of it. Raises: ClientGone."""
        self.write()
        await self._flow.drain()
        if self._transport.is_closing():
            raise ClientGone

    def write(self) -> None:
        """Write the chunks that wait, as one piece."""
        if self._chunks and not self._transport.is_closing():
            self._transport.write(b"".join(self._chunks))
        self._chunks, self._bytes = [], 0
