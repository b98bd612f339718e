"""Many requests at once: each is on its way before all are read, whole, in order, and none is lost."""

import asyncio
from collections.abc import Callable

import httpx
import orjson
import pytest
from uvicorn.protocols.http.h11_impl import H11Protocol

from api.http.connection import Connection
from tests.support import PATIENCE_S
from tests.support.api import URL, House, ask, streamed_request

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened: `read` for a part of a request, `begun` for one that the application has."""
    found: list[str] = []
    read, answer = H11Protocol.data_received, Connection._answer

    def reading(self: Connection, data: bytes) -> None:
        found.append("read")
        read(self, data)

    async def answering(self: Connection, *arguments: object) -> None:
        found.append("begun")
        await answer(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(H11Protocol, "data_received", reading)
    monkeypatch.setattr(Connection, "_answer", answering)
    return found


async def connections(url: str, count: int) -> list[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    return [await asyncio.open_connection("127.0.0.1", httpx.URL(url).port) for _ in range(count)]


async def test_the_first_of_many_is_begun_before_the_others_are_read(
    make_house: MakeHouse, steps: list[str]
) -> None:
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        clients = await connections(url, 40)
        steps.clear()
        for _, writer in clients:
            writer.write(LIVE)
        for reader, writer in clients:
            assert b" 200 " in await reader.readline()
            writer.close()
    assert steps.count("read") == steps.count("begun") == 40
    waiting = [steps[: i + 1].count("read") - steps[: i + 1].count("begun") for i in range(80)]
    assert max(waiting) <= 3


async def test_bodies_in_many_pieces_arrive_whole(make_house: MakeHouse) -> None:
    text = "word " * 100_000
    body = orjson.dumps(ask(messages=[{"role": "user", "content": text}], max_tokens=1))
    head = f"POST {URL} HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
    request = f"{head}content-length: {len(body)}\r\n\r\n".encode() + body
    house = make_house()
    async with house.serving() as url, asyncio.timeout(PATIENCE_S):
        clients = await connections(url, 10)
        for start in range(0, len(request), 30_000):
            for _, writer in clients:
                writer.write(request[start : start + 30_000])
            await asyncio.sleep(0)
        for reader, writer in clients:
            assert b" 400 " in await reader.readline()
            assert b"context_length_exceeded" in await reader.readuntil(b"}}")
            writer.close()


async def test_who_hangs_up_before_being_read_is_forgotten_and_the_next_served(
    make_house: MakeHouse, steps: list[str]
) -> None:
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        clients = await connections(url, 20)
        steps.clear()
        for number, (_, writer) in enumerate(clients):
            writer.write(LIVE)
            if number % 2:
                writer.transport.abort()
        for reader, writer in clients[::2]:
            assert b" 200 " in await reader.readline()
            writer.close()
        assert steps.count("begun") >= 10


async def test_two_requests_behind_each_other_are_answered_in_order(make_house: MakeHouse) -> None:
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        clients = await connections(url, 10)
        for _, writer in clients:
            writer.write(LIVE + streamed_request())
            await asyncio.sleep(0)
            writer.write(LIVE)
        for reader, writer in clients:
            assert b'{"status":' in await reader.readuntil(b"}")
            assert b"text/event-stream" in await reader.readuntil(b"data: [DONE]")
            assert b'{"status":' in await reader.readuntil(b"}")
            writer.close()
