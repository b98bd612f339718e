"""Two replicas of the real model and one Redis: new weights, a killed replica, a Redis that goes away."""

import asyncio
import contextlib
import json
import re
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from bench.load import CHAT, PYTHON, Connection, Service
from bench.redis_server import SERVER, RedisServer, redis_server
from tests.support import ROOT
from tests.support.system import Up, wait_until

pytestmark = pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one")
CLIENTS, AT_ONCE = 6, 4


@pytest.fixture
def redis(tmp_path: Path) -> Iterator[RedisServer]:
    with redis_server(tmp_path) as server:
        yield server


@pytest.fixture
def replicas(tmp_path: Path, first_up: Up, redis: RedisServer) -> Iterator[list[Service]]:
    shutil.copytree(first_up.artifacts / "models", tmp_path / "artifacts" / "models", symlinks=True)
    settings = {"API_REDIS_URL": redis.url, "API_MAX_NUM_SEQS": "8", "API_KV_CACHE_GIB": "0.25"}
    services = [Service(tmp_path / "artifacts", tmp_path / f"{name}.log", settings) for name in "ab"]
    try:
        for service in services:
            service.start()
        yield services
    finally:
        for service in services:
            service.stop()


def api(redis: RedisServer, *arguments: str) -> str:
    command = [str(PYTHON), "-m", "api", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={"API_REDIS_URL": redis.url}, capture_output=True, text=True, check=True
    ).stdout.strip()


@dataclass
class Load:
    """Clients of one key that ask on and on: the next replica, and the other if that refuses or is gone.

    cut: streams that ended without their end. let_in: when requests were sent that were answered.
    """

    ports: list[int]
    model: str
    secret: str
    outcomes: Counter[str] = field(default_factory=Counter)
    let_in: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    completion_tokens: int = 0
    running: int = 0
    most_running: int = 0
    over: bool = False

    @contextlib.asynccontextmanager
    async def going_on(self) -> Any:
        clients = [asyncio.create_task(self._client(number)) for number in range(CLIENTS)]
        try:
            yield
        finally:
            self.over = True
            await asyncio.gather(*clients)

    async def _client(self, number: int) -> None:
        turn = number
        while not self.over:
            turn += 1
            ports = [self.ports[(turn + i) % len(self.ports)] for i in range(len(self.ports))]
            outcome = "nobody there"
            for port in ports:
                with contextlib.suppress(ConnectionError, IndexError):  # gone, before it has answered
                    outcome = await self._ask(port, turn)
                    if outcome not in ("not_ready", "engine_failed"):
                        break
            self.outcomes[outcome] += 1
            if outcome != "done":
                await asyncio.sleep(0.2)

    async def _ask(self, port: int, number: int) -> str:
        body = {
            "model": self.model, "stream": True, "stream_options": {"include_usage": True}, "max_tokens": 12,
            "messages": [{"role": "user", "content": f"Count from {number}."}],
        }  # fmt: skip
        async with Connection.to(port) as connection:
            headers = {"authorization": f"Bearer {self.secret}"}
            sent = time.monotonic()
            await connection.send("POST", CHAT, json.dumps(body).encode(), headers)
            answer = await connection.head()
            if answer.status != 200:
                text = b"".join([piece async for piece in connection.pieces(answer)])
                return str(json.loads(text)["error"]["code"])
            self.let_in.append(sent)
            self.running += 1
            self.most_running = max(self.most_running, self.running)
            text = b""
            try:
                async for piece in connection.pieces(answer):
                    text += piece
            except (OSError, ValueError, asyncio.IncompleteReadError):
                return "cut"
            finally:
                self.running -= 1
        return self._count(text)

    def _count(self, text: bytes) -> str:
        lines = [line[6:] for line in text.splitlines() if line.startswith(b"data: ")]
        if lines[-1] != b"[DONE]":
            return str(json.loads(lines[-1])["error"]["code"])
        usage = json.loads(lines[-2])["usage"]
        self.prompt_tokens += usage["prompt_tokens"]
        self.completion_tokens += usage["completion_tokens"]
        return "done"


def swap(artifacts: Path) -> str:
    """The same weights under another id, made current."""
    models = artifacts / "models"
    old = (models / "current").resolve()
    new = models / f"{old.name}-again"
    shutil.copytree(old, new)
    manifest = json.loads((new / "manifest.json").read_text())
    (new / "manifest.json").write_text(json.dumps(manifest | {"id": new.name}))
    (models / "current.new").symlink_to(new.name)
    (models / "current.new").replace(models / "current")
    return new.name


async def more(load: Load, answers: int, timeout_s: float = 60) -> None:
    wanted = load.outcomes["done"] + answers
    async with asyncio.timeout(timeout_s):
        while load.outcomes["done"] < wanted:
            await asyncio.sleep(0.1)


def swapped(service: Service) -> bool:
    return "event=swapped" in service.log.read_text()


def test_nothing_is_lost_over_or_counted_twice_whatever_goes_away(
    replicas: list[Service], redis: RedisServer
) -> None:
    first, second = replicas
    secret = api(
        redis, "keys", "create", "ann", "--answers-at-once", str(AT_ONCE), "--tokens-per-minute", "1000000"
    )
    load = Load([first.port, second.port], first.model, secret)

    async def story() -> dict[str, Counter[str]]:
        found = {}
        async with load.going_on():
            await more(load, 10)
            swap(first.artifacts)
            await asyncio.to_thread(wait_until, lambda: swapped(first) and swapped(second), 180)
            await more(load, 10)
            found["swapped"] = load.outcomes.copy()

            second.process.kill()  # type: ignore[union-attr]
            await more(load, 10)
            found["killed"] = load.outcomes - found["swapped"]

            redis.kill()
            gone = time.monotonic()
            await asyncio.sleep(4)
            assert not [moment for moment in load.let_in if moment > gone], "let in without Redis"
            redis.start()
            await more(load, 10)
            found["back"] = load.outcomes - found["swapped"] - found["killed"]
        return found

    with ThreadPoolExecutor(1) as thread:  # Playwright's loop may run in this one
        found = thread.submit(asyncio.run, story()).result()
    refused = {"rate_limit_exceeded"}  # the key's own limit
    assert set(found["swapped"]) <= {"done", *refused}, "new weights on both replicas cost nobody an answer"
    assert set(found["killed"]) <= {"done", "cut", *refused}
    assert found["killed"]["cut"] <= AT_ONCE, "only what ran at the replica that was killed"
    assert set(found["back"]) <= {"done", "limits_unavailable", *refused}
    assert found["back"]["limits_unavailable"] > 0
    assert load.most_running <= AT_ONCE
    wait_until(lambda: f"requests={load.outcomes['done']} " in api(redis, "usage"), 10)
    assert api(redis, "usage").endswith(
        f"ann  requests={load.outcomes['done']} prompt_tokens={load.prompt_tokens} "
        f"completion_tokens={load.completion_tokens}"
    )
    events = re.findall("event=redis_(gone|reached)", first.log.read_text())
    assert events[0] == events[-1] == "reached" and "gone" in events
    assert all(one != next for one, next in pairwise(events)), "every loss ends with one return"
