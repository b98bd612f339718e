"""What all replicas of the service share through Redis: keys, limits and usage.

Redis decides by scripts, each of them whole or not at all (scripts/*.lua), and its clock is everyone's.
- What a running request has reserved is leased. Its replica renews the lease every second; what a replica
  that was killed had reserved comes back when the lease ends.
- What a request has used is written after its end, in order and by number: a write whose answer was lost
  counts once.
- Without Redis nobody comes in whom it would have to decide about. What runs goes on, and what it uses is
  kept here until Redis is back.

Imported only with API_REDIS_URL.
"""

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from hashlib import sha256
from itertools import count, islice
from pathlib import Path
from typing import TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.errors import LimitsUnavailable, SettingsError
from api.http.log import log
from api.ledger.keys import Key, Keys, Limits
from api.ledger.limits import Account, rate_headers
from api.ledger.shared_keys import KEYS, USAGE, usage_lines
from api.ledger.usage import Line, today

BEAT_S = 1.0
LEASE_S = 10.0
GRACE_S = 3.0  # for all replicas to say what runs at them, when Redis has been away
TIMEOUT_S = 2.0
CLOSE_S = 5.0
_QUESTIONS = 16  # at once, each on a connection
_BATCH = 100
_SCRIPTS = Path(__file__).parent / "scripts"
_GATE, _REPLICAS, _ARTIFACTS = "finechat:gate", "finechat:replicas", "finechat:artifacts"
_ACCOUNT, _HELD, _WRITTEN = "finechat:account:", "finechat:held:", "finechat:written:"
_GONE = "Keys and limits cannot be looked up now. Try again in a few seconds."
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class _Settled:
    """What a request that has ended has used; number: of this replica, in order."""

    number: int
    key: Key
    reservation: str
    day: str
    prompt_tokens: int
    completion_tokens: int


