"""The contract of the ledger: every backend keeps it. Time is the test's own."""

from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from api.errors import RateLimited, SettingsError, Unauthorised
from api.ledger.keys import NORMAL, Key, Limits
from api.ledger.ledger import Ledger, Reservation
from bench.redis_server import SERVER, RedisServer, redis_server
from tests.support.ledgers import API_KEY, Backend, MemoryBackend, RedisBackend

pytestmark = pytest.mark.anyio
needs_redis = pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one")


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.fixture(params=["memory", pytest.param("redis", marks=needs_redis)])
async def backend(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Backend]:
    backend: Backend
    if request.param == "memory":
        backend = MemoryBackend(tmp_path)
    else:
        backend = RedisBackend(request.getfixturevalue("redis").url)
    yield backend
    await backend.close()


@pytest.fixture
async def ledger(backend: Backend) -> AsyncIterator[Ledger]:
    ledger = await backend.open()
    yield ledger
    await ledger.close()


async def create(ledger: Ledger, backend: Backend, name: str = "ann", **limits: int) -> Key:
    return (await created(ledger, backend, name, **limits))[1]


async def created(ledger: Ledger, backend: Backend, name: str = "ann", **limits: int) -> tuple[bytes, Key]:
    secret = (await ledger.create(name, Limits(**limits), NORMAL)).encode()
    await backend.catch_up(ledger)
    key = await ledger.find(secret)
    assert key is not None
    return secret, key


async def refused(ledger: Ledger, key: Key, tokens: int = 1, answers: int = 1) -> RateLimited:
    with pytest.raises(RateLimited) as refusal:
        await ledger.admit(key, tokens, answers)
    return refusal.value


async def test_a_key_is_found_by_its_whole_secret_only(ledger: Ledger, backend: Backend) -> None:
    secret, ann = await created(ledger, backend, requests_per_minute=3)
    assert (ann.name, ann.limits.requests_per_minute) == ("ann", 3)
    for wrong in (secret[:-1], secret.upper(), b"", b"x"):
        assert await ledger.find(wrong) is None
    own = await ledger.find(API_KEY.encode())
    assert own is not None and own.name == "default" and own.limits == Limits()
    assert [key.name for key in await ledger.keys()] == ["ann"]


async def test_requests_come_back_steadily(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, requests_per_minute=2)
    for _ in range(2):
        await ledger.admit(ann, 1, 1)
    error = await refused(ledger, ann)
    assert error.headers["retry-after"] == "30"
    assert error.headers["x-ratelimit-limit-requests"] == "2"
    assert error.headers["x-ratelimit-remaining-requests"] == "0"
    assert error.headers["x-ratelimit-reset-requests"] == "1m0s"
    await backend.pass_time(ledger, 30)
    await ledger.admit(ann, 1, 1)
    await refused(ledger, ann)
    await backend.pass_time(ledger, 120)
    for _ in range(2):
        await ledger.admit(ann, 1, 1)
    await refused(ledger, ann)


async def test_tokens_that_were_not_used_come_back(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, tokens_per_minute=100)
    held = await ledger.admit(ann, 80, 1)
    assert held.headers()["x-ratelimit-remaining-tokens"] == "20"
    assert (await refused(ledger, ann, 30)).headers["retry-after"] == "6"
    held.settle(10, 5)
    await _written(ledger, backend)
    await refused(ledger, ann, 100)
    await ledger.admit(ann, 85, 1)


async def test_what_a_long_answer_gives_back_late_is_not_given_twice(
    ledger: Ledger, backend: Backend
) -> None:
    """The minute has brought its tokens back already, and another request has used them."""
    ann = await create(ledger, backend, tokens_per_minute=100)
    long = await ledger.admit(ann, 100, 1)
    await backend.pass_time(ledger, 60)
    (await ledger.admit(ann, 100, 1)).settle(100, 0)
    long.settle(0, 0)
    await _written(ledger, backend)
    await refused(ledger, ann, 50)


async def test_a_day_has_its_budget_and_running_requests_count(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, tokens_per_day=100)
    held = await ledger.admit(ann, 90, 1)
    error = await refused(ledger, ann, 11)
    assert error.headers["retry-after"] == "1" and "Running requests hold 90 of them" in error.message
    held.settle(40, 0)
    await _written(ledger, backend)
    (await ledger.admit(ann, 60, 1)).settle(50, 10)
    await _written(ledger, backend)
    error = await refused(ledger, ann)
    assert "for 2030-01-01" in error.message and "retry-after" not in error.headers
    assert error.headers["x-should-retry"] == "false", "not today"
    backend.clock.day = "2030-01-02"
    await ledger.admit(ann, 100, 1)


