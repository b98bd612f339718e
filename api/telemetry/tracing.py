"""OpenTelemetry spans of the requests, over OTLP/HTTP to where OTEL_EXPORTER_OTLP_ENDPOINT says.

Without that variable nothing is imported. Spans are made when a request has ended, from the moments that its
Tally kept, so the streaming path does not know of them. A server span continues the client's `traceparent`;
in it are `queue`, `prefill` (to the first token) and `decode`, or `generate` where nothing was streamed.
The other OTEL_* variables (headers, sampler, service name, attributes) are read by OpenTelemetry itself.
"""

import os
import threading
import time
from typing import Any

from starlette.types import Scope

from api.telemetry.metrics import Tally

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

    def record(
        self,
        scope: Scope,
        route: str,
        status: int,
        request_id: str,
        begun: float,
        refusal: str | None,
        tally: Tally | None,
    ) -> None:
        """Make the spans of a request that has just ended.

        status: 0 without an answer; begun: of perf_counter; refusal: the reason of the error it was sent.
        """
        from opentelemetry.trace import SpanKind, StatusCode, set_span_in_context

        now, now_ns = time.perf_counter(), time.time_ns()

        def at(moment: float) -> int:
            return now_ns - int((now - moment) * 1e9)

        carrier = {str(name, "latin-1"): str(value, "latin-1") for name, value in scope["headers"]}
        span = self._tracer.start_span(
            f"{_method(scope)} {route}",
            self._propagator.extract(carrier),
            SpanKind.SERVER,
            _attributes(_method(scope), route, status, request_id, refusal, tally),
            start_time=at(begun),
        )
        if status >= 500:
            span.set_status(StatusCode.ERROR)
        inside = set_span_in_context(span)
        for name, first, last in tally.phases(now) if tally else ():
            self._tracer.start_span(name, inside, start_time=at(first)).end(at(last))
        span.end(now_ns)

    def close(self) -> None:
        """Send what is left. Blocks for a moment, even if the collector does not answer."""
        closing = threading.Thread(target=self._provider.shutdown, name="tracing-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_TIMEOUT_S)


def start_tracing() -> Tracing | None:
    return Tracing() if any(os.environ.get(name) for name in ENDPOINTS) else None


def _method(scope: Scope) -> str:
    """Return the method, or `_OTHER` for one that the client made up."""
    return scope["method"] if scope["method"] in _METHODS else "_OTHER"


def _attributes(
    method: str, route: str, status: int, request_id: str, refusal: str | None, tally: Tally | None
) -> dict[str, Any]:
    """Name the attributes by OpenTelemetry's conventions where it has one."""
    attributes = {
        "http.request.method": method,
        "http.route": route,
        "http.response.status_code": status or None,
        "error.type": refusal,
        "finechat.request_id": request_id,
        "gen_ai.usage.input_tokens": tally and tally.prompt_tokens,
        "gen_ai.usage.output_tokens": tally and tally.completion_tokens,
    }
    return {name: value for name, value in attributes.items() if value is not None}
