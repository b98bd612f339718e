"""Chunks on their way into the socket: which of them share a write, and that nobody can tell."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import httpx
import pytest

from api.engine.delta import Delta
from api.http import write_queue
from tests.support.api import URL, FakeEngine, House, ask, eventually, streamed_request

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
WORDS = [f" {number}" for number in range(200)]
DELTAS = [*(Delta(word, 1, None) for word in WORDS), Delta("", 1, "length")]


class YieldingEngine(FakeEngine):
    """All other tasks have their turn before each delta, as behind vLLM's own."""

    async def generate(self, *args: Any, **options: Any) -> AsyncIterator[Delta]:
        async for delta in super().generate(*args, **options):
            await asyncio.sleep(0)
            yield delta


class Reader(asyncio.Protocol):
    """Keeps what it has got, piece by piece."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self.ended = False

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.ended = True


async def read_stream(url: str, version: str = "1.1") -> bytes:
    loop = asyncio.get_running_loop()
    transport, reader = await loop.create_connection(Reader, "127.0.0.1", httpx.URL(url).port or 0)
    transport.write(streamed_request(version))
    await eventually(lambda: reader.ended or b"".join(reader.pieces).endswith(b"0\r\n\r\n"))
    transport.close()
    return b"".join(reader.pieces)


@pytest.fixture
def writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many chunks each write took along."""
    counted: list[int] = []
    write = write_queue.ChunkWriter.write

    def counting(self: write_queue.ChunkWriter) -> None:
        if self._chunks:
            counted.append(len(self._chunks))
        write(self)

    monkeypatch.setattr(write_queue.ChunkWriter, "write", counting)
    return counted


async def test_a_chunk_that_comes_alone_leaves_before_the_next_one(
    make_house: MakeHouse, writes: list[int]
) -> None:
    house = make_house(FakeEngine(DELTAS, hold_before=1))
    async with house.serving() as url, httpx.AsyncClient(base_url=url) as client:
        async with client.stream("POST", URL, json=ask(stream=True)) as answer:
            events = answer.aiter_lines()
            assert WORDS[0] in await anext(events)
            house.engine.release.set()
            assert "[DONE]" in [line async for line in events][-2]
    assert writes[0] == 1


async def test_chunks_that_come_sooner_than_they_can_be_written_share_a_write(
    make_house: MakeHouse, writes: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """And every token keeps its own event and chunk, byte for byte."""
    house = make_house(YieldingEngine(DELTAS))
    async with house.serving() as url:
        monkeypatch.setattr(write_queue, "PAUSE_S", 0.0)
        apart = await read_stream(url)
        assert max(writes) < 5
        writes.clear()
        monkeypatch.setattr(write_queue, "PAUSE_S", 0.5)
        together = await read_stream(url)
        assert max(writes) > 20
    assert _without_ids(apart) == _without_ids(together)
    assert together.count(b"data: ") == len(WORDS) + 2


async def test_a_client_that_knows_no_chunks_gets_the_same_events(make_house: MakeHouse) -> None:
    async with make_house(YieldingEngine(DELTAS)).serving() as url:
        answer = await read_stream(url, "1.0")
    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"chunked" not in head.lower()
    assert body.startswith(b"data: ") and body.endswith(b"data: [DONE]\n\n")
    assert body.count(b"data: ") == len(WORDS) + 2


def _without_ids(answer: bytes) -> list[bytes]:
    lines = answer.partition(b"\r\n\r\n")[2].split(b"\n")
    return [line.partition(b'"choices"')[2] if b'"choices"' in line else line for line in lines]