async def test_answers_at_once(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, answers_at_once=3)
    held = await ledger.admit(ann, 1, 2)
    assert (await refused(ledger, ann, 1, 2)).headers["retry-after"] == "1"
    await ledger.admit(ann, 1, 1)
    held.settle(1, 1)
    await _written(ledger, backend)
    await refused(ledger, ann, 1, 3)
    await ledger.admit(ann, 1, 2)


@pytest.mark.parametrize(
    ("limit", "tokens", "answers"),
    [("answers_at_once", 1, 3), ("tokens_per_minute", 101, 1), ("tokens_per_day", 101, 1)],
)
async def test_what_a_key_can_never_have_is_refused_without_a_time_to_try_again(
    ledger: Ledger, backend: Backend, limit: str, tokens: int, answers: int
) -> None:
    """Also while another limit, which would come back, is used up."""
    limits = {"requests_per_minute": 1, limit: 2 if limit == "answers_at_once" else 100}
    ann = await create(ledger, backend, "ann", **limits)
    for _ in range(2):
        error = await refused(ledger, ann, tokens, answers)
        assert limit in error.message and f" {tokens * answers} " in error.message
        assert "retry-after" not in error.headers and error.headers["x-should-retry"] == "false"
        with suppress(RateLimited):  # the second time it is refused, and so is the request that is too large
            await ledger.admit(ann, 1, 1)
    assert "retry-after" in (await refused(ledger, ann)).headers


async def test_an_answer_that_runs_for_ten_minutes_stays_reserved(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, answers_at_once=1, tokens_per_day=100)
    held = await ledger.admit(ann, 60, 1)
    await backend.pass_time(ledger, 600)
    await refused(ledger, ann)
    held.settle(10, 10)
    await _written(ledger, backend)
    await ledger.admit(ann, 80, 1)


async def test_limits_that_change_while_answers_run_lock_nobody_out(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, answers_at_once=2, tokens_per_day=100)
    held = await ledger.admit(ann, 50, 2)
    await backend.set_limits(ledger, "ann", Limits(answers_at_once=3, tokens_per_day=120))
    more = await ledger.admit(ann, 50, 1)
    await refused(ledger, ann)
    held.settle(1, 1)
    more.settle(1, 1)
    await _written(ledger, backend)
    await ledger.admit(ann, 116, 3)


async def test_changed_limits_hold_at_once_and_give_nothing_back(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, tokens_per_minute=1000, requests_per_minute=10)
    for _ in range(3):
        await ledger.admit(ann, 300, 1)
    await backend.set_limits(ledger, "ann", Limits(tokens_per_minute=1200, requests_per_minute=4))
    held = await ledger.admit(ann, 300, 1)  # 900 of 1,200 were used
    assert held.headers()["x-ratelimit-remaining-requests"] == "0"
    await backend.set_limits(ledger, "ann", Limits(tokens_per_minute=100))
    error = await refused(ledger, ann)
    assert error.headers["x-ratelimit-remaining-tokens"] == "0", "less than nothing is nothing"
    await backend.set_limits(ledger, "ann", Limits())
    await ledger.admit(ann, 10**9, 100)


async def test_a_revoked_key_is_refused_at_once_and_its_answers_are_still_counted(
    ledger: Ledger, backend: Backend
) -> None:
    secret, ann = await created(ledger, backend)
    held = await ledger.admit(ann, 50, 1)
    await ledger.revoke("ann")
    await backend.catch_up(ledger)
    with pytest.raises(Unauthorised):
        await ledger.admit(ann, 1, 1)
    assert await ledger.find(secret) is None
    held.settle(5, 6)
    await _written(ledger, backend)
    [line] = await ledger.usage()
    assert line == ("2030-01-01", "ann", 1, 5, 6)
    with pytest.raises(SettingsError, match="no key named 'ann'"):
        await ledger.revoke("ann")


async def test_another_key_of_the_same_name_continues_its_account(ledger: Ledger, backend: Backend) -> None:
    """A key that was lost or leaked is replaced. Its finder gets no second budget by that."""
    old = await create(ledger, backend, answers_at_once=2, tokens_per_minute=1000, tokens_per_day=100)
    held = await ledger.admit(old, 60, 1)
    await ledger.revoke("ann")
    new = await create(ledger, backend, answers_at_once=2, tokens_per_minute=1000, tokens_per_day=100)
    assert new.sha256 != old.sha256
    await refused(ledger, new, 41)
    await refused(ledger, new, 1, 2)
    held.settle(30, 0)
    await _written(ledger, backend)
    await ledger.admit(new, 70, 2)
    with pytest.raises(Unauthorised):
        await ledger.admit(old, 1, 1)


