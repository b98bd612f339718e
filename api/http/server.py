"""uvicorn with our limits, and signals that drain before anything is closed; the admin port beside it."""

import asyncio
import contextlib
import os
import resource
import signal
import socket
from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Literal

import uvicorn
from starlette.types import ASGIApp

from api.engine.lifecycle import Lifecycle
from api.engine.processes import kill_all_engines
from api.errors import EngineStartError
from api.http.access import MAX_HEADER_BYTES, SECURITY_HEADERS
from api.http.connection import Connection
from api.http.read_queue import ReadQueue
from api.http.write_queue import WriteQueue

_BACKLOG = 2048
_CLOSE_TIMEOUT_S = 1
_FILES = 65_535


class AdminServer(uvicorn.Server):
    """Runs beside the other, which ends it; no signal is its own."""

    def __init__(self, app: ASGIApp, listener: socket.socket) -> None:
        super().__init__(_config(app, lifespan="off"))
        self._listener = listener

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        serving = asyncio.create_task(self.serve([self._listener]))
        try:
            yield
        finally:
            self.should_exit = True
            await serving


class Server(uvicorn.Server):
    """Runs until a signal has been obeyed or the start has failed.

    uvicorn's own handler closes the socket first, so that clients of a draining service would be
    refused instead of told, and afterwards raises the signal again, which hides the exit code.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle, admin: AdminServer | None = None) -> None:
        super().__init__(_config(app, lifespan="on"))
        self._lifecycle = lifecycle
        self._admin = admin
        self._leaving: asyncio.Task[None] | None = None

    async def serve(self, sockets: list[socket.socket] | None = None) -> None:
        async with self._admin.running() if self._admin else contextlib.nullcontext():
            await super().serve(sockets)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._on_signal)
        yield

    def _on_signal(self) -> None:
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave())
        else:  # asked twice: at once
            kill_all_engines()
            os._exit(1)

    async def _leave(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._lifecycle.failure is not None


def _config(app: ASGIApp, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(  # type: ignore[arg-type]  # uvicorn only calls it
            Connection, reads=ReadQueue(), writes=WriteQueue()
        ),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        headers=list(SECURITY_HEADERS.items()),
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
    )


def listen(host: str, port: int, variables: str = "API_HOST or API_PORT") -> socket.socket:
    """An open socket. variables: what may be set to have another one.

    Raises: EngineStartError if it cannot be had.
    """
    _allow_many_files()
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise EngineStartError(
            f"cannot listen on {host}:{port} ({error.strerror}); set {variables}, or stop what uses it"
        ) from None
    # Connections inherit it. Without it the system keeps a token back until the client has confirmed the
    # one before, which a client does after 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def _allow_many_files() -> None:
    """A connection is a file, and shells often give a process 1,024 where it may have many more."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < _FILES and (hard == resource.RLIM_INFINITY or hard > soft):
        most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
