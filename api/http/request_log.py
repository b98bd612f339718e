"""The outermost layer: gives a request its id and state, and reports it when it has ended."""

import re
import time
import uuid
from collections.abc import Mapping

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.http.state import ErrorWriter, RequestState
from api.telemetry.log import current_request_id, log
from api.telemetry.metrics import Metrics
from api.telemetry.tracing import Tracing

IGNORED_FIELDS = "x-ignored-fields"
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")


class RequestLog:
    """ASGI: echo the request's id and name ignored fields, then write its log line, metrics and trace spans.

    None of them holds a prompt, a completion, a key or a path as the client wrote it.
    """

    def __init__(
        self,
        app: ASGIApp,
        metrics: Metrics,
        tracing: Tracing | None,
        routes: frozenset[str],
        error_bodies: Mapping[str, ErrorWriter],
        error_body: ErrorWriter,
        id_headers: Mapping[str, bytes],
    ) -> None:
        """routes: paths to report by name; any other is reported as `other`.

        error_bodies: who writes the errors of a path; `error_body` writes those of any other. id_headers: the
        name of another header with the request's id, by path.
        """
        self._app = app
        self._metrics = metrics
        self._tracing = tracing
        self._routes = routes
        self._error_bodies = error_bodies
        self._error_body = error_body
        self._id_headers = id_headers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = RequestState(send, self._error_bodies.get(scope["path"], self._error_body))
        state.attach(scope)
        request_id = _id_of(scope)
        current_request_id.set(request_id)
        own_headers = [(b"x-request-id", request_id.encode())]
        if (name := self._id_headers.get(scope["path"])) is not None:
            own_headers.append((name, request_id.encode()))
        status = 0
        begun = time.perf_counter()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message["headers"], *own_headers]
                if state.ignored:
                    names = ", ".join(sorted(state.ignored))
                    message["headers"].append((IGNORED_FIELDS.encode(), names.encode()))
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        finally:
            self._report(scope, state, request_id, status, begun)

    def _report(self, scope: Scope, state: RequestState, request_id: str, status: int, begun: float) -> None:
        """status: 0 if there was no answer."""
        route = scope["path"] if scope["path"] in self._routes else "other"
        outcome = str(status) if status else "aborted"
        self._metrics.requests.labels(route, outcome).inc()
        if state.refusal is not None:
            self._metrics.rejections.labels(state.refusal).inc()
        if route.startswith(("/health", "/metrics")):
            return
        log.info(
            "event=request route=%s status=%s error=%s duration_s=%.3f%s%s",
            route, outcome, state.refusal or "-", time.perf_counter() - begun,
            f" ignored={','.join(sorted(state.ignored))}" if state.ignored else "",
            state.tally.log_fields() if state.tally else "",
        )  # fmt: skip
        if self._tracing is not None:
            self._tracing.record(scope, route, status, request_id, begun, state.refusal, state.tally)


def _id_of(scope: Scope) -> str:
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _SANE_ID.fullmatch(value):
            return str(value, "ascii")
    return uuid.uuid4().hex
