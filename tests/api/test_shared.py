"""What replicas share, with a real Redis: as if they were one, also when it is taken away."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import httpx
import pytest
from redis import Redis
from redis.exceptions import RedisError

from api.errors import LimitsUnavailable, RateLimited, SettingsError
from api.ledger import shared as shared_module
from api.ledger import shared_keys
from api.ledger.keys import Key, Limits
from api.ledger.shared import Shared, SharedKeys
from api.ledger.shared_keys import create_key, read_keys, read_usage, revoke_key
from api.ledger.usage import today
from api.settings import Settings
from bench.load import ROOT
from bench.redis_server import SERVER, RedisServer, redis_server
from tests.support.api import URL, FakeEngine, House, ask, assert_openai_error, eventually

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make setup-tests` brings one"),
]
MakeHouse = Callable[..., House]


@pytest.fixture
def redis(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RedisServer]:
    for name, seconds in (("BEAT_S", 0.05), ("LEASE_S", 0.5), ("GRACE_S", 0.2), ("TIMEOUT_S", 0.6)):
        monkeypatch.setattr(shared_module, name, seconds)
    with redis_server(tmp_path) as server:
        yield server


@asynccontextmanager
async def replica(redis: RedisServer, artifact: str = "a") -> AsyncIterator[Shared]:
    shared = Shared(redis.url, lambda: artifact)
    shared.start()
    try:
        await eventually(lambda: shared._reachable)
        gate = client(redis).hget("finechat:gate", "from")
        await asyncio.sleep(max(0.0, float(gate) - time.time()))
        yield shared
    finally:
        await shared.close()


@asynccontextmanager
async def replicas(redis: RedisServer) -> AsyncIterator[tuple[Shared, Shared]]:
    async with replica(redis) as one, replica(redis) as other:
        yield one, other


def key(name: str = "ann", **limits: int) -> Key:
    return Key(name=name, sha256="0" * 64, created_at="", limits=Limits(**limits))


async def refused(shared: Shared, key: Key, tokens: int = 1, answers: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as refusal:
        await shared.reserve(key, tokens, answers)
    return refusal.value


def client(redis: RedisServer) -> Any:
    return Redis.from_url(redis.url, decode_responses=True)


def used(redis: RedisServer) -> list[tuple[Any, ...]]:
    return [tuple(line) for line in read_usage(redis.url)]


async def test_at_once_from_all_sides_exactly_the_limit_comes_in(redis: RedisServer) -> None:
    ann = key(requests_per_minute=20)
    async with replicas(redis) as both:
        begun = time.monotonic()
        asked = (both[number % 2].reserve(ann, 1, 1) for number in range(200))
        results = await asyncio.gather(*asked, return_exceptions=True)
        elapsed_s = time.monotonic() - begun
        refusals = [result for result in results if isinstance(result, RateLimited)]
        assert 180 - elapsed_s / 3 - 1 <= len(refusals) <= 180, "a request comes back every 3 s"
        assert refusals[0].headers["x-ratelimit-limit-requests"] == "20"
        assert refusals[0].headers["x-ratelimit-remaining-requests"] == "0"
        assert refusals[0].headers["retry-after"] in ("2", "3")


async def test_tokens_that_one_replica_gives_back_are_there_for_the_other(redis: RedisServer) -> None:
    ann = key(tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        held = await one.reserve(ann, 9000, 1)
        assert int(held.headers()["x-ratelimit-remaining-tokens"]) in range(1000, 1100)
        assert (await refused(other, ann, 5000)).headers["retry-after"]
        assert "retry-after" not in (await refused(other, ann, 10_001)).headers, "it would never fit"
        held.settle(100, 20)
        await eventually(lambda: bool(used(redis)))
        await other.reserve(ann, 9000, 1)
        assert used(redis) == [(today(), "ann", 1, 100, 20)]


async def test_the_day_and_answers_at_once_are_everyones(redis: RedisServer) -> None:
    ann, bob = key(tokens_per_day=100), key("bob", answers_at_once=2)
    async with replicas(redis) as (one, other):
        held = await one.reserve(ann, 90, 1)
        await refused(other, ann, 11)
        held.settle(40, 0)
        await eventually(lambda: bool(used(redis)))
        (await other.reserve(ann, 60, 1)).settle(50, 10)
        await eventually(lambda: used(redis)[0][2] == 2)
        assert "for " + today() in (await refused(one, ann)).message
        first = await one.reserve(bob, 1, 2)
        await refused(other, bob)
        await refused(other, key("bob", answers_at_once=3), 1, 2)
        await other.reserve(key("bob", answers_at_once=3), 1, 1)
        first.settle(1, 1)
        await eventually(lambda: len(used(redis)) == 2)
        await other.reserve(bob, 1, 1)


async def test_a_refusal_or_a_look_takes_nothing(redis: RedisServer) -> None:
    ann = key(requests_per_minute=5, tokens_per_minute=10)
    async with replica(redis) as one:
        for _ in range(20):
            await refused(one, ann, 11)
            await one.check(ann, 10, 1)
        assert (await one.reserve(ann, 10, 1)).headers()["x-ratelimit-remaining-requests"] == "4"
        with pytest.raises(RateLimited):
            await one.check(ann, 10, 1)


async def test_what_runs_longer_than_a_lease_stays_reserved(redis: RedisServer) -> None:
    ann = key(answers_at_once=1)
    async with replicas(redis) as (one, other):
        held = await one.reserve(ann, 10, 1)
        await asyncio.sleep(3 * shared_module.LEASE_S)
        await refused(other, ann)
        held.settle(1, 1)
        await eventually(lambda: bool(used(redis)))
        await other.reserve(ann, 10, 1)


async def test_what_a_killed_replica_held_comes_back(redis: RedisServer) -> None:
    ann = key(answers_at_once=1, tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        await one.reserve(ann, 10_000, 1)
        one._closing = True  # it says nothing any more
        await refused(other, ann)
        await asyncio.sleep(shared_module.LEASE_S + 0.1)
        await other.reserve(ann, 10_000, 1)


async def test_a_write_whose_answer_is_lost_counts_once(
    redis: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ann = key(tokens_per_minute=10_000)
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

        held = [await one.reserve(ann, 100, 1) for _ in range(5)]
        monkeypatch.setattr(one._redis, "pipeline", losing)
        for reservation in held:
            reservation.settle(10, 3)
        await eventually(lambda: lost == 0 and not one._settled)
        assert used(redis) == [(today(), "ann", 5, 50, 15)]


@pytest.mark.parametrize("away", ["killed", "frozen"])
async def test_without_redis_nobody_comes_in_and_nothing_is_lost(redis: RedisServer, away: str) -> None:
    ann = key(answers_at_once=3, tokens_per_minute=10_000)
    async with replicas(redis) as (one, other):
        ended, running = await one.reserve(ann, 100, 1), await other.reserve(ann, 200, 1)
        redis.kill() if away == "killed" else redis.freeze()
        try:
            for _ in range(20):
                begun = time.monotonic()
                with pytest.raises(LimitsUnavailable):
                    await one.reserve(ann, 1, 1)
                assert time.monotonic() - begun < 2 * shared_module.TIMEOUT_S
                await asyncio.sleep(0.02)
            ended.settle(60, 7)
            await asyncio.sleep(2 * shared_module.LEASE_S)
            with pytest.raises(LimitsUnavailable):
                await other.reserve(ann, 1, 1)
        finally:
            redis.start() if away == "killed" else redis.thaw()
        await eventually(lambda: bool(used(redis)))
        with pytest.raises(LimitsUnavailable):  # until everyone has said what runs
            await other.reserve(ann, 1, 1)
        await asyncio.sleep(shared_module.GRACE_S + 4 * shared_module.BEAT_S)
        await refused(one, ann, 1, 3)
        await one.reserve(ann, 1, 2)
        running.settle(5, 5)
        await eventually(lambda: used(redis) == [(today(), "ann", 2, 65, 12)])


async def test_a_redis_that_has_forgotten_is_told_what_runs_before_anyone_comes_in(
    redis: RedisServer,
) -> None:
    ann = key(answers_at_once=1, tokens_per_minute=1000)
    async with replicas(redis) as (one, other):
        held = await one.reserve(ann, 900, 1)
        client(redis).flushall()
        for _ in range(5):
            with pytest.raises((LimitsUnavailable, RateLimited)):
                await other.reserve(ann, 1, 1)
            await asyncio.sleep(0.05)
        await asyncio.sleep(shared_module.GRACE_S + shared_module.BEAT_S)
        await refused(other, ann)
        await refused(other, key(tokens_per_minute=1000), 500)
        held.settle(100, 1)
        await eventually(lambda: bool(used(redis)))
        await other.reserve(ann, 800, 1)


async def test_what_cannot_be_written_before_the_end_is_logged(
    redis: RedisServer, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_module, "CLOSE_S", 0.2)
    async with replica(redis) as one:
        held = await one.reserve(key(answers_at_once=1), 10, 1)
        redis.kill()
        held.settle(4, 2)
    assert "event=usage_lost key=ann" in caplog.text and "prompt_tokens=4 completion_tokens=2" in caplog.text


async def test_replicas_that_serve_different_artifacts_are_told_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "api")
    async with replica(redis, "tiny-r8"), replica(redis, "tiny-r32"):
        await eventually(lambda: caplog.text.count("replicas_differ artifacts=tiny-r32,tiny-r8") == 2)
        await asyncio.sleep(0.3)
    assert caplog.text.count("replicas_differ") == 2, "once by each"


async def test_keys_are_known_to_all_at_once_and_unknown_when_revoked(redis: RedisServer) -> None:
    async with replica(redis) as one:
        keys = SharedKeys(one, "the-one-from-outside")
        assert keys.needed and await keys.find(b"x") is None
        secret = create_key(redis.url, "ann", Limits(requests_per_minute=3))
        found = await keys.find(secret.encode())
        assert found and (found.name, found.limits.requests_per_minute) == ("ann", 3)
        assert secret not in str(client(redis).hgetall(shared_keys.KEYS))
        with pytest.raises(SettingsError, match="already"):
            create_key(redis.url, "ann", Limits())
        assert [key.name for key in read_keys(redis.url).keys] == ["ann"]
        revoke_key(redis.url, "ann")
        assert await keys.find(secret.encode()) is None
        with pytest.raises(SettingsError, match="no key named"):
            revoke_key(redis.url, "ann")
        redis.kill()
        with pytest.raises(LimitsUnavailable):
            await keys.find(secret.encode())
        outside = await keys.find(b"the-one-from-outside")
        assert outside
        (await one.reserve(outside, 10, 1)).settle(3, 1)  # it has no limits: nothing to decide
        redis.start()
        await eventually(lambda: used(redis) == [(today(), "default", 1, 3, 1)])


async def test_running_streams_end_well_and_new_requests_are_told(
    make_house: MakeHouse, redis: RedisServer
) -> None:
    secret = create_key(redis.url, "ann", Limits(tokens_per_minute=1000))
    house = make_house(FakeEngine(hold_before=1), redis_url=redis.url)
    headers = {"authorization": f"Bearer {secret}"}
    async with house.serving() as url, httpx.AsyncClient(base_url=url, headers=headers) as client:
        await asyncio.sleep(shared_module.GRACE_S)
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
        await eventually(lambda: used(redis) == [(today(), "ann", 1, 22, 3)])
        await asyncio.sleep(shared_module.GRACE_S + 2 * shared_module.BEAT_S)
        assert (await client.post(URL, json=ask(max_tokens=20))).status_code == 200
    assert used(redis) == [(today(), "ann", 2, 44, 6)], "also what ended just before the service"


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
