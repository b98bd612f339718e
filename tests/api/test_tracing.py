"""Traces, as a collector receives them: a small real one that speaks OTLP over HTTP."""

import asyncio
import itertools
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from api.errors import EngineFailed
from tests.support import PATIENCE_S
from tests.support.api import KEY, URL, FakeEngine, House, ask

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"


class Collector:
    """What has been sent so far: the services' names, and spans by name."""

    def __init__(self) -> None:
        self.services: list[str] = []
        self.spans: dict[str, Any] = {}
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                assert self.path == "/v1/traces"
                body = self.rfile.read(int(self.headers["content-length"]))
                collector.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None: ...

        self.server = HTTPServer(("127.0.0.1", 0), Handler)

    def take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            found = {
                attribute.key: attribute.value.string_value for attribute in resource.resource.attributes
            }
            self.services.append(found["service.name"])
            self.spans |= {span.name: span for scope in resource.scope_spans for span in scope.spans}


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    collector = Collector()
    url = f"http://127.0.0.1:{collector.server.server_port}"
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "cards")
    serving = threading.Thread(target=collector.server.serve_forever)
    serving.start()
    yield collector
    collector.server.shutdown()
    serving.join()
    collector.server.server_close()


async def traced(house: House, **fields: Any) -> None:
    """Ask a loaded house once, below a span of the client's, and send off what there is to tell."""
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01", "x-request-id": "page-7"}
    async with house.client(headers=headers) as client:
        await client.get("/health/live")
        await client.post(URL, json=ask(**fields))
    assert house.service.tracing
    await asyncio.to_thread(house.service.tracing.close)


def attributes(span: Any) -> dict[str, Any]:
    return {a.key: a.value.string_value or a.value.int_value for a in span.attributes}


async def test_a_stream_is_a_span_of_the_clients_trace_with_its_phases_in_it(
    make_house: MakeHouse, collector: Collector
) -> None:
    house = make_house()
    await house.load()
    await traced(house, stream=True)
    spans = collector.spans
    assert collector.services == ["cards"]
    assert set(spans) == {f"POST {URL}", "queue", "prefill", "decode"}
    server = spans[f"POST {URL}"]
    assert (server.parent_span_id.hex(), server.kind) == (PARENT, server.SPAN_KIND_SERVER)
    assert attributes(server) == {
        "http.request.method": "POST",
        "http.route": URL,
        "http.response.status_code": 200,
        "finechat.request_id": "page-7",
        "gen_ai.usage.input_tokens": 22,
        "gen_ai.usage.output_tokens": 3,
    }
    phases = [spans[name] for name in ("queue", "prefill", "decode")]
    for phase in phases:
        assert phase.parent_span_id == server.span_id and phase.trace_id.hex() == TRACE
    moments = [
        server.start_time_unix_nano,
        *(moment for phase in phases for moment in (phase.start_time_unix_nano, phase.end_time_unix_nano)),
        server.end_time_unix_nano,
    ]
    # The same moment as two phases' end and start may differ by what rounding to nanoseconds leaves.
    assert all(later - earlier > -1000 for earlier, later in itertools.pairwise(moments))


async def test_a_whole_answer_is_generated_in_one_span(make_house: MakeHouse, collector: Collector) -> None:
    house = make_house()
    await house.load()
    await traced(house)
    assert set(collector.spans) == {f"POST {URL}", "queue", "generate"}


async def test_a_failure_is_an_error_and_text_and_keys_are_left_out(
    make_house: MakeHouse, collector: Collector
) -> None:
    house = make_house(FakeEngine(fail_before=(0, EngineFailed("dead"))), key=KEY)
    await house.load()
    secret = {"role": "user", "content": "my-secret-question"}
    async with house.client(headers={"authorization": f"Bearer {KEY}"}) as client:
        await client.post(URL, json=ask(stream=True, messages=[secret]))
        await client.request("SPY", "/my-secret-question")
    assert house.service.tracing
    await asyncio.to_thread(house.service.tracing.close)
    server = collector.spans[f"POST {URL}"]
    assert server.status.code == server.status.STATUS_CODE_ERROR
    assert attributes(server)["error.type"] == "engine_failed"
    assert "_OTHER other" in collector.spans
    found = str(collector.spans)
    assert "secret" not in found and KEY not in found and "SPY" not in found


async def test_a_collector_that_is_gone_delays_neither_answers_nor_the_end(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TIMEOUT", "3")  # else it would continue after the tests
    house = make_house()
    await house.load()
    async with asyncio.timeout(PATIENCE_S):
        await traced(house, stream=True)


def test_without_an_endpoint_nothing_is_imported() -> None:
    program = (
        "import sys; from api import app; from api.http import server; "
        "from api.telemetry.tracing import start_tracing; "
        "assert start_tracing() is None; print([m for m in sys.modules if m.startswith('opentelemetry')])"
    )
    run = subprocess.run(
        [sys.executable, "-c", program], env={}, cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert (run.stdout, run.stderr) == ("[]\n", "")
