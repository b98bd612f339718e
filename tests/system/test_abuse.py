"""A service that is open to everyone: what clients do to it, by mistake or not, and what it must do then.

Real engine, real model, one service for all tests; the last of them kills it.
"""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import statistics
import struct
import time
from collections.abc import Iterator
from pathlib import Path
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
from conftest import KEY

BEARER = {"authorization": f"Bearer {KEY}"}


def chat(service: Service, **fields: Any) -> bytes:
    """A good request, with `fields` instead of or beside its own."""
    messages = [{"role": "user", "content": "Name a color."}]
    good = {"model": service.model, "messages": messages, "temperature": 0, "max_tokens": 4}
    return json.dumps(good | fields).encode()


def post(service: Service, **fields: Any) -> Answer:
    return asyncio.run(ask(service.port, chat(service, **fields), BEARER))


@pytest.fixture(autouse=True)
def unharmed(service: Service) -> Iterator[None]:
    """Afterwards it is ready, nothing runs in it, and it answers."""
    yield
    assert service.is_ready()
    deadline = time.monotonic() + 10
    while service.metric("finechat_requests_in_progress", BEARER):
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.1)
    assert service.metric("finechat_active_streams", BEARER) == 0
    assert post(service).status == 200


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
    with socket.create_connection(("127.0.0.1", service.port), 10) as client:
        with contextlib.suppress(ConnectionError):
            client.sendall(start)
            while time.monotonic() - begun < 10:
                client.sendall(more)
    assert time.monotonic() - begun < 5, "it went on reading"
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
    answer = asyncio.run(ask(service.port, body, BEARER))
    assert (answer.status, answer.json["error"]["type"]) == (status, "invalid_request_error")
    assert answer.seconds < 2


@pytest.mark.parametrize("text", ["a ", "<|im_end|>", "\u0301"], ids=["words", "control tokens", "marks"])
def test_a_text_that_is_too_long_holds_up_nobody(service: Service, text: str) -> None:
    content = text * (1_000_000 // len(text.encode()))
    body = json.dumps({"model": service.model, "messages": [{"role": "user", "content": content}]},
                      ensure_ascii=False).encode()  # fmt: skip

    async def send() -> None:
        answer = await ask(service.port, body, BEARER)
        assert (answer.status, answer.code) == (400, "context_length_exceeded")

    async def look() -> float:
        worst = 0.0
        sending = asyncio.create_task(send())
        while not sending.done():
            async with Connection.to(service.port) as connection:
                worst = max(worst, (await connection.ask("GET", "/health/live")).seconds)
        await sending
        return worst

    assert asyncio.run(look()) < 1


# Clients that are slow, half there, or gone


def test_half_open_connections_do_not_keep_others_out_and_are_closed(service: Service) -> None:
    begun = [b"", b"POST ", b"GET /health/live HTTP/1.1\r\nhost: x\r\n"]

    before = open_files(service.pid)
    with contextlib.ExitStack() as clients:
        for number in range(1000):
            client = clients.enter_context(socket.create_connection(("127.0.0.1", service.port)))
            client.sendall(begun[number % 3])
        opened = time.monotonic()
        assert open_files(service.pid) > before + 900
        assert asyncio.run(latencies(service)) < 2
        while open_files(service.pid) > before + 10:
            assert time.monotonic() - opened < 15, "they stay open"  # HEAD_TIMEOUT_S is 10
            time.sleep(0.2)


def test_who_reads_a_byte_a_second_slows_nobody_down(service: Service) -> None:
    """Nor holds a place: the answer is given to the system, and its reader is no concern of the engine's."""
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
        deadline = time.monotonic() + 60
        while service.metric("finechat_requests_in_progress", BEARER):
            assert time.monotonic() < deadline, "the answers wait for their readers"
            for client in slow:
                client.recv(1)
            time.sleep(1)
        assert asyncio.run(latencies(service)) < 2


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
    deadline = time.monotonic() + 10
    while service.metric("finechat_requests_in_progress", BEARER):
        assert time.monotonic() < deadline, "something still runs"
        time.sleep(0.1)
    worked = sum(map(cpu_s, service.engine()))
    time.sleep(1)
    assert sum(map(cpu_s, service.engine())) - worked < 0.3, "the engine works for nobody"
    after = memory_mib(service.pid)
    with capsys.disabled():
        print(
            f"\n1,000 vanished in {took:.0f} s; the API's memory: {before:.0f} MiB before, {after:.0f} after"
        )
    assert after < before + 64


# Many at once


def test_two_hundred_streams_lose_no_token(service: Service) -> None:
    """Eight run, the others wait. bench/endurance.py does it with 500 prompts."""
    from bench.endurance import compare_streams

    told = asyncio.run(compare_streams(service, BEARER, prompts=60, streams=60, tokens=16))
    assert told["lost_or_duplicated"] == 0
    assert told["equal"] + told["ties"] == 60


# The advisories of ../shared/notes/serving.md, section 5


SCHEMA_BOMB: Any = {"type": "string"}
for _ in range(200):
    SCHEMA_BOMB = {"type": "object", "properties": {"a": SCHEMA_BOMB}}
ENDLESS = "{% for i in range(10 ** 9) %}{% for j in range(10 ** 9) %}{% endfor %}{% endfor %}"
PARTS = {
    "image": {"type": "image_url", "image_url": {"url": "http://127.0.0.1:1/secret.png"}},
    "video": {"type": "video_url", "video_url": {"url": "file:///etc/passwd"}},
    "audio": {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}},
}


