"""Connections that wait for their next request: how long, and how many."""

import asyncio
import resource
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress

import httpx
import pytest

from api.engine.delta import Delta
from api.http import connection
from api.http.connection import Connection
from api.http.server import allow_many_files
from tests.support import PATIENCE_S
from tests.support.api import FakeEngine, House, eventually, streamed_request

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
Connect = Callable[[str], Awaitable["Client"]]
LIVE = b"GET /health/live HTTP/1.1\r\nhost: x\r\n\r\n"


class Client:
    """One connection, to send bytes over."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def is_answered(self) -> bool:
        """Ask, and return whether an answer came; False if the server has closed the connection."""
        self.writer.write(LIVE)
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return False
        [length] = [line for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
        await self.reader.readexactly(int(length.split()[1]))
        return head.startswith(b"HTTP/1.1 200 ")


@pytest.fixture
async def connect() -> AsyncIterator[Connect]:
    """Open connections, which end with the test."""
    clients: list[Client] = []

    async def connect(url: str) -> Client:
        clients.append(Client(*await asyncio.open_connection("127.0.0.1", httpx.URL(url).port)))
        return clients[-1]

    yield connect
    for client in clients:
        client.writer.close()
        with suppress(ConnectionError):
            await client.writer.wait_closed()


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The server's ends of the connections, in the order in which they came."""
    found: list[Connection] = []
    made = Connection.connection_made

    def remembered(self: Connection, transport: asyncio.Transport) -> None:
        found.append(self)
        made(self, transport)

    monkeypatch.setattr(Connection, "connection_made", remembered)
    return found


async def test_a_connection_waits_longer_than_a_reader_may(
    make_house: MakeHouse, connect: Connect, monkeypatch: pytest.MonkeyPatch, served: list[Connection]
) -> None:
    """Pools keep theirs for 60 to 90 s; the limits for slow clients are shorter and must not end it."""
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.1)
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        client = await connect(url)
        for _ in range(3):
            assert await client.is_answered()
            await asyncio.sleep(0.5)
        assert served[0].timeout_keep_alive == 75


async def test_a_connection_that_waits_too_long_is_closed(make_house: MakeHouse, connect: Connect) -> None:
    async with make_house(keep_alive_s=1).serving() as url, asyncio.timeout(PATIENCE_S):
        client = await connect(url)
        assert await client.is_answered()
        assert await client.reader.read() == b"", "it ends, and nothing more comes"


async def test_of_too_many_idle_connections_those_idle_longest_are_closed(
    make_house: MakeHouse, connect: Connect, served: list[Connection]
) -> None:
    async with make_house(max_idle_connections=3).serving() as url, asyncio.timeout(PATIENCE_S):
        clients = [await connect(url) for _ in range(5)]
        for client in clients[:3]:
            assert await client.is_answered()
        assert await clients[0].is_answered(), "now it has waited least"
        for client in clients[3:]:
            assert await client.is_answered()
        for client in (clients[1], clients[2]):
            assert await client.reader.read() == b""
        for client in (clients[0], clients[3], clients[4]):
            assert await client.is_answered()
        assert sum(not end.transport.is_closing() for end in served) == 3


async def test_a_connection_that_is_answered_is_not_idle(make_house: MakeHouse, connect: Connect) -> None:
    """Neither a stream nor a request that the server has not read yet is ended by other clients."""
    house = make_house(FakeEngine(hold_before=1), max_idle_connections=1)
    async with house.serving() as url, asyncio.timeout(PATIENCE_S):
        streaming, *others = [await connect(url) for _ in range(4)]
        assert await streaming.is_answered()
        streaming.writer.write(streamed_request())
        await eventually(lambda: bool(house.engine.calls))
        for other in others:
            assert await other.is_answered()
        house.engine.release.set()
        assert b"[DONE]" in await streaming.reader.readuntil(b"0\r\n\r\n")
        assert await streaming.is_answered()


async def test_a_flood_of_idle_connections_stays_within_the_limit(
    make_house: MakeHouse, connect: Connect, served: list[Connection]
) -> None:
    async with make_house(max_idle_connections=20).serving() as url, asyncio.timeout(PATIENCE_S):
        clients = [await connect(url) for _ in range(200)]
        assert all(await asyncio.gather(*(client.is_answered() for client in clients)))
        await eventually(lambda: sum(not end.transport.is_closing() for end in served) == 20)


async def test_who_begins_another_request_and_does_not_end_it_is_cut_off(
    make_house: MakeHouse, connect: Connect, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "HEAD_TIMEOUT_S", 0.3)
    async with make_house().serving() as url, asyncio.timeout(PATIENCE_S):
        client = await connect(url)
        assert await client.is_answered()
        client.writer.write(b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: ")
        with pytest.raises(ConnectionError):
            while True:  # a byte now and then buys no time
                client.writer.write(b"a")
                await client.writer.drain()
                await asyncio.sleep(0.05)


async def test_who_does_not_read_the_end_of_an_answer_is_cut_off(
    make_house: MakeHouse, connect: Connect, monkeypatch: pytest.MonkeyPatch, served: list[Connection]
) -> None:
    """Though the connection counts as idle: its answer is complete, and the rest of it waits here."""
    monkeypatch.setattr(connection, "READ_TIMEOUT_S", 0.3)
    house = make_house(FakeEngine([Delta("x" * 2**24, 1, "stop")]))
    async with house.serving() as url, asyncio.timeout(PATIENCE_S):
        client = await connect(url)
        client.writer.transport.pause_reading()  # type: ignore[attr-defined]
        client.writer.write(streamed_request().replace(b'"stream":true', b'"stream":null'))
        await eventually(lambda: bool(served) and served[0].transport.is_closing())


@pytest.mark.parametrize(
    ("soft", "hard", "allowed"),
    [
        (1024, 1024, 1024),
        (1024, 4096, 4096),
        (1024, resource.RLIM_INFINITY, 65_535),
        (2**20, 2**20, 65_535),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, 65_535),
    ],
)
async def test_what_the_system_allows_of_files_bounds_idle_connections(
    monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, allowed: int
) -> None:
    """The limit of the process is raised for it and never lowered."""
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    assert allow_many_files() == allow_many_files() == allowed
    assert limits[1:] in ([], [(allowed, hard)])


async def test_a_client_that_resets_its_connection_leaves_no_timer(
    make_house: MakeHouse, connect: Connect, served: list[Connection]
) -> None:
    async with make_house(max_idle_connections=1).serving() as url, asyncio.timeout(PATIENCE_S):
        client, other = await connect(url), await connect(url)
        assert await client.is_answered()
        client.writer.transport.abort()
        await eventually(lambda: served[0].timeout_keep_alive_task is None)
        assert served[0]._closing is None
        assert await other.is_answered() and await other.is_answered()
