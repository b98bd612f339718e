"""uvicorn with our limits, and with signals that drain the service before it closes; also the admin port."""

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
from api.http.idle import IdleConnections
from api.http.read_queue import ReadQueue
from api.http.write_queue import WriteQueue

_BACKLOG = 2048
_CLOSE_TIMEOUT_S = 1
_FILES = 65_535


class AdminServer(uvicorn.Server):
    """Serve the admin port while the main server runs. It handles no signals."""

    def __init__(self, app: ASGIApp, listener: socket.socket, idle: IdleConnections) -> None:
        super().__init__(_config(app, idle, lifespan="off"))
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
    """Serve until a signal has drained the service or its start has failed.

    uvicorn's own signal handler closes the socket first, so that clients of a draining service would get no
    answer. Afterwards it raises the signal again, which hides the exit code.
    """

    def __init__(
        self, app: ASGIApp, lifecycle: Lifecycle, idle: IdleConnections, admin: AdminServer | None = None
    ) -> None:
        super().__init__(_config(app, idle, lifespan="on"))
        self._lifecycle = lifecycle
        self._admin = admin
        self._shutting_down: asyncio.Task[None] | None = None

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
        if self._shutting_down is None:
            self._shutting_down = asyncio.create_task(self._shut_down())
        else:  # a second signal: end at once
            kill_all_engines()
            os._exit(1)

    async def _shut_down(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._lifecycle.failure is not None


def _config(app: ASGIApp, idle: IdleConnections, lifespan: Literal["on", "off"]) -> uvicorn.Config:
    return uvicorn.Config(
        app,
        loop="uvloop",
        http=partial(  # type: ignore[arg-type]  # uvicorn only calls it
            Connection, reads=ReadQueue(), writes=WriteQueue(), idle=idle
        ),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
        ws="none",
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        headers=list(SECURITY_HEADERS.items()),
        timeout_keep_alive=idle.keep_alive_s,
        timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
    )


def listen(host: str, port: int, variables: str = "API_HOST or API_PORT") -> socket.socket:
    """Return a socket that listens. variables: the settings of host and port, for the error.

    Raises: EngineStartError if the address cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        listener = socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise EngineStartError(
            f"cannot listen on {host}:{port} ({error.strerror}); set {variables}, or stop what uses it"
        ) from None
    # Connections inherit it. Without it the system holds a token back until the client has acknowledged the
    # one before, which a client does after 40 ms.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def allow_many_files() -> int:
    """Raise the limit on open files as far as the system allows, and return it, at most 65,535.

    Every connection is a file, and shells often give a process 1,024.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft == resource.RLIM_INFINITY or soft >= most:
        return most
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
    return most