def user(content: Any) -> list[dict[str, Any]]:
    return [{"role": "user", "content": content}]


FIELDS: dict[str, dict[str, Any]] = {
    "CVE-2026-34756 n": {"n": 16_384},
    "CVE-2026-34756 huge n": {"n": 10**18},
    "CVE-2025-62426 chat_template_kwargs": {"chat_template_kwargs": {"tokenize": True}},
    "CVE-2026-115911 endless template": {"chat_template": ENDLESS},
    "CVE-2026-105757 deep schema": {
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA_BOMB}}
    },
    "CVE-2026-105757 grammar": {"guided_grammar": 'root ::= root "a"'},
    "CVE-2026-105757 structured_outputs": {"structured_outputs": {"regex": "("}},
    "CVE-2026-55574 regex": {"guided_regex": "(a|aa)+$"},
    "CVE-2026-93989 bad_words": {"bad_words": ["", "a"]},
    "GHSA-fpch-3xrf-7q96 thinking_token_budget": {"thinking_token_budget": 1},
    "CVE-2026-114051 min_tokens": {"min_tokens": 10**6},
    "CVE-2026-73557 prompt_embeds": {"prompt_embeds": "gASVAAAA"},
    "CVE-2025-6242 media": {"messages": user([PARTS["image"]])},
    "CVE-2025-6242 file": {"messages": user([PARTS["video"]])},
    "CVE-2026-115912 handle": {"messages": user([PARTS["audio"]]), "mm_processor_kwargs": {"shm": "x"}},
    "control: request_id": {"request_id": "probe"},
    "control: priority": {"priority": -1},
    "control: vllm_xargs": {"vllm_xargs": {"a": 1}},
    "control: kv_transfer_params": {"kv_transfer_params": {"do_remote_prefill": True}},
    "control: cache_salt": {"cache_salt": "another's"},
    "control: ignore_eos": {"ignore_eos": True},
    "control: beam search": {"use_beam_search": True},
    "control: prompt_logprobs": {"prompt_logprobs": 20},
    "control: add_generation_prompt": {"add_generation_prompt": False},
    "control: top_logprobs": {"logprobs": True, "top_logprobs": 10**6},
    "control: many biases": {"logit_bias": {str(number): 1 for number in range(301)}},
    "control: bias of no token": {"logit_bias": {"999999": 1}},
    "control: many stops": {"stop": ["a"] * 5},
    "control: long stop": {"stop": "a" * 257},
    "control: many stop ids": {"stop_token_ids": [1] * 17},
    "control: infinite temperature": {"temperature": 1e308},
}


@pytest.mark.parametrize("name", FIELDS)
def test_advisory_a_dangerous_field_is_refused_by_its_name(service: Service, name: str) -> None:
    answer = post(service, **FIELDS[name])
    assert answer.status == 400 and answer.json["error"]["type"] == "invalid_request_error"
    named = [*FIELDS[name], *(field for value in FIELDS[name].values() for field in _names(value))]
    assert any(field in json.dumps(answer.json["error"]) for field in named)
    assert answer.seconds < 5


@pytest.mark.parametrize("pattern", ["((a|aa)+)+$", "(a{1,1000}){1,1000}", "(?=a)*", "("])
def test_advisory_cve_2026_55574_a_pattern_costs_its_sender_at_most_an_answer(
    service: Service, pattern: str
) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    told = {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}}
    answer = post(service, response_format=told)
    assert answer.status in (200, 400) and answer.seconds < 10


def _names(value: Any) -> list[str]:
    return ["schema"] if "json_schema" in str(value) else []


