"""A request in logs, metrics and the engine: its id, its end, and nothing of its text."""

import asyncio
import logging
import re
from collections.abc import Callable

import httpx
import pytest

from api.errors import EngineFailed
from api.http import access
from tests.support.api import KEY, URL, FakeEngine, House, ask, eventually

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
BEARER = {"authorization": f"Bearer {KEY}"}


@pytest.mark.parametrize(
    ("sent", "kept"), [("page-7.a_B", True), ("x" * 65, False), ("a b", False), ("a=b", False)]
)
async def test_sane_request_id_is_echoed_and_another_replaced(
    make_house: MakeHouse, sent: str, kept: bool
) -> None:
    async with make_house().client() as client:
        answer = await client.get("/nowhere", headers={"x-request-id": sent})
    assert (answer.headers["x-request-id"] == sent) is kept
    assert len(answer.headers["x-request-id"]) >= 8


async def test_logs_and_metrics_count_and_hold_no_text_or_key(
    make_house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house(key=KEY)
    await house.load()
    secret = "my-secret-question"
    with caplog.at_level(logging.DEBUG, logger="api"):
        async with house.client(headers=BEARER) as client:
            message = {"role": "user", "content": secret}
            await client.post(URL, json=ask(messages=[message], user=secret, stream=True))
            await client.get(f"/{secret}")
            metrics = (await client.get("/metrics")).text
    assert f'finechat_requests_total{{route="{URL}",status="200"}} 1.0' in metrics
    assert 'finechat_requests_total{route="other",status="404"} 1.0' in metrics
    assert "finechat_completion_tokens_total 3.0" in metrics
    assert "finechat_time_to_first_token_seconds_count 1.0" in metrics
    assert 'finechat_inter_token_seconds_bucket{le="+Inf"} 2.0' in metrics
    assert "finechat_inter_token_seconds_count 2.0" in metrics
    assert "finechat_queue_seconds_count 1.0" in metrics
    assert 'finechat_key_requests_total{key="default"} 1.0' in metrics
    assert "finechat_requests_in_progress 0.0" in metrics
    line = next(record.getMessage() for record in caplog.records if URL in record.getMessage())
    assert re.fullmatch(
        rf"event=request route={URL} status=200 error=- duration_s=\d\.\d{{3}} ignored=user "
        r"key=default queue_s=0\.\d{3} ttft_s=0\.\d{3} prompt_tokens=38 completion_tokens=3",
        line,
    )
    for place in (metrics, caplog.text):
        assert secret not in place
        assert KEY not in place
        assert "Hello" not in place


async def test_rejections_are_counted_by_their_reason(
    make_house: MakeHouse, caplog: pytest.LogCaptureFixture
) -> None:
    house = make_house(FakeEngine(fail_before=(1, EngineFailed("dead"))), key=KEY, max_queue=4)
    await house.load()
    async with house.client(headers=BEARER) as client:
        with caplog.at_level(logging.INFO, logger="api"):
            await client.get("/v1/models", headers={"authorization": ""})
            with house.service.admission.places(1):
                await client.post(URL, json=ask(n=4))
            await client.post(URL, json=ask(n=0))
            await client.post(URL, json=ask(stream=True))
            await client.post(URL, content=b"x" * (access.MAX_BODY_BYTES + 1))
            house.engine.fail_before = None
            house.engine.hold_before = 0
            await client.post(URL, json=ask(), headers={"x-request-timeout": "0.05"})
        metrics = (await client.get("/metrics")).text
    reasons = {
        "invalid_api_key",
        "overloaded",
        "invalid_request",
        "engine_failed",
        "request_too_large",
        "deadline_exceeded",
    }
    counted = re.findall(r'finechat_rejections_total\{reason="(\w+)"\} (\S+)', metrics)
    assert sorted(counted) == [(reason, "1.0") for reason in sorted(reasons)]
    assert set(re.findall(r"error=(\w+)", caplog.text)) == reasons


async def test_the_engine_knows_a_request_by_its_id_even_if_the_client_uses_it_twice(
    make_house: MakeHouse,
) -> None:
    house = make_house()
    await house.load()
    async with house.client(headers={"x-request-id": "page-7"}) as client:
        for _ in range(2):
            await client.post(URL, json=ask())
    first, second = (call["request_id"] for call in house.engine.calls)
    assert first.startswith("page-7.chatcmpl-") and second.startswith("page-7.chatcmpl-")
    assert first != second


@pytest.mark.parametrize("stream", [True, False])
async def test_hung_up_client_ends_its_generation(make_house: MakeHouse, stream: bool) -> None:
    house = make_house(FakeEngine(hold_before=1))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        if stream:
            answer = await client.send(client.build_request("POST", URL, json=ask(stream=True)), stream=True)
            await answer.aclose()
        else:
            asking = asyncio.create_task(client.post(URL, json=ask()))
            await eventually(lambda: bool(house.engine.calls))
            asking.cancel()
        await eventually(lambda: house.engine.aborted == 1)
        metrics = (await client.get("/metrics")).text
        assert "finechat_aborted_total 1.0" in metrics
        assert "finechat_requests_in_progress 0.0" in metrics
        assert "finechat_active_streams 0.0" in metrics
