"""Replicas that share a real Redis keep limits and keys as if they were one."""

import asyncio
import time
from collections import Counter

import pytest

from api.errors import RateLimited, Unauthorised
from api.ledger import redis as redis_ledger
from api.ledger import redis_link
from api.ledger.keys import NORMAL, Limits
from api.ledger.redis import KEYS
from api.ledger.usage import today
from bench.redis_server import SERVER, RedisServer
from tests.support.api import eventually
from tests.support.replicas import Counted, client, key, refused, replica, replicas, request, used

pytestmark = [
    pytest.mark.anyio,
    pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one"),
]


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


async def test_a_request_asks_redis_once_on_its_way_in(counted: Counted, redis: RedisServer) -> None:
    ann = key(redis, requests_per_minute=100, tokens_per_minute=1000, tokens_per_day=1000, answers_at_once=9)
    ledger = counted.ledger
    await request(ledger, b"ann")  # the script is loaded, and the key is known
    await ledger.beat()
    counted.sent.clear()
    for number in range(1, 6):
        await request(ledger, b"ann")
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
    await request(ledger, b"ann")
    counted.sent.clear()
    flood = [asyncio.create_task(ledger.find(b"unknown %d" % number)) for number in range(3000)]
    await asyncio.sleep(0)
    assert ledger._link._questions._value == redis_link.QUESTIONS, "none of those that requests wait for"
    await request(ledger, b"ann")
    assert not all(one.done() for one in flood), "a known key does not wait for the flood"
    assert set(await asyncio.gather(*flood)) == {None}
    asked = Counter(command[0] for command in counted.sent)
    assert (asked["HMGET"], asked["EVALSHA"]) == (30, 1), "100 of them in a question"
    await asyncio.gather(*(ledger.find(b"the same") for _ in range(50)))
    assert [command[0] for command in counted.sent].count("HMGET") == 31


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


async def test_a_key_named_as_api_key_opens_nothing_next_to_it(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Such a key could be created once, and both would have one account."""
    key(redis, "default")
    async with replica(redis) as one:
        assert await one.find(b"default") is None and await one.find(b"default") is None
    assert caplog.text.count("event=key_ignored key=default") == 1


async def test_replicas_that_serve_different_artifacts_are_logged_once(
    redis: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "api")
    async with replica(redis, "tiny-r8"), replica(redis, "tiny-r32"):
        await eventually(lambda: caplog.text.count("replicas_differ artifacts=tiny-r32,tiny-r8") == 2)
        await asyncio.sleep(0.3)
    assert caplog.text.count("replicas_differ") == 2, "once by each"
