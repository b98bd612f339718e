"""What is told of a request once it has ended: a key=value line in UTC, its metrics and its spans.

None of them ever holds a prompt, a completion, a key or a path as the client wrote it.
"""

import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import REASON
from api.http.metrics import TALLY, Metrics, Tally
from api.http.tracing import Tracing

log = logging.getLogger("api")

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
SEND = "finechat.send"  # where the scope holds the server's own `send`: no layer changes more than the start
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """ASGI: gives each request its id, echoes it, counts the answer and logs one line."""

    def __init__(
        self, app: ASGIApp, metrics: Metrics, tracing: Tracing | None, routes: frozenset[str]
    ) -> None:
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        scope[SEND] = send
        request_id = _id_of(scope)
        _request_id.set(request_id)
        header = (b"x-request-id", request_id.encode())
        status = 0
        begun = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._tell(scope, request_id, status, begun)

    def _tell(self, scope: Scope, request_id: str, status: int, begun: float) -> None:
        """status: 0 if there was no answer."""
        route = scope["path"] if scope["path"] in self._routes else "other"
        outcome = str(status) if status else "aborted"
        self._metrics.requests.labels(route, outcome).inc()
        if (reason := scope.get(REASON)) is not None:
            self._metrics.rejections.labels(reason).inc()
        if route.startswith(("/health", "/metrics")):
            return
        tally: Tally | None = scope.get(TALLY)
        log.info(
            "event=request route=%s status=%s error=%s duration_s=%.3f%s",
            route, outcome, reason or "-", time.perf_counter() - begun, tally.told() if tally else "",
        )  # fmt: skip
        if self._tracing is not None:
            self._tracing.record(scope, route, status, request_id, begun)


def request_id() -> str:
    """Of the request that this task serves."""
    return _request_id.get()


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex


def configure_logging() -> None:
    """One handler on stderr for the whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    formatter = logging.Formatter(
        "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s "
        "request_id=%(request_id)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = _request_id.get()
    return True
