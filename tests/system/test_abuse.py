"""A service that is open to everyone: what clients do to it, by mistake or not, and what it must do then.

Real engine, real model, one service for all tests; the last of them kills it.
"""

import asyncio
import contextlib
import gzip
import json
import os
import signal
import socket
import sqlite3
import statistics
import struct
import time
from typing import Any

import pytest

from bench.load import (
    CHAT,
    Answer,
    Connection,
    Service,
    ask,
    cpu_s,
    descendants,
    events,
    memory_mib,
    open_files,
)
from tests.support import PATIENCE_S
from tests.support.pace import cpu_s_of_fixed_work
from tests.support.system import BEARER, KEY, chat, post, wait_until

pytestmark = pytest.mark.usefixtures("unharmed")


SLOWED = 10
"""Times an answer may take longer with bad clients around: noise on a busy machine, not a wait for them."""


async def latencies(service: Service, count: int = 8) -> float:
    """Median seconds of a short answer, one at a time."""
    times = []
    for _ in range(count):
        answer = await ask(service.port, chat(service), BEARER)
        assert answer.status == 200
        times.append(answer.seconds)
    return statistics.median(times)


# Bombs

BOMBS = {
    "a long header": (b"GET /health/live HTTP/1.1\r\nhost: x\r\nx-a: ", b"a" * 2**16),
    "many headers": (b"GET /health/live HTTP/1.1\r\nhost: x\r\n", b"x-a: b\r\n" * 2**13),
    "a long address": (b"GET /", b"a" * 2**16),
    "no HTTP": (b"\x16\x03\x01\x02\x00", b"\x00" * 2**16),
    "a long body": (
        f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
        "content-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n".encode(),
        b"10000\r\n" + b"[" * 2**16 + b"\r\n",
    ),
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_does_not_end_is_cut_short(service: Service, name: str) -> None:
    start, more = BOMBS[name]
    before, begun = memory_mib(service.pid), time.monotonic()
    with socket.create_connection(("127.0.0.1", service.port), PATIENCE_S) as client:
        with pytest.raises(ConnectionError):  # or it kept reading
            client.sendall(start)
            while time.monotonic() - begun < PATIENCE_S:
                client.sendall(more)
    assert memory_mib(service.pid) < before + 32


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"[" * 1_000_000, 400),
        (b'{"model":' + b"9" * 1_000_000 + b"}", 400),
        (b'{"model":' * 100_000 + b"1" + b"}" * 100_000, 400),
        (b'{"messages":[{"content":[' + b",".join([b"{}"] * 300_000) + b"]}]}", 400),
        (b"\xff\xfe" * 400_000, 400),
        (b'{"model":"\\ud800"}', 400),
        (b'{"model":NaN}', 400),
        (b"\x1f\x8b\x08" + b"\0" * 100_000, 400),
        (b"", 400),
    ],
    ids=["brackets", "digits", "depth", "mistakes", "bytes", "surrogate", "nan", "gzip", "nothing"],
)
def test_a_bad_body_is_refused_at_once(service: Service, body: bytes, status: int) -> None:
    before = cpu_s(service.pid)
    answer = asyncio.run(ask(service.port, body, BEARER))
    assert (answer.status, answer.json["error"]["type"]) == (status, "invalid_request_error")
    assert (cpu_s(service.pid) - before) / cpu_s_of_fixed_work() < 100


def test_a_body_that_becomes_too_large_is_refused_at_once(service: Service) -> None:
    bomb = gzip.compress(b" " * 2**27)
    cpu, memory = cpu_s(service.pid), memory_mib(service.pid)
    answer = asyncio.run(ask(service.port, bomb, {**BEARER, "content-encoding": "gzip"}))
    assert (answer.status, answer.code) == (413, "request_too_large")
    assert (cpu_s(service.pid) - cpu) / cpu_s_of_fixed_work() < 100
    assert memory_mib(service.pid) < memory + 32


