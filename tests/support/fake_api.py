"""An OpenAI-style API over real HTTP on a free port. Tests configure its answers. It records requests."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

from client import Api

MODELS = {"object": "list", "data": [{"id": "small-model", "object": "model"}]}


def delta(text: str, finish_reason: str | None = None) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish_reason}
    return event({"choices": [choice]})


def event(piece: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(piece, ensure_ascii=False).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"


@dataclass
class FakeApi:
    """status, headers, body: the answer to a chat, or with `events` the stream of it.

    hang: keep the stream open after the events until the client goes away
    """

    events: list[bytes] = field(default_factory=list)
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, Any] = field(default_factory=dict)
    models: tuple[int, dict[str, Any]] = (200, MODELS)
    ready: tuple[int, dict[str, Any]] = (404, {})
    hang: bool = False
    requests: list[dict[str, Any]] = field(default_factory=list)
    seen: list[str] = field(default_factory=list)
    client_left: asyncio.Event = field(default_factory=asyncio.Event)
    url: str = ""
    clients: list[Api] = field(default_factory=list)

    def api(self, path: str = "", key: str | None = None) -> Api:
        """A client of this API, closed at the end."""
        self.clients.append(Api(self.url + path, key))
        return self.clients[-1]

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        path = head.split()[1]
        self.seen.append(path)
        match path:
            case "/v1/models":
                self._respond(writer, *self.models)
            case "/health/ready":
                self._respond(writer, *self.ready)
            case "/v1/chat/completions":
                await self._chat(head, reader, writer)
        writer.close()

    async def _chat(self, head: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        headers = dict(line.lower().split(": ", 1) for line in head.splitlines()[1:] if line)
        request = json.loads(await reader.readexactly(int(headers["content-length"])))
        self.requests.append({"headers": headers, **request})
        if not self.events and not self.hang:
            return self._respond(writer, self.status, self.body, self.headers)
        writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n")
        for block in self.events:
            writer.write(block)
        with suppress(ConnectionResetError):  # a client that leaves with unread data resets the connection
            await writer.drain()
            if not self.hang:
                return
            await reader.read()
        self.client_left.set()

    @staticmethod
    def _respond(
        writer: asyncio.StreamWriter,
        status: int,
        body: dict[str, Any],
        headers: dict[str, str] | None = None,
    ) -> None:
        data = json.dumps(body).encode()
        lines = {"content-length": len(data), "connection": "close"} | (headers or {})
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        writer.write(f"HTTP/1.1 {status} X\r\n{head}\r\n".encode() + data)


@asynccontextmanager
async def running(api: FakeApi) -> AsyncIterator[FakeApi]:
    server = await asyncio.start_server(api.handle, "127.0.0.1", 0)
    api.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        yield api
    finally:
        for client in api.clients:
            await client.close()
        server.close()