@pytest.mark.parametrize(
    "prompt",
    [["a"] * 1025, [[1]] * 1025, [["a"]], [[]], "", [10**9], [-1], {"prompt_embeds": "x"}],
    ids=["texts", "token lists", "nested", "empty list", "empty", "unknown id", "negative", "embeddings"],
)
def test_advisory_cve_2026_73559_lists_of_prompts_are_bounded(service: Service, prompt: Any) -> None:
    body = json.dumps({"model": service.model, "prompt": prompt, "max_tokens": 1}).encode()
    answer = asyncio.run(ask(service.port, body, BEARER, "/v1/completions"))
    if prompt == "" and answer.status == 200:
        return  # a tokenizer that begins a text with a token of its own makes one of nothing
    assert answer.status == 400 and answer.json["error"]["param"].startswith("prompt")


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/completions", "/v1/embeddings", "/v1/messages"])
def test_advisory_cve_2026_115918_no_other_route_takes_a_template(service: Service, path: str) -> None:
    body = {"model": service.model, "input": "Hi", "prompt": "Hi", "messages": user("Hi"), "max_tokens": 1,
            "chat_template": ENDLESS}  # fmt: skip
    answer = asyncio.run(ask(service.port, json.dumps(body).encode(), BEARER, path))
    assert answer.status in (400, 404)


@pytest.mark.parametrize(
    "target",
    ["/v1/models", "//v1/models", "/v1/models?/health/live", "/health/live/../../v1/models", "/metrics",
     "/health/live%2f..%2f..%2fv1/models", "/v1/%6dodels", "http://test/v1/models", "/openapi.json",
     "http://test/health/live/../v1/models", "/health/live;/v1/models", "/HEALTH/LIVE"],
)  # fmt: skip
@pytest.mark.parametrize("host", ["test", "test/health/live", "test/health/live?"])
def test_advisory_cve_2026_48746_no_address_opens_the_door(service: Service, target: str, host: str) -> None:
    async def run() -> Answer:
        async with Connection.to(service.port) as connection:
            return await connection.ask(
                "GET", target, headers={"host": host, "x-original-url": "/health/live"}
            )

    assert asyncio.run(run()).status in (400, 401)


@pytest.mark.parametrize(
    "path",
    ["/invocations", "/tokenize", "/detokenize", "/inference/v1/generate", "/generate", "/scale_elastic_ep",
     "/collective_rpc", "/v1/load_lora_adapter", "/pause", "/resume", "/sleep", "/reset_prefix_cache",
     "/update_weights", "/pooling", "/v1/score", "/docs", "/server_info", "/admin/usage", "/load"],
)  # fmt: skip
def test_advisory_the_engines_own_routes_do_not_exist(service: Service, path: str) -> None:
    assert asyncio.run(ask(service.port, chat(service), path=path)).status == 401
    assert asyncio.run(ask(service.port, chat(service), BEARER, path)).status == 404
    assert service.get(path, BEARER)[0] == 404


def test_advisory_cve_2025_30202_nothing_but_http_listens_outside_of_the_machine(service: Service) -> None:
    own = {service.pid, *descendants(service.pid)}
    sockets = set()
    for pid in own:
        for file in os.listdir(f"/proc/{pid}/fd"):
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(f"/proc/{pid}/fd/{file}"))
    open_to_all = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/{service.pid}/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            address, state, inode = fields[1], fields[3], fields[9]
            loopback = address.startswith(("0100007F:", "0" * 24 + "01000000:"))
            if state == "0A" and f"socket:[{inode}]" in sockets and not loopback:
                open_to_all.append(address)
    assert open_to_all == []


# The end of things


def test_a_killed_engine_under_load_is_told_to_everyone(service: Service) -> None:
    body = chat(service, max_tokens=1500, stream=True, logit_bias={"2": -100})

    async def one() -> Answer:
        return await ask(service.port, body, BEARER)

    async def run() -> tuple[list[Answer], float]:
        before = first_tokens(service)
        asked = [asyncio.create_task(one()) for _ in range(60)]
        await eight_have_had_tokens(service, before)
        os.kill(service.engine_core(), signal.SIGKILL)
        killed = time.monotonic()
        return await asyncio.gather(*asked), time.monotonic() - killed

    answers, seconds = asyncio.run(run())
    assert seconds < 3, "some were not told"
    streams = [answer for answer in answers if answer.status == 200]
    assert len(streams) == 8
    for answer in streams:
        assert answer.body.split(b"\n\n")[-2].startswith(b'data: {"error":'), answer.body[-200:]
    for answer in answers:
        if answer.status != 200:
            assert (answer.status, answer.code, bool(answer.headers["retry-after"])) == (
                503, "engine_failed", True,
            )  # fmt: skip
    begun = time.monotonic()
    while not service.is_ready():
        assert time.monotonic() - begun < 120, "not restarted"
        time.sleep(0.2)


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
        body = chat(service, max_tokens=1500, stream=True)
        before = first_tokens(service)
        asked = [asyncio.create_task(ask(service.port, body, BEARER)) for _ in range(20)]
        await eight_have_had_tokens(service, before)
        own = descendants(service.pid)
        os.kill(service.pid, signal.SIGKILL)
        assert service.process
        service.process.wait()
        deadline = time.monotonic() + 5
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