async def test_no_key_can_have_the_name_of_api_key(ledger: Ledger, backend: Backend) -> None:
    with pytest.raises(SettingsError, match="'default' is the name of API_KEY"):
        await ledger.create("default", Limits(), NORMAL)
    assert await ledger.keys() == []


@pytest.mark.parametrize("name", ["", "a b", "x" * 65, "ä"])
async def test_a_name_that_could_not_stand_in_a_log_is_refused(ledger: Ledger, name: str) -> None:
    with pytest.raises(SettingsError, match="no name for a key"):
        await ledger.create(name, Limits(), NORMAL)


async def test_names_are_unique(ledger: Ledger, backend: Backend) -> None:
    await create(ledger, backend)
    with pytest.raises(SettingsError, match="a key named 'ann' already"):
        await ledger.create("ann", Limits(), NORMAL)


async def test_a_refusal_takes_nothing_and_a_check_repeats_it(ledger: Ledger, backend: Backend) -> None:
    ann = await create(ledger, backend, requests_per_minute=5, tokens_per_minute=10)
    for _ in range(20):
        await refused(ledger, ann, 11)
        ledger.check(ann, 1)
    held = await ledger.admit(ann, 10, 1)
    assert held.headers()["x-ratelimit-remaining-requests"] == "4"
    await refused(ledger, ann)
    with pytest.raises(RateLimited):
        ledger.check(ann, 1)
    held.settle(0, 0)
    ledger.check(ann, 1)


async def test_api_key_has_no_limits_and_is_counted(ledger: Ledger, backend: Backend) -> None:
    own = await ledger.find(API_KEY.encode())
    assert own is not None
    held: list[Reservation] = []
    for _ in range(50):
        ledger.check(own, 1000)
        held.append(await ledger.admit(own, 10**9, 1000))
    assert held[0].headers() == {}
    for one in held:
        one.settle(2, 1)
    await _written(ledger, backend)
    assert await ledger.usage() == [("2030-01-01", "default", 50, 100, 50)]


async def test_usage_is_kept_by_key_and_day(ledger: Ledger, backend: Backend) -> None:
    ann, bob = await create(ledger, backend, "ann"), await create(ledger, backend, "bob")
    for day in ("2030-01-01", "2030-01-02"):
        backend.clock.day = day
        (await ledger.admit(ann, 99, 1)).settle(10, 5)
        (await ledger.admit(bob, 99, 1)).settle(1, 1)
        await _written(ledger, backend)
    first, second = ([(day, "ann", 1, 10, 5), (day, "bob", 1, 1, 1)] for day in ("2030-01-01", "2030-01-02"))
    assert await ledger.usage() == second + first, "newest day first"
    assert await ledger.usage("2030-01-01") == first
    assert await ledger.usage(name="bob") == [second[1], first[1]]
    assert await ledger.usage("2030-01-02", "ann") == [second[0]]
    assert await ledger.usage("1999-01-01") == []


async def test_the_day_outlives_the_process_and_what_it_held_comes_back(backend: Backend) -> None:
    first = await backend.open()
    limits = {"answers_at_once": 1, "tokens_per_day": 100, "tokens_per_minute": 100}
    secret, ann = await created(first, backend, "ann", **limits)
    (await first.admit(ann, 50, 1)).settle(30, 10)
    await _written(first, backend)
    await first.admit(ann, 60, 1)
    await backend.kill(first)
    second = await backend.open()
    assert await second.usage() == [("2030-01-01", "ann", 1, 30, 10)]
    again = await second.find(secret)
    assert again == ann
    await refused(second, again, 61)
    (await second.admit(again, 60, 1)).settle(0, 0)
    await second.close()


async def test_each_keys_prompts_are_cached_apart(ledger: Ledger, backend: Backend) -> None:
    ann, bob = await create(ledger, backend, "ann"), await create(ledger, backend, "bob")
    other = await backend.open()
    assert ledger.cache_salt(ann) == ledger.cache_salt(ann)
    salts = {of.cache_salt(key) for of in (ledger, other) for key in (ann, bob)}
    assert len(salts) == 4, "nobody outside of the process can know them, not even by the file of keys"
    await other.close()


async def _written(ledger: Ledger, backend: Backend) -> None:
    """Nothing of what has ended waits to be written. No time passes that would bring back anything."""
    before = backend.clock.seconds
    await backend.catch_up(ledger)
    backend.clock.seconds = before
