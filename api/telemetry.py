"""Logs and metrics: key=value lines in UTC with a request id, and Prometheus numbers.

Neither ever holds a prompt, a completion, a key or a path as the client wrote it.
"""

import logging
import re
import sys
import time
import uuid
from contextvars import ContextVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

log = logging.getLogger("api")

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_TTFT_BUCKETS_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "finechat_requests",
            "Requests answered.",
            ["route", "status"],
            registry=self.registry,
        )
        self.prompt_tokens = Counter(
            "finechat_prompt_tokens", "Tokens of admitted prompts.", registry=self.registry
        )
        self.completion_tokens = Counter(
            "finechat_completion_tokens", "Tokens generated.", registry=self.registry
        )
        self.key_tokens = Counter(
            "finechat_key_tokens",
            "Tokens of prompts and answers, by the name of the key that asked.",
            ["key"],
            registry=self.registry,
        )
        self.engine_restarts = Counter(
            "finechat_engine_restarts", "Times the engine died and was started anew.", registry=self.registry
        )
        self.swaps = Counter(
            "finechat_swaps",
            "New artifacts that were taken over, or refused.",
            ["outcome"],
            registry=self.registry,
        )
        self.aborted = Counter("finechat_aborted", "Requests whose client hung up.", registry=self.registry)
        self.ttft = Histogram(
            "finechat_time_to_first_token_seconds",
            "From the rendered prompt to the first delta.",
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self.queue_time = Histogram(
            "finechat_queue_seconds",
            "From the rendered prompt to a turn in the engine.",
            buckets=_TTFT_BUCKETS_S,
            registry=self.registry,
        )
        self.in_progress = Gauge(
            "finechat_requests_in_progress",
            "Answers that admitted requests wait for, running or waiting in the engine.",
            registry=self.registry,
        )
        self.active_streams = Gauge(
            "finechat_active_streams",
            "Streams that have had a token and go on.",
            registry=self.registry,
        )


class Tally:
    """The tokens of one request, counted into the metrics as they come, aborted or not."""

    def __init__(self, prompt_tokens: int, metrics: Metrics) -> None:
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self._metrics = metrics
        self._begun = time.perf_counter()
        metrics.prompt_tokens.inc(prompt_tokens)

    def add(self, tokens: int) -> None:
        if self.completion_tokens == 0:
            self._metrics.ttft.observe(time.perf_counter() - self._begun)
        self.completion_tokens += tokens
        self._metrics.completion_tokens.inc(tokens)


class RequestLog:
    """ASGI: gives each request its id, echoes it, counts the answer and logs one line."""

    def __init__(self, app: ASGIApp, metrics: Metrics, routes: frozenset[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._routes = routes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
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
            route = scope["path"] if scope["path"] in self._routes else "other"
            outcome = str(status) if status else "aborted"
            self._metrics.requests.labels(route, outcome).inc()
            if not route.startswith(("/health", "/metrics")):
                duration_s = time.perf_counter() - begun
                log.info("event=request route=%s status=%s duration_s=%.3f", route, outcome, duration_s)


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
