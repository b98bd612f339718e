"""Connections that keep the server waiting, and bodies that would keep it busy."""

import asyncio
import time
from collections.abc import Callable

import httpx
import pytest

from api.engine.delta import Delta
from api.http import connection
from tests.support import PATIENCE_S
from tests.support.api import URL, FakeEngine, House, ask, assert_openai_error, eventually, streamed_request
from tests.support.pace import CpuMeter

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]


@pytest.mark.parametrize("sent", [b"", b"GET /health/li", b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: "])
async def test_who_sends_no_request_is_cut_off(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(sent)
        with pytest.raises(ConnectionError):
            while True:  # a byte now and then buys no time
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)
        assert reader.at_eof() or reader.exception()


async def test_who_does_not_send_the_body_of_an_answered_request_is_cut_off(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "LINGER_TIMEOUT_S", 0.3)
    async with make_house(key="k" * 20).serving() as url, asyncio.timeout(PATIENCE_S):
        reader, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)
        writer.write(f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-length: 900000\r\n\r\n".encode())
        assert b" 401 " in await reader.readline()
        with pytest.raises(ConnectionError):
            while True:
                writer.write(b"a")
                await writer.drain()
                await asyncio.sleep(0.05)


@pytest.mark.parametrize("more", [b"", b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"])
async def test_who_reads_nothing_for_long_loses_the_answer_and_the_place(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, more: bytes
) -> None:
    """Also who asks for more in the meantime. And nothing is generated for a client that does not read."""
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.6)
    house = make_house(FakeEngine([Delta("x" * 2**20, 1, None)] * 50))
    async with house.serving() as url:
        _, writer = await asyncio.open_connection("127.0.0.1", httpx.URL(url).port, limit=1)
        writer.write(streamed_request())
        await eventually(lambda: house.service.metrics.completion_tokens._value > 0)
        await asyncio.sleep(0.2)
        writer.write(more)
        await eventually(lambda: house.engine.aborted == 1)
        assert house.service.metrics.completion_tokens._value < 20
        await eventually(lambda: house.service.metrics.in_progress._value.get() == 0)
        writer.close()


async def test_a_reader_that_comes_back_in_time_gets_the_whole_answer(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 1.0)
    house = make_house(FakeEngine([*[Delta("~" * 2**20, 1, None)] * 20, Delta("", 1, "stop")]))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as answer:
            read = 0
            async for part in answer.aiter_bytes(2**20):
                read += part.count(b"~")
                await asyncio.sleep(0.1)  # in all twice as long as it may read nothing
    assert read == 20 * 2**20


async def test_a_client_that_sends_too_much_gets_413(make_house: MakeHouse) -> None:
    """It may keep sending for a while, as clients do that read the answer last."""
    async with make_house().serving() as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(3):
            answer = await client.post(
                URL, content=b" " * 2**23, headers={"content-type": "application/json"}
            )
            assert_openai_error(answer, 413, "request_too_large")


async def test_a_long_answer_is_not_cut_off_and_a_connection_serves_again(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.2)
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.2)
    house = make_house(FakeEngine(hold_before=1))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        for _ in range(2):
            house.engine.release.clear()
            asyncio.get_running_loop().call_later(0.6, house.engine.release.set)
            assert (await client.post(URL, json=ask())).status_code == 200


@pytest.mark.parametrize(
    "bomb",
    [
        {"messages": [{"role": "user", "content": [{}] * 300_000}]},
        {"messages": [{}] * 300_000},
        {"logit_bias": {f"a{number}": 1 for number in range(70_000)}},
        {f"a{number}": 1 for number in range(70_000)},
        {"stop": [[]] * 300_000},
    ],
    ids=["parts", "messages", "biases", "fields", "stops"],
)
async def test_a_megabyte_of_mistakes_is_refused_quickly(
    make_house: MakeHouse, bomb: dict[str, object]
) -> None:
    house = make_house()
    await house.load()
    async with house.client() as client:
        with CpuMeter() as meter:
            assert_openai_error(await client.post(URL, json=ask(**bomb)), 400, None)
    assert meter.units < 100, "it holds up everyone for so long"


async def test_an_answer_is_sent_at_once_on_a_connection_that_stays(make_house: MakeHouse) -> None:
    """And not after the 40 ms in which clients confirm what came before."""
    async with make_house().serving() as url, httpx.AsyncClient(base_url=url) as client:
        times = []
        for _ in range(60):
            begun = time.perf_counter()
            await client.get("/health/live")
            times.append(time.perf_counter() - begun)
    assert min(times[20:]) < 0.03, "no answer at all was sent at once"
