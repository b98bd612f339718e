"""uvicorn with our limits, and signals that drain before anything is closed."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp

from api.access.security import MAX_HEADER_BYTES
from api.engine.engine import kill_engine_processes
from api.engine.lifecycle import Lifecycle
from api.errors import EngineStartError

_BACKLOG = 2048
_CLOSE_TIMEOUT_S = 1


class Server(uvicorn.Server):
    """Runs until a signal has been obeyed or the start has failed.

    uvicorn's own handler closes the socket first, so that clients of a draining service would be
    refused instead of told, and afterwards raises the signal again, which hides the exit code.
    """

    def __init__(self, app: ASGIApp, lifecycle: Lifecycle) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                loop="uvloop",
                http="h11",  # httptools has no limit on the size of headers
                h11_max_incomplete_event_size=MAX_HEADER_BYTES,
                ws="none",
                lifespan="on",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_graceful_shutdown=_CLOSE_TIMEOUT_S,
            )
        )
        self._lifecycle = lifecycle
        self._leaving: asyncio.Task[None] | None = None

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
            kill_engine_processes()
            os._exit(1)

    async def _leave(self) -> None:
        await self._lifecycle.drain()
        self.should_exit = True

    async def on_tick(self, counter: int) -> bool:
        return await super().on_tick(counter) or self._lifecycle.failure is not None


def listen(host: str, port: int) -> socket.socket:
    """An open socket.

    Raises: EngineStartError if it cannot be had.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise EngineStartError(
            f"cannot listen on {host}:{port} ({error.strerror}); set API_HOST or API_PORT, or stop "
            "what uses it"
        ) from None
