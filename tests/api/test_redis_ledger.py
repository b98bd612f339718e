"""Replicas that share a real Redis: as if they were one, also when it is taken away."""

import asyncio
import hashlib
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.asyncio import Connection
from redis.exceptions import RedisError

from api.errors import LimitsUnavailable, RateLimited, Unauthorised
from api.ledger import redis as redis_ledger
from api.ledger import redis_link
from api.ledger.keys import NORMAL, Key, Limits
from api.ledger.redis import KEYS, USAGE, RedisLedger
from api.ledger.usage import today
from api.settings import Settings
from bench.load import ROOT
from bench.redis_server import SERVER, RedisServer, redis_server
from tests.support.api import URL, FakeEngine, House, ask, assert_openai_error, eventually
from tests.support.ledgers import Clock

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one"),
]
MakeHouse = Callable[..., House]
API_KEY = "the-one-from-outside"


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    for name, seconds in (("BEAT_S", 0.05), ("LEASE_S", 0.5), ("GRACE_S", 0.2)):
        monkeypatch.setattr(redis_ledger, name, seconds)
    monkeypatch.setattr(redis_link, "TIMEOUT_S", 0.6)
    with redis_server(tmp_path) as server:
        yield server


@dataclass
class Counted:
    ledger: RedisLedger
    clock: Clock
    sent: list[list[str]]


@asynccontextmanager
async def replica(redis: RedisServer, artifact: str = "a") -> AsyncIterator[RedisLedger]:
    ledger = RedisLedger(redis.url, API_KEY, lambda: artifact)
    ledger.start()
    try:
        await eventually(lambda: ledger._link.reachable)
        opens = client(redis).hget("finechat:gate", "from")
        await asyncio.sleep(max(0.0, float(opens) - time.time()))
        yield ledger
    finally:
        await ledger.close()


@asynccontextmanager
async def replicas(redis: RedisServer) -> AsyncIterator[tuple[RedisLedger, RedisLedger]]:
    async with replica(redis) as one, replica(redis) as other:
        yield one, other


def key(redis: RedisServer, name: str = "ann", **limits: int) -> Key:
    """Write a key of this name into Redis, or change its limits there."""
    digest = hashlib.sha256(name.encode()).hexdigest()
    key = Key(name=name, sha256=digest, created_at="", limits=Limits(**limits))
    client(redis).hset(KEYS, digest, key.model_dump_json())
    return key