class Shared:
    """One replica's end of it."""

    def __init__(self, url: str, artifact: Callable[[], str]) -> None:
        """artifact: the id of what this replica serves now. Raises: SettingsError."""
        try:
            self._redis = Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0), decode_responses=True,
            )  # fmt: skip
        except ValueError as error:
            raise SettingsError(f"API_REDIS_URL: {error}") from None
        self._questions = asyncio.Semaphore(_QUESTIONS)
        self._artifact = artifact
        self._id = uuid.uuid4().hex
        self._numbers = count(1)
        self._held: dict[str, Key] = {}  # reservations of requests that run
        self._settled: deque[_Settled] = deque()  # not written yet, the oldest first
        self._woken = asyncio.Event()
        self._working: asyncio.Task[None] | None = None
        self._closing = False
        self._reachable = False
        self._told_gone = False
        self._served: set[str] = set()
        common = (_SCRIPTS / "common.lua").read_text()
        self._scripts = {
            name: self._redis.register_script(common + (_SCRIPTS / f"{name}.lua").read_text())
            for name in ("reserve", "settle", "renew", "beat")
        }

    def start(self) -> None:
        self._working = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Write what is left, for a while; what cannot be written is logged."""
        self._closing = True
        self._woken.set()
        if self._working is not None:
            await asyncio.wait({self._working})
            with contextlib.suppress(RedisError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self._write()
                    await self._redis.zrem(_REPLICAS, self._id)
                    await self._redis.hdel(_ARTIFACTS, self._id)
        for lost in self._settled:
            log.error(
                "event=usage_lost key=%s day=%s prompt_tokens=%d completion_tokens=%d",
                lost.key.name, lost.day, lost.prompt_tokens, lost.completion_tokens,
            )  # fmt: skip
        await self._redis.aclose()

    async def find(self, digest: str) -> Key | None:
        """Raises: LimitsUnavailable, here and below."""
        told = await self._ask(lambda: self._redis.hget(KEYS, digest))
        return Key.model_validate_json(told) if told else None

    async def reserve(self, key: Key, tokens: int, answers: int) -> "SharedReservation":
        """As limits.Accounts. Where nobody waits for the answer any more, what was taken lapses."""
        reservation = f"{uuid.uuid4().hex} {tokens} {answers}"
        account = await self._decide(key, reservation, tokens, answers, take=True)
        self._held[reservation] = key
        return SharedReservation(self, key, reservation, account)

    async def check(self, key: Key, tokens: int, answers: int) -> None:
        await self._decide(key, f"- {tokens} {answers}", tokens, answers, take=False)

    def settle(self, key: Key, reservation: str, prompt_tokens: int, completion_tokens: int) -> None:
        del self._held[reservation]
        number = next(self._numbers)
        self._settled.append(_Settled(number, key, reservation, today(), prompt_tokens, completion_tokens))
        self._woken.set()

    async def read_usage(self, day: str | None, key: str | None) -> list[Line]:
        """What has been written, the newest first."""

        async def read() -> list[Line]:
            places = [f"{USAGE}{day}"] if day else [name async for name in self._redis.scan_iter(f"{USAGE}*")]
            lines = []
            for place in sorted(places, reverse=True):
                lines += usage_lines(place, await self._redis.hgetall(place))
            return [line for line in lines if key in (None, line.key)]

        return await self._ask(read)

    async def _decide(self, key: Key, reservation: str, tokens: int, answers: int, *, take: bool) -> Account:
        """The key's account as it is then. Raises: RateLimited, LimitsUnavailable."""
        limits = key.limits
        account = Account(limits)
        if limits == Limits():  # Redis has nothing to decide
            return account
        told = await self._ask(
            lambda: self._scripts["reserve"](
                keys=[_GATE, f"{_ACCOUNT}{key.name}", f"{_HELD}{key.name}", f"{USAGE}{today()}"],
                args=[
                    LEASE_S, key.name, reservation,
                    limits.requests_per_minute or 0, limits.tokens_per_minute or 0,
                    limits.tokens_per_day or 0, limits.answers_at_once or 0, int(take),
                ],
            )
        )  # fmt: skip
        if told[0] == "closed":
            raise LimitsUnavailable(_GONE)
        fits, requests, tokens_left, account.answers, account.reserved_today, used = told
        if account.requests:
            account.requests.left = float(requests)
        if account.tokens:
            account.tokens.left = float(tokens_left)
        if fits == "no" and (refusal := account.refusal(tokens, answers, used)):
            raise refusal
        return account

    async def _ask(self, question: Callable[[], Awaitable[T]]) -> T:
        # In a task of its own, because redis-py can swallow a cancellation, by Python 3.11's asyncio.wait_for
        # (github.com/python/cpython/issues/86296), and a request whose client is gone must end.
        return await asyncio.shield(asyncio.create_task(self._answer(question)))

    async def _answer(self, question: Callable[[], Awaitable[T]]) -> T:
        async with self._questions:
            if not self._reachable:  # `_work` finds out when it is: nobody waits for a timeout meanwhile
                raise LimitsUnavailable(_GONE)
            try:
                return await question()
            except RedisError as error:
                self._tell_gone(error)
                raise LimitsUnavailable(_GONE) from None

    async def _work(self) -> None:
        """Write what has been used, renew what is held, and find Redis again."""
        due = 0.0
        while not self._closing:
            self._woken.clear()
            try:
                if (now := time.monotonic()) >= due:  # first: others wait for what runs here
                    await self._beat()
                    due = now + BEAT_S
                await self._write()
            except Exception as error:  # whatever it is, nothing else here finds Redis again
                self._tell_gone(error)
                due = 0.0
                with contextlib.suppress(RedisError, OSError):
                    # Or each connection that has died with Redis would be found dead by a request.
                    await self._redis.connection_pool.disconnect(inuse_connections=False)
                await asyncio.sleep(BEAT_S)
                continue
            if not self._reachable:
                self._reachable, self._told_gone = True, False
                log.info("event=redis_reached")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._woken.wait()

    async def _write(self) -> None:
        while batch := list(islice(self._settled, _BATCH)):
            async with self._redis.pipeline(transaction=False) as pipeline:
                for one in batch:
                    await self._scripts["settle"](
                        keys=[
                            f"{_WRITTEN}{self._id}", f"{_ACCOUNT}{one.key.name}", f"{_HELD}{one.key.name}",
                            f"{USAGE}{one.day}",
                        ],
                        args=[
                            one.number, one.reservation, one.key.limits.tokens_per_minute or 0,
                            one.key.name, one.prompt_tokens, one.completion_tokens,
                        ],
                        client=pipeline,
                    )  # fmt: skip
                await pipeline.execute()
            for _ in batch:
                self._settled.popleft()

    async def _beat(self) -> None:
        served = await self._scripts["beat"](
            keys=[_GATE, _REPLICAS, _ARTIFACTS], args=[LEASE_S, GRACE_S, self._id, self._artifact()]
        )
        self._compare(set(served))
        held = defaultdict(list)
        for reservation, key in self._held.items():
            if key.limits != Limits():
                held[key.name, key.limits.tokens_per_minute or 0].append(reservation)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for (name, tokens_per_minute), reservations in held.items():
                await self._scripts["renew"](
                    keys=[f"{_ACCOUNT}{name}", f"{_HELD}{name}"],
                    args=[LEASE_S, tokens_per_minute, *reservations],
                    client=pipeline,
                )
            await pipeline.execute()

    def _compare(self, served: set[str]) -> None:
        """For as long as new weights are on their way it is normal; after that someone should look."""
        if len(served) > 1 and served != self._served:
            log.warning("event=replicas_differ artifacts=%s", ",".join(sorted(served)))
        elif len(served) == 1 and len(self._served) > 1:
            log.info("event=replicas_agree artifact=%s", *served)
        self._served = served

    def _tell_gone(self, error: Exception) -> None:
        self._reachable = False
        if not self._told_gone:
            self._told_gone = True
            log.error("event=redis_gone error=%r", str(error))


class SharedKeys(Keys):
    """Those in Redis, looked up anew for every request; API_KEY is known without it."""

    needed = True

    def __init__(self, shared: Shared, single: str | None) -> None:
        super().__init__(None, single)
        self._shared = shared

    async def find(self, credential: bytes) -> Key | None:
        if key := await super().find(credential):
            return key
        return await self._shared.find(sha256(credential).hexdigest())


@dataclass(slots=True)
class SharedReservation:
    """As limits.Reservation."""

    shared: Shared
    key: Key
    reservation: str
    account: Account

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.shared.settle(self.key, self.reservation, prompt_tokens, completion_tokens)

    def headers(self) -> dict[str, str]:
        return rate_headers(self.account)
