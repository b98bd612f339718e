"""Logs and metrics: key=value lines in UTC with a request id, and Prometheus numbers.

Neither ever holds a prompt, a completion, a key or a path as the client wrote it.
"""

import logging
import re
import sys
import time
import uuid
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import REASON

log = logging.getLogger("api")

_request_id: ContextVar[str] = ContextVar("request_id", default="-")
_SANE_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKEN_SECONDS = (0.002, 0.004, 0.006, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)
TALLY = "finechat.tally"  # where the scope holds the Tally of a request that was rendered


class FastHistogram(Collector):
    """A histogram for what happens with every token: a search and two additions, from one thread only."""

    def __init__(self, name: str, documentation: str, bounds: Sequence[float]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def collect(self) -> Iterator[Metric]:
        """As prometheus_client wants it: bounds with what lies below each."""
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


class Metrics:
    """The numbers of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="finechat", registry=self.registry)
        gauge = partial(Gauge, namespace="finechat", registry=self.registry)
        seconds = partial(Histogram, namespace="finechat", buckets=_SECONDS, registry=self.registry)
        self.requests = counter("requests", "Requests answered.", ["route", "status"])
        self.rejections = counter(
            "rejections", "Requests that were told an error, also in a stream, by its code.", ["reason"]
        )
        self.aborted = counter("aborted", "Requests whose client hung up.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of admitted prompts.")
        self.completion_tokens = counter("completion_tokens", "Tokens generated.")
        self.key_requests = counter("key_requests", "Requests admitted, by the name of the key.", ["key"])
        self.key_tokens = counter(
            "key_tokens", "Tokens of prompts and answers, by the name of the key.", ["key"]
        )
        self.engine_restarts = counter("engine_restarts", "Times the engine died and was started anew.")
        self.swaps = counter("swaps", "New artifacts that were taken over, or refused.", ["outcome"])
        self.queue_time = seconds("queue_seconds", "From the rendered prompt to a turn in the engine.")
        self.ttft = seconds(
            "time_to_first_token_seconds", "From the rendered prompt to the first token of a stream."
        )
        self.inter_token = FastHistogram(
            "finechat_inter_token_seconds",
            "Between two deltas of an answer that is streamed.",
            _TOKEN_SECONDS,
        )
        self.registry.register(self.inter_token)
        self.in_progress = gauge("requests_in_progress", "Answers that have a place, running or waiting.")
        self.active_streams = gauge("active_streams", "Streams that have had a token and go on.")


class Tally:
    """The tokens and moments of one request, counted into the metrics as they come, aborted or not.

    Moments are perf_counter's, None until they have come. begun: its prompt is rendered; turn: it has a turn
    in the engine; first: its first delta has come, in a stream the first token.
    """

    def __init__(self, key: str, prompt_tokens: int, answers: int, stream: bool, metrics: Metrics) -> None:
        """key: the name of the key that asks, or nothing."""
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.completion_tokens = 0
        self.begun = time.perf_counter()
        self.turn: float | None = None
        self.first: float | None = None
        self._stream = stream
        self._last = [0.0] * answers
        self._metrics = metrics

    def take_turn(self) -> None:
        self.turn = time.perf_counter()
        self._metrics.queue_time.observe(self.turn - self.begun)
        self._metrics.prompt_tokens.inc(self.prompt_tokens)

    def add(self, tokens: int, index: int) -> None:
        """index: of the answer that has got them."""
        now = time.perf_counter()
        self.completion_tokens += tokens
        self._metrics.completion_tokens.inc(tokens)
        if self._stream:
            if last := self._last[index]:
                self._metrics.inter_token.observe(now - last)
            self._last[index] = now
        if self.first is None:
            self.first = now
            if self._stream:
                self._metrics.ttft.observe(now - self.begun)

    def told(self) -> str:
        """For the log."""
        queue = "-" if self.turn is None else f"{self.turn - self.begun:.3f}"
        ttft = "-" if self.first is None or not self._stream else f"{self.first - self.begun:.3f}"
        return (
            f" key={self.key or '-'} queue_s={queue} ttft_s={ttft} prompt_tokens={self.prompt_tokens} "
            f"completion_tokens={self.completion_tokens}"
        )


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
            if (reason := scope.get(REASON)) is not None:
                self._metrics.rejections.labels(reason).inc()
            if not route.startswith(("/health", "/metrics")):
                tally = scope.get(TALLY)
                log.info(
                    "event=request route=%s status=%s error=%s duration_s=%.3f%s",
                    route, outcome, reason or "-", time.perf_counter() - begun,
                    tally.told() if tally else "",
                )  # fmt: skip


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