@pytest.mark.parametrize("text", ["a ", "<|im_end|>", "\u0301"], ids=["words", "control tokens", "marks"])
def test_a_text_that_is_too_long_holds_up_nobody(service: Service, text: str) -> None:
    content = text * (1_000_000 // len(text.encode()))
    body = json.dumps({"model": service.model, "messages": [{"role": "user", "content": content}]},
                      ensure_ascii=False).encode()  # fmt: skip

    async def send() -> None:
        answer = await ask(service.port, body, BEARER)
        assert (answer.status, answer.code) == (400, "context_length_exceeded")

    async def count_others() -> int:
        answered = 0
        sending = asyncio.create_task(send())
        while not sending.done():
            async with Connection.to(service.port) as connection:
                answered += (await connection.ask("GET", "/health/live")).status == 200
        await sending
        return answered

    assert asyncio.run(count_others()) > 5, "others are answered meanwhile"


# Clients that are slow, half there, or gone


def test_half_open_connections_do_not_keep_others_out_and_are_closed(service: Service) -> None:
    begun = [b"", b"POST ", b"GET /health/live HTTP/1.1\r\nhost: x\r\n"]

    before, alone_s = open_files(service.pid), asyncio.run(latencies(service))
    with contextlib.ExitStack() as clients:
        for number in range(1000):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            client.sendall(begun[number % 3])
        opened = time.monotonic()
        while open_files(service.pid) < before + 900:
            assert time.monotonic() - opened < PATIENCE_S, "they are not let in"
            time.sleep(0.05)
        assert asyncio.run(latencies(service)) < SLOWED * alone_s
        while open_files(service.pid) > before + 10:
            assert time.monotonic() - opened < PATIENCE_S, "they stay open"  # HEAD_TIMEOUT_S is 10
            time.sleep(0.2)


def test_who_reads_a_byte_a_second_slows_nobody_down(service: Service) -> None:
    """Nor holds a place: the answer is given to the system, and its reader is no concern of the engine's."""
    alone_s = asyncio.run(latencies(service))
    body = chat(service, max_tokens=40, stream=True)
    head = f"POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\n"
    head += f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    with contextlib.ExitStack() as clients:
        slow = []
        for _ in range(16):
            client = clients.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
            client.connect(("127.0.0.1", service.port))
            client.sendall(head.encode() + body)
            slow.append(client)
        deadline = time.monotonic() + 2 * PATIENCE_S
        while service.metric("finechat_requests_in_progress", BEARER):
            assert time.monotonic() < deadline, "the answers wait for their readers"
            for client in slow:
                client.recv(1)
            time.sleep(1)
        assert asyncio.run(latencies(service)) < SLOWED * alone_s


def test_a_thousand_clients_that_vanish_leave_nothing_behind(
    service: Service, capsys: pytest.CaptureFixture[str]
) -> None:
    body = chat(service, max_tokens=1000, stream=True)
    gate = asyncio.Semaphore(100)
    before = memory_mib(service.pid)

    async def vanish(number: int) -> None:
        async with gate, Connection.to(service.port) as connection:
            await connection.send("POST", CHAT, body, BEARER)
            if number % 2:  # these have had a token, the others are gone while they wait
                answer = await connection.head()
                assert answer.status == 200
                await anext(connection.pieces(answer))
            # With no time to linger the connection is reset and not closed.
            own = connection.writer.get_extra_info("socket")
            own.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))

    async def run() -> None:
        await asyncio.gather(*(vanish(number) for number in range(1000)))

    begun = time.monotonic()
    asyncio.run(run())
    took = time.monotonic() - begun
    wait_until(lambda: not service.metric("finechat_requests_in_progress", BEARER))
    assert _idle_second(service, time.monotonic() + PATIENCE_S), "the engine works for nobody"
    after = memory_mib(service.pid)
    with capsys.disabled():
        print(
            f"\n1,000 vanished in {took:.0f} s; the API's memory: {before:.0f} MiB before, {after:.0f} after"
        )
    assert after < before + 64


def _idle_second(service: Service, deadline: float) -> bool:
    """Whether vLLM does nothing for a second before the deadline."""
    while time.monotonic() < deadline:
        worked = sum(map(cpu_s, service.engine()))
        time.sleep(1)
        if sum(map(cpu_s, service.engine())) - worked < 0.3:
            return True
    return False


# Many at once


def test_two_hundred_streams_lose_no_token(service: Service) -> None:
    """Eight run, the others wait. bench/endurance.py does it with 500 prompts."""
    from bench.streams import compare_streams

    found = asyncio.run(compare_streams(service, BEARER, prompts=60, streams=60, tokens=16))
    assert found["lost_or_duplicated"] == 0, found
    assert found["equal"] + found["ties"] == 60


# The end of things


def test_a_killed_engine_under_load_ends_every_stream_with_an_error(service: Service) -> None:
    body = chat(service, max_tokens=1500, stream=True, logit_bias={"2": -100})

    async def one() -> Answer:
        return await ask(service.port, body, BEARER)

    async def run() -> list[Answer]:
        before = first_tokens(service)
        asked = [asyncio.create_task(one()) for _ in range(60)]
        await eight_have_had_tokens(service, before)
        os.kill(service.engine_core(), signal.SIGKILL)
        async with asyncio.timeout(PATIENCE_S):  # or some streams never end
            return await asyncio.gather(*asked)

    answers = asyncio.run(run())
    streams = [answer for answer in answers if answer.status == 200]
    assert len(streams) == 8
    for answer in streams:
        assert answer.body.split(b"\n\n")[-2].startswith(b'data: {"error":'), answer.body[-200:]
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.code, bool(answer.headers["retry-after"])) == (
                503, "engine_failed", True,
            )  # fmt: skip
    wait_until(service.is_ready, 3 * PATIENCE_S)


def first_tokens(service: Service) -> float:
    return service.metric("finechat_time_to_first_token_seconds_count", BEARER)


async def eight_have_had_tokens(service: Service, before: float) -> None:
    while await asyncio.to_thread(first_tokens, service) < before + 8:
        await asyncio.sleep(0.05)
    await asyncio.sleep(0.5)  # and the tokens have been sent


def test_a_killed_service_leaves_no_process_and_no_lost_account(service: Service) -> None:
    """Under load; and the next one serves on the same port."""
    database = service.settings["API_USAGE_FILE"]
    done = post(service, stream=True)
    assert events(done.body)
    counted = _usage(database)

    async def run() -> list[Any]:
        body = chat(service, max_tokens=1500, stream=True, logit_bias={"2": -100})
        before = first_tokens(service)
        asked = [asyncio.create_task(ask(service.port, body, BEARER)) for _ in range(20)]
        await eight_have_had_tokens(service, before)
        own = descendants(service.pid)
        os.kill(service.pid, signal.SIGKILL)
        assert service.process
        service.process.wait()
        deadline = time.monotonic() + PATIENCE_S
        while any(os.path.exists(f"/proc/{pid}") for pid in own):
            assert time.monotonic() < deadline, "processes outlived the service"
            await asyncio.sleep(0.05)
        return await asyncio.gather(*asked, return_exceptions=True)

    assert all(not isinstance(one, Answer) for one in asyncio.run(run())), "cut off, and not silently ended"
    assert _usage(database) >= counted
    service.start()


def _usage(file: str) -> int:
    with contextlib.closing(sqlite3.connect(file)) as database:
        [(requests,)] = database.execute("SELECT sum(requests) FROM usage").fetchall()
    return int(requests)
