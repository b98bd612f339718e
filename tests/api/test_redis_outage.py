"""Redis is taken away, frozen or emptied: nobody comes in, nothing is lost, nothing counts twice."""

import asyncio
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest
from redis.exceptions import RedisError

from api.errors import LimitsUnavailable, RateLimited
from api.ledger import redis as redis_ledger
from api.ledger import redis_link
from api.ledger.keys import NORMAL, Limits
from api.ledger.redis import RedisLedger
from bench.redis_server import SERVER, RedisServer
from tests.support.api import URL, FakeEngine, House, ask, assert_openai_error, eventually
from tests.support.ledgers import API_KEY
from tests.support.replicas import Counted, client, key, refused, replica, replicas, used

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one"),
]
MakeHouse = Callable[..., House]


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


async def test_replicas_report_what_runs_to_a_redis_that_forgot_before_anyone_comes_in(
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


async def test_a_request_that_ends_after_its_lease_is_still_charged(
    counted: Counted, redis: RedisServer
) -> None:
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


async def test_without_redis_running_streams_end_well_and_new_requests_get_503(
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
