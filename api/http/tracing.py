"""OpenTelemetry spans of the requests, over OTLP/HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT says.

Without that variable nothing is imported. Spans are made when a request has ended, out of the moments that
its Tally kept, so the streaming path does not know of them: a server span below the client's `traceparent`,
and in it `queue`, `prefill` (to the first token) and `decode`, or `generate` where nothing was streamed.
The other OTEL_* variables (headers, sampler, service name, attributes) are read by OpenTelemetry itself.
"""

import os
import threading
import time
from typing import Any

from starlette.types import Scope

from api.errors import REASON
from api.http.metrics import TALLY, Tally

ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_METHODS = ("GET", "HEAD", "POST", "OPTIONS", "PUT", "PATCH", "DELETE")
_CLOSE_TIMEOUT_S = 2.0


class Tracing:
    def __init__(self) -> None:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        os.environ.setdefault("OTEL_SERVICE_NAME", "finechat-api")
        self._provider = TracerProvider(resource=Resource.create())
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
        self._tracer = self._provider.get_tracer("finechat")
        self._propagator = TraceContextTextMapPropagator()

    def record(self, scope: Scope, route: str, status: int, request_id: str, begun: float) -> None:
        """The spans of a request that has just ended. begun: of perf_counter; status: 0 without an answer."""
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        tally: Tally | None = scope.get(TALLY)
        carrier = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{_method(scope)} {route}",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            _attributes(scope, route, status, request_id, tally),
            start_time=at(begun),
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for name, first, last in tally.phases(now) if tally else ():
            self._tracer.start_span(name, inside, start_time=at(first)).end(at(last))
        span.end(now_ns)

    def close(self) -> None:
        """Send what is left; blocks for a moment, also if the collector does not answer."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)


def start_tracing() -> Tracing | None:
    return Tracing() if any(os.environ.get(name) for name in ENDPOINTS) else None


def _method(scope: Scope) -> str:
    """A client can make up any."""
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"


def _attributes(
    scope: Scope, route: str, status: int, request_id: str, tally: Tally | None
) -> dict[str, Any]:
    """By OpenTelemetry's conventions where it has one."""
    told = {
        "http.request.method": _method(scope),
        "http.route": route,
        "http.response.status_code": status or None,
        "error.type": scope.get(REASON),
        "finechat.request_id": request_id,
        "gen_ai.usage.input_tokens": tally and tally.prompt_tokens,
        "gen_ai.usage.output_tokens": tally and tally.completion_tokens,
    }
    return {name: value for name, value in told.items() if value is not None}