async def refused(ledger: RedisLedger, key: Key, tokens: int = 1, answers: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as refusal:
        await ledger.admit(key, tokens, answers)
    return refusal.value


def client(redis: RedisServer) -> Any:
    return Redis.from_url(redis.url, decode_responses=True)


def used(redis: RedisServer, day: str | None = None) -> list[tuple[Any, ...]]:
    """What Redis holds for a day, or today: name, requests, tokens of prompts and of answers."""
    counts = client(redis).hgetall(f"{USAGE}{day or today()}")
    parts = ("requests", "prompt_tokens", "completion_tokens")
    names = sorted({field.partition(":")[0] for field in counts})
    return [(name, *(int(counts[f"{name}:{part}"]) for part in parts)) for name in names]


async def test_at_once_from_all_sides_exactly_the_limit_comes_in(redis: RedisServer) -> None:
    ann = key(redis, requests_per_minute=20)
    async with replicas(redis) as both:
        begun = time.monotonic()
        asked = (both[number % 2].admit(ann, 1, 1) for number in range(200))
        results = await asyncio.gather(*asked, return_exceptions=True)
        elapsed_s = time.monotonic() - begun
        refusals = [result for result in results if isinstance(result, RateLimited)]
        assert 180 - elapsed_s / 3 - 1 <= len(refusals) <= 180, "a request comes back every 3 s"
        assert refusals[0].headers["x-ratelimit-limit-requests"] == "20"
        assert refusals[0].headers["x-ratelimit-remaining-requests"] == "0"
        assert refusals[0].headers["retry-after"] in ("2", "3")


async def test_tokens_that_one_replica_gives_back_are_there_for_the_other(redis: RedisServer) -> None:
    ann = key(redis, tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        held = await one.admit(ann, 9000, 1)
        assert int(held.headers()["x-ratelimit-remaining-tokens"]) in range(1000, 1100)
        assert (await refused(other, ann, 5000)).headers["retry-after"]
        assert "retry-after" not in (await refused(other, ann, 10_001)).headers, "it would never fit"
        held.settle(100, 20)
        await eventually(lambda: bool(used(redis)))
        await other.admit(ann, 9000, 1)
        assert used(redis) == [("ann", 1, 100, 20)]


async def test_the_day_and_answers_at_once_are_everyones(redis: RedisServer) -> None:
    ann, bob = key(redis, tokens_per_day=100), key(redis, "bob", answers_at_once=2)
    async with replicas(redis) as (one, other):
        held = await one.admit(ann, 90, 1)
        await refused(other, ann, 11)
        held.settle(40, 0)
        await eventually(lambda: bool(used(redis)))
        (await other.admit(ann, 60, 1)).settle(50, 10)
        await eventually(lambda: used(redis)[0][1] == 2)
        assert "for " + today() in (await refused(one, ann)).message
        first = await one.admit(bob, 1, 2)
        await refused(other, bob)
        first.settle(1, 1)
        await eventually(lambda: len(used(redis)) == 2)
        await other.admit(bob, 1, 1)


async def test_what_runs_longer_than_a_lease_stays_reserved(redis: RedisServer) -> None:
    ann = key(redis, answers_at_once=1)
    async with replicas(redis) as (one, other):
        held = await one.admit(ann, 10, 1)
        await asyncio.sleep(3 * redis_ledger.LEASE_S)
        await refused(other, ann)
        held.settle(1, 1)
        await eventually(lambda: bool(used(redis)))
        await other.admit(ann, 10, 1)


async def test_what_a_killed_replica_held_comes_back(redis: RedisServer) -> None:
    ann = key(redis, answers_at_once=1, tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        await one.admit(ann, 10_000, 1)
        one._closing = True  # it says nothing any more
        await refused(other, ann)
        await asyncio.sleep(redis_ledger.LEASE_S + 0.1)
        await other.admit(ann, 10_000, 1)


async def test_a_write_whose_answer_is_lost_counts_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = key(redis, tokens_per_minute=10_000)
    async with replica(redis) as one:
        pipeline = one._redis.pipeline
        lost = 3

        def losing(**options: Any) -> Any:
            made: Any = pipeline(**options)
            execute = made.execute

            async def execute_and_lose() -> Any:
                nonlocal lost
                done = await execute()
                if lost and done:
                    lost -= 1
                    raise RedisError("lost")
                return done

            made.execute = execute_and_lose
            return made

        held = [await one.admit(ann, 100, 1) for _ in range(5)]
        monkeypatch.setattr(one._redis, "pipeline", losing)
        for reservation in held:
            reservation.settle(10, 3)
        await eventually(lambda: lost == 0 and not one._settled)
        assert used(redis) == [("ann", 5, 50, 15)]


@pytest.mark.parametrize("away", ["killed", "frozen"])
async def test_without_redis_nobody_comes_in_and_nothing_is_lost(redis: RedisServer, away: str) -> None:
    ann = key(redis, answers_at_once=3, tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        ended, running = await one.admit(ann, 100, 1), await other.admit(ann, 200, 1)
        redis.kill() if away == "killed" else redis.freeze()
        try:
            for _ in range(20):
                begun = time.monotonic()
                with pytest.raises(LimitsUnavailable):
                    await one.admit(ann, 1, 1)
                assert time.monotonic() - begun < 2 * redis_link.TIMEOUT_S
                await asyncio.sleep(0.02)
            ended.settle(60, 7)
            await asyncio.sleep(2 * redis_ledger.LEASE_S)
            with pytest.raises(LimitsUnavailable):
                await other.admit(ann, 1, 1)
        finally:
            redis.start() if away == "killed" else redis.thaw()
        await eventually(lambda: bool(used(redis)))
        with pytest.raises(LimitsUnavailable):  # until everyone has said what runs
            await other.admit(ann, 1, 1)
        await asyncio.sleep(redis_ledger.GRACE_S + 4 * redis_ledger.BEAT_S)
        await refused(one, ann, 1, 3)
        await one.admit(ann, 1, 2)
        running.settle(5, 5)
        await eventually(lambda: used(redis) == [("ann", 2, 65, 12)])


async def test_a_redis_that_has_forgotten_is_told_what_runs_before_anyone_comes_in(
    redis: RedisServer,
) -> None:
    ann = key(redis, answers_at_once=1, tokens_per_minute=1000)
    async with replicas(redis) as (one, other):
        held = await one.admit(ann, 900, 1)
        client(redis).flushall()
        key(redis, answers_at_once=1, tokens_per_minute=1000)
        for _ in range(5):
            with pytest.raises((LimitsUnavailable, RateLimited)):
                await other.admit(ann, 1, 1)
            await asyncio.sleep(0.05)
        await asyncio.sleep(redis_ledger.GRACE_S + redis_ledger.BEAT_S)
        await refused(other, ann)
        await refused(other, key(redis, tokens_per_minute=1000), 500)
        key(redis, answers_at_once=1, tokens_per_minute=1000)
        held.settle(100, 1)
        await eventually(lambda: bool(used(redis)))
        await other.admit(ann, 800, 1)


async def test_what_cannot_be_written_before_the_end_is_logged(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_ledger, "CLOSE_S", 0.2)
    async with replica(redis) as one:
        held = await one.admit(key(redis, answers_at_once=1), 10, 1)
        redis.kill()
        held.settle(4, 2)
    assert "event=usage_lost key=ann" in caplog.text and "prompt_tokens=4 completion_tokens=2" in caplog.text


@pytest.fixture
async def counted(redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Counted]:
    """A replica without background work, which counts what it sends to Redis."""
    sent: list[list[str]] = []
    pack = Connection.pack_command

    def packed(self: Connection, *command: Any) -> Any:
        sent.append([str(part) for part in command])
        return pack(self, *command)

    clock = Clock()
    ledger = RedisLedger(redis.url, API_KEY, lambda: "a", clock.now, clock.today)
    await ledger.beat()
    clock.seconds += redis_ledger.GRACE_S
    await ledger.beat()
    monkeypatch.setattr(Connection, "pack_command", packed)
    yield Counted(ledger, clock, sent)
    await ledger.close()


async def test_a_request_asks_redis_once_on_its_way_in(counted: Counted, redis: RedisServer) -> None:
    ann = key(redis, requests_per_minute=100, tokens_per_minute=1000, tokens_per_day=1000, answers_at_once=9)
    ledger = counted.ledger
    await _request(ledger, b"ann")  # the script is loaded, and the key is known
    await ledger.beat()
    counted.sent.clear()
    for number in range(1, 6):
        await _request(ledger, b"ann")
        assert [command[0] for command in counted.sent] == ["EVALSHA"] * number
    key(redis, requests_per_minute=1)
    counted.sent.clear()
    with pytest.raises(RateLimited):
        await ledger.admit(ann, 1, 1)
    for _ in range(5):  # with nothing left, no work is done for it, and Redis is not asked
        with pytest.raises(RateLimited):
            ledger.check(ann, 1)
    assert len(counted.sent) == 1
    counted.clock.seconds += redis_ledger.REMEMBER_REFUSAL_S
    ledger.check(ann, 1)


async def test_unknown_keys_in_a_flood_take_one_question_at_a_time(
    counted: Counted, redis: RedisServer
) -> None:
    """And known keys take none of them: a request of theirs has its own connection."""
    key(redis, requests_per_minute=100)
    ledger = counted.ledger
    await _request(ledger, b"ann")
    counted.sent.clear()
    flood = [asyncio.create_task(ledger.find(b"unknown %d" % number)) for number in range(3000)]
    await asyncio.sleep(0)
    assert ledger._link._questions._value == redis_link.QUESTIONS, "none of those that requests wait for"
    await _request(ledger, b"ann")
    assert not all(one.done() for one in flood), "a known key does not wait for the flood"
    assert set(await asyncio.gather(*flood)) == {None}
    asked = Counter(command[0] for command in counted.sent)
    assert (asked["HMGET"], asked["EVALSHA"]) == (30, 1), "100 of them in a question"
    await asyncio.gather(*(ledger.find(b"the same") for _ in range(50)))
    assert [command[0] for command in counted.sent].count("HMGET") == 31


async def test_what_ends_after_its_lease_is_charged_in_the_end(counted: Counted, redis: RedisServer) -> None:
    """Its replica was cut off for longer than the lease, and what it had reserved was given away."""
    ann = key(redis, tokens_per_minute=100)
    held = await counted.ledger.admit(ann, 100, 1)
    counted.clock.seconds += 5
    other = RedisLedger(redis.url, None, lambda: "a", counted.clock.now)
    for _ in range(3):
        counted.clock.seconds += redis_ledger.LEASE_S * 0.8
        await other.beat()
    (await other.admit(ann, 50, 1)).settle(0, 0)
    await other.write()
    held.settle(60, 30)
    await counted.ledger.write()
    assert (await refused(other, ann, 11)).headers["x-ratelimit-remaining-tokens"] == "10"
    assert used(redis, counted.clock.day) == [("ann", 1, 60, 30)]
    await other.close()


async def test_only_a_beat_shows_that_redis_is_back(
    counted: Counted, redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The work that a settled request wakes, with nothing to write, must not take Redis for reached."""
    caplog.set_level("INFO", "api")
    ledger = counted.ledger
    ledger.start()
    ann = key(redis)
    held = await ledger.admit(ann, 1, 1)
    redis.freeze()
    ledger._link.lose(RedisError("a connection died"))
    for _ in range(3):
        ledger._woken.set()
        await asyncio.sleep(0.01)
    assert not ledger._link.reachable and "redis_reached" not in caplog.text
    redis.thaw()
    held.settle(1, 1)
    await eventually(lambda: ledger._link.reachable)
    assert caplog.text.count("event=redis_gone") == caplog.text.count("event=redis_reached") == 1


async def test_a_late_failure_of_an_old_question_does_not_lose_redis_again(
    counted: Counted, redis: RedisServer
) -> None:
    ledger = counted.ledger
    ledger.start()
    fails = asyncio.Event()

    async def question() -> None:
        await fails.wait()
        raise RedisError("its connection had died")

    old = asyncio.create_task(ledger._link.ask(question))
    await asyncio.sleep(0)
    ledger._link.lose(RedisError("gone"))
    await eventually(lambda: ledger._link.reachable)
    fails.set()
    with pytest.raises(LimitsUnavailable):
        await old
    assert ledger._link.reachable


async def _request(ledger: RedisLedger, credential: bytes) -> None:
    """What a request asks of the ledger on its way in; nothing is written."""
    found = await ledger.find(credential)
    assert found
    ledger.check(found, 1)
    await ledger.admit(found, 10, 1)


async def test_replicas_that_serve_different_artifacts_are_told_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "api")
    async with replica(redis, "tiny-r8"), replica(redis, "tiny-r32"):
        await eventually(lambda: caplog.text.count("replicas_differ artifacts=tiny-r32,tiny-r8") == 2)
        await asyncio.sleep(0.3)
    assert caplog.text.count("replicas_differ") == 2, "once by each"


async def test_keys_are_known_to_all_at_once_and_open_nothing_when_revoked(redis: RedisServer) -> None:
    async with replicas(redis) as (one, other):
        assert one.required and await one.find(b"x") is None
        secret = (await other.create("ann", Limits(requests_per_minute=3), NORMAL)).encode()
        found = await one.find(secret)
        assert found and (found.name, found.limits.requests_per_minute) == ("ann", 3)
        assert secret.decode() not in str(client(redis).hgetall(KEYS))
        await other.revoke("ann")
        with pytest.raises(Unauthorised):
            await one.admit(found, 1, 1)
        assert await one.find(secret) is None


async def test_without_redis_only_api_key_is_known_and_is_counted_later(redis: RedisServer) -> None:
    async with replica(redis) as one:
        secret = (await one.create("ann", Limits(), NORMAL)).encode()
        ann = await one.find(secret)
        assert ann is not None
        redis.kill()
        with pytest.raises(LimitsUnavailable):
            await one.admit(ann, 1, 1)
        for credential in (secret, b"unknown"):
            with pytest.raises(LimitsUnavailable):
                await one.find(credential)
        outside = await one.find(API_KEY.encode())
        assert outside
        (await one.admit(outside, 10, 1)).settle(3, 1)
        redis.start()
        await eventually(lambda: used(redis) == [("default", 1, 3, 1)])


async def test_a_key_named_as_api_key_opens_nothing_next_to_it(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a key could be created once, and both would have one account."""
    key(redis, "default")
    async with replica(redis) as one:
        assert await one.find(b"default") is None and await one.find(b"default") is None
    assert caplog.text.count("event=key_ignored key=default") == 1


async def test_running_streams_end_well_and_new_requests_are_told(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    made = RedisLedger(redis.url)
    secret = await made.create("ann", Limits(tokens_per_minute=1000), NORMAL)
    await made.close()
    house = make_house(FakeEngine(hold_before=1), redis_url=redis.url)
    headers = {"authorization": f"Bearer {secret}"}
    async with house.serving() as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        await asyncio.sleep(redis_ledger.GRACE_S)
        async with client.stream("POST", URL, json=ask(stream=True, max_tokens=20)) as running:
            assert running.headers["x-ratelimit-limit-tokens"] == "1000"
            redis.kill()
            answer = await client.post(URL, json=ask(max_tokens=20))
            assert_openai_error(answer, 503, "limits_unavailable")
            assert answer.headers["retry-after"]
            assert (await client.get("/health/ready")).status_code == 200
            house.engine.release.set()
            assert (await running.aread()).rstrip().endswith(b"[DONE]")
        redis.start()
        await eventually(lambda: used(redis) == [("ann", 1, 22, 3)])
        await asyncio.sleep(redis_ledger.GRACE_S + 2 * redis_ledger.BEAT_S)
        assert (await client.post(URL, json=ask(max_tokens=20))).status_code == 200
    assert used(redis) == [("ann", 2, 44, 6)], "also what ended just before the service"


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"redis_url": "http://x"}, "must begin with redis://"),
        ({"redis_url": "redis://:s3cret@x", "keys_file": "k"}, "API_KEYS_FILE and API_USAGE_FILE"),
        ({"redis_url": "redis://:s3cret@x", "usage_file": "u"}, "API_KEYS_FILE and API_USAGE_FILE"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(settings: Any, told: str) -> None:
    with pytest.raises(ValueError, match=told) as refusal:
        Settings(**settings)
    assert "s3cret" not in str(refusal.value)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--replicas", "2"], "several replicas need API_REDIS_URL"),
        (["--replicas", "3", "--most", "2"], "--replicas 3 must be from 1 to --most 2"),
        pytest.param(
            [], "ray is not installed", marks=pytest.mark.skipif(find_spec("ray") is not None, reason="it is")
        ),
    ],
)
def test_replicas_that_cannot_be_are_told_in_one_line(
    artifacts: Path, arguments: list[str], told: str
) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api", "replicas", *arguments],
        env={"ARTIFACTS_DIR": str(artifacts)}, cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith(f"finechat api: {told}")


def test_a_redis_that_is_not_there_is_told_by_check_in_one_line(artifacts: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "api", "check"],
        env={"API_REDIS_URL": "redis://:s3cret@127.0.0.1:1/0", "ARTIFACTS_DIR": str(artifacts)},
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert (
        done.stderr.startswith("finechat api: API_REDIS_URL cannot be used") and done.stderr.count("\n") == 1
    )
    assert "s3cret" not in done.stderr


def test_one_process_alone_does_not_even_import_redis(artifacts: Path) -> None:
    program = (
        "import sys; from pathlib import Path; import api.cli; from api.service import build_service\n"
        "from api.app import create_app\n"
        "from api.settings import Settings; from api.engine.artifact import read_artifact;\n"
        f"artifacts = Path({str(artifacts)!r})\n"
        "create_app(build_service(Settings(artifacts_dir=artifacts), read_artifact(artifacts), None))\n"
        "sys.exit(any(name.split('.')[0] in ('redis', 'ray') for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr.decode()
