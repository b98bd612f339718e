"""Prometheus metrics of the service, and the tally of one request, which counts into them.

No name or label holds a prompt, a completion or a key; keys appear by their names.
"""

import time
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TOKEN_SECONDS = (0.002, 0.004, 0.006, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.25, 0.5, 1.0, 2.5)


class FastCounter(Collector):
    """A counter for every token: prometheus_client's own, with its locks, takes ten times as long."""

    def __init__(self, name: str, documentation: str) -> None:
        self._name = name
        self._documentation = documentation
        self._value = 0

    def inc(self, amount: int) -> None:
        self._value += amount

    def collect(self) -> Iterator[Metric]:
        yield CounterMetricFamily(self._name, self._documentation, self._value)


class FastHistogram(Collector):
    """A histogram for every token. Like FastCounter it is for the event loop's thread only."""

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
        """Yield cumulative counts, one for each upper bound."""
        bounds = [*map(str, self._bounds), "+Inf"]
        buckets = list(zip(bounds, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, self._sum)


class Metrics:
    """All metrics of one service, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        counter = partial(Counter, namespace="finechat", registry=self.registry)
        gauge = partial(Gauge, namespace="finechat", registry=self.registry)
        seconds = partial(Histogram, namespace="finechat", buckets=_SECONDS, registry=self.registry)
        self.requests = counter("requests", "Requests answered.", ["route", "status"])
        self.rejections = counter(
            "rejections",
            "Requests that were answered with an error, also in a stream, by its code.",
            ["reason"],
        )
        self.aborted = counter("aborted", "Requests whose client hung up.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of admitted prompts.")
        self.cached_tokens = counter(
            "cached_prompt_tokens", "Tokens of admitted prompts that the engine had cached."
        )
        self.completion_tokens = FastCounter("finechat_completion_tokens", "Tokens generated.")
        self.registry.register(self.completion_tokens)
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
        self.active_streams = gauge("active_streams", "Streams that have a turn and have not ended.")


class Tally:
    """Count the tokens and moments of one request, aborted or not, also into the metrics.

    Moments are perf_counter's, and None before they come. begun: the prompt is rendered; turn: the request
    has a turn in the engine; first: the first delta has come, in a stream the first token.
    thinking_tokens: among the completion's; None if the answers do not think.
    """

    def __init__(self, key: str, prompt_tokens: int, answers: int, stream: bool, metrics: Metrics) -> None:
        """key: the name of the client's key, or empty."""
        self.key = key
        self.prompt_tokens = prompt_tokens
        self.cached_tokens = 0
        self.completion_tokens = 0
        self.thinking_tokens: int | None = None
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

    def add(self, tokens: int, index: int, cached_tokens: int) -> None:
        """Count `tokens` of the answer `index`."""
        now = time.perf_counter()
        self.completion_tokens += tokens
        self._metrics.completion_tokens.inc(tokens)
        if cached_tokens:
            self.cached_tokens += cached_tokens
            self._metrics.cached_tokens.inc(cached_tokens)
        if self._stream:
            if last := self._last[index]:
                self._metrics.inter_token.observe(now - last)
            self._last[index] = now
        if self.first is None:
            self.first = now
            if self._stream:
                self._metrics.ttft.observe(now - self.begun)

    def phases(self, now: float) -> list[tuple[str, float, float]]:
        """Return name, begin and end of every phase until now."""
        if self.turn is None:
            return [("queue", self.begun, now)]
        queue = ("queue", self.begun, self.turn)
        if not self._stream or self.first is None:
            return [queue, ("generate" if not self._stream else "prefill", self.turn, now)]
        return [queue, ("prefill", self.turn, self.first), ("decode", self.first, now)]

    def log_fields(self) -> str:
        """Return what a log line says of it, with a leading space."""
        queue = "-" if self.turn is None else f"{self.turn - self.begun:.3f}"
        ttft = "-" if self.first is None or not self._stream else f"{self.first - self.begun:.3f}"
        thinking = "" if self.thinking_tokens is None else f" thinking_tokens={self.thinking_tokens}"
        return (
            f" key={self.key or '-'} queue_s={queue} ttft_s={ttft} prompt_tokens={self.prompt_tokens} "
            f"completion_tokens={self.completion_tokens}{thinking}"
        )
