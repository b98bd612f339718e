"""The ledger that several replicas share: keys, limits and usage in Redis.

Scripts decide (scripts/*.lua), each of them as a whole, and by Redis's clock for all replicas.
- A request asks Redis once on its way in: `admit` looks up the key, decides by the limits that it has now and
  reserves. `find` answers from the keys that this replica has seen; every beat reads them again.
- Reservations are leased. The replica renews its leases with every beat; those of a killed replica lapse.
- Usage is written after the end of a request, in order and by number: a write that is repeated counts once.
- Without Redis nobody is let in about whom it would have to decide. Running requests continue, and their
  usage is kept here until Redis is back.

Only `backends.open_ledger` imports this module, and only with API_REDIS_URL.
"""

import asyncio
import contextlib
import time
import uuid
from collections import defaultdict, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

from redis.exceptions import RedisError

from api.errors import RateLimited
from api.ledger.account import Account
from api.ledger.keys import API_KEY_NAME, NORMAL, Key, Limits, new_key, no_such_key, require_free
from api.ledger.ledger import Ledger, Reservation, unauthorised
from api.ledger.redis_keys import KnownKeys
from api.ledger.redis_link import RedisLink, gone
from api.ledger.usage import Line, today
from api.telemetry.log import log

BEAT_S = 1.0
LEASE_S = 10.0
GRACE_S = 3.0  # for all replicas to report what they run, after Redis was away
CLOSE_S = 5.0
REMEMBER_REFUSAL_S = 1.0
KEYS = "finechat:keys"  # a hash: SHA-256 → Key as JSON
USAGE = (
    "finechat:usage:"  # and a day: a hash of <name>:requests, <name>:prompt_tokens, <name>:completion_tokens
)
_BATCH = 100
_SCRIPTS = Path(__file__).parent / "scripts"
_HEARTBEAT = "finechat:gate"  # an old name that stays: running services share this key
_REPLICAS, _ARTIFACTS = "finechat:replicas", "finechat:artifacts"
_ACCOUNT, _HELD, _CHARGES = "finechat:account:", "finechat:held:", "finechat:charges:"
_WRITTEN = "finechat:written:"


@dataclass(frozen=True, slots=True)
class _Settled:
    """A request that has ended. number: of this replica, in order. reservation: empty for API_KEY."""

    number: int
    key: Key
    reservation: str
    day: str
    prompt_tokens: int
    completion_tokens: int


class RedisLedger(Ledger):
    """One replica's end of it."""

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        artifact: Callable[[], str] = lambda: "",
        now: Callable[[], float] | None = None,
        today: Callable[[], str] = today,
    ) -> None:
        """artifact: returns the id of what this replica serves now.

        now: a clock for tests; without it time is Redis's. Raises: SettingsError.
        """
        super().__init__(api_key)
        self._woken = asyncio.Event()
        self._link = RedisLink(url, self._woken)
        self._redis = self._link.client
        self._shared_now: Callable[[], float | str] = now or (lambda: "")
        self._now = now or time.monotonic
        self._today = today
        self._artifact = artifact
        self._id = uuid.uuid4().hex
        self._keys = KnownKeys(self._read_keys)
        self._refused: dict[str, tuple[Account, int, float]] = {}  # with the day's tokens, until when
        self._numbers = count(1)
        self._held: dict[str, Key] = {}  # reservations of running requests
        self._settled: deque[_Settled] = deque()  # not written yet, the oldest first
        self._working: asyncio.Task[None] | None = None
        self._closing = False
        self._logged_reserved = False
        self._served: set[str] = set()
        common = (_SCRIPTS / "common.lua").read_text()
        self._scripts = {
            name: self._redis.register_script(common + (_SCRIPTS / f"{name}.lua").read_text())
            for name in ("admit", "settle", "renew", "beat")
        }

    def start(self) -> None:
        self._link.serving = True
        self._working = asyncio.create_task(self._work())

    async def close(self) -> None:
        """Write what is left, for a while; log what cannot be written."""
        self._closing = True
        self._woken.set()
        if self._working is not None:
            await asyncio.wait({self._working})
            with contextlib.suppress(RedisError, TimeoutError):
                async with asyncio.timeout(CLOSE_S):
                    await self.write()
                    await self._redis.zrem(_REPLICAS, self._id)
                    await self._redis.hdel(_ARTIFACTS, self._id)
        for lost in self._settled:
            log.error(
                "event=usage_lost key=%s day=%s prompt_tokens=%d completion_tokens=%d",
                lost.key.name, lost.day, lost.prompt_tokens, lost.completion_tokens,
            )  # fmt: skip
        await self._redis.aclose()

    async def _find(self, digest: str) -> Key | None:
        self._link.require_reachable()
        key = await self._keys.find(digest)
        return None if key is not None and self._is_reserved(key) else key

    def check(self, key: Key, answers: int) -> None:
        """Repeat a refusal of the last second, if even the smallest request would be refused."""
        if (refused := self._refused.get(key.name)) is None:
            return
        account, used, until = refused
        if self._now() >= until:
            del self._refused[key.name]
        elif refusal := account.refusal(1, answers, used, self._today()):
            raise refusal

    async def admit(self, key: Key, tokens: int, answers: int) -> Reservation:
        """Where the client leaves before Redis has answered, the reservation lapses."""
        if key == self._api_key:
            return RedisReservation(self, key, "", Account(key.limits, self._now))
        day = self._today()
        reservation = f"{uuid.uuid4().hex} {tokens} {answers}"
        reply = await self._link.ask(
            lambda: self._scripts["admit"](
                keys=[
                    _HEARTBEAT, KEYS, f"{_ACCOUNT}{key.name}", f"{_HELD}{key.name}", f"{_CHARGES}{key.name}",
                    f"{USAGE}{day}",
                ],
                args=[self._shared_now(), LEASE_S, key.sha256, key.name, reservation],
            )
        )  # fmt: skip
        if reply[0] == "closed":
            raise gone()
        current = self._keys.update(key.sha256, reply[1] if reply[0] != "unknown" else None)
        if current is None:
            raise unauthorised()
        fits, _, requests, spent, answers_held, tokens_held, used = reply
        account = Account(current.limits, self._now)
        account.requests.charge("", float(requests))  # all of them together: nothing is given back here
        account.tokens.charge("", float(spent))
        account.answers, account.tokens_held = answers_held, tokens_held
        if fits == "no":
            refusal = account.refusal(tokens, answers, used, day)
            self._refused[key.name] = account, used, self._now() + REMEMBER_REFUSAL_S
            raise refusal or RateLimited("This key has used its limits.", 1.0)
        self._held[reservation] = current
        return RedisReservation(self, current, reservation, account)

    def settle(self, key: Key, reservation: str, prompt_tokens: int, completion_tokens: int) -> None:
        self._held.pop(reservation, None)
        self._refused.pop(key.name, None)
        number = next(self._numbers)
        self._settled.append(
            _Settled(number, key, reservation, self._today(), prompt_tokens, completion_tokens)
        )
        self._woken.set()

    async def usage(self, day: str | None = None, name: str | None = None) -> list[Line]:
        async def read() -> list[Line]:
            places = (
                [f"{USAGE}{day}"] if day else [place async for place in self._redis.scan_iter(f"{USAGE}*")]
            )
            lines = []
            for place in sorted(places, reverse=True):
                lines += _lines(place.removeprefix(USAGE), await self._redis.hgetall(place))
            return [line for line in lines if name in (None, line.key)]

        return await self._link.run(read)

    async def keys(self) -> list[Key]:
        async def read() -> list[Key]:
            return [Key.model_validate_json(text) for text in await self._redis.hvals(KEYS)]

        return sorted(await self._link.run(read), key=lambda key: key.name)

    async def create(self, name: str, limits: Limits, priority: int = NORMAL) -> str:
        secret, key = new_key(name, limits, priority)

        async def add(pipeline: Any) -> None:
            known = [Key.model_validate_json(text) for text in await pipeline.hvals(KEYS)]
            require_free(name, known)
            pipeline.multi()
            pipeline.hset(KEYS, key.sha256, key.model_dump_json())

        await self._link.run(lambda: self._redis.transaction(add, KEYS))
        return secret

    async def revoke(self, name: str) -> None:
        found = [key.sha256 for key in await self.keys() if key.name == name]
        if not found:
            raise no_such_key(name)
        await self._link.run(lambda: self._redis.hdel(KEYS, *found))

    async def verify(self) -> None:
        await self.keys()

    def _is_reserved(self, key: Key) -> bool:
        """Return whether the key has API_KEY's name, which was possible once. It would share its account."""
        if self._api_key is None or key.name != API_KEY_NAME:
            return False
        if not self._logged_reserved:
            self._logged_reserved = True
            log.error("event=key_ignored key=%s reason='this is the name of API_KEY'", key.name)
        return True

    async def _read_keys(self, digests: list[str]) -> list[str | None]:
        return await self._link.run(lambda: self._redis.hmget(KEYS, digests))

    async def _work(self) -> None:
        """Write usage, renew leases, and find Redis again when it was away."""
        due = 0.0
        while not self._closing:
            self._woken.clear()
            try:
                # First, because requests wait for what runs here. Only a beat shows that Redis is back.
                if not self._link.reachable or time.monotonic() >= due:
                    await self.beat()
                    due = time.monotonic() + BEAT_S
                await self.write()
            except Exception as error:  # whatever it is, nothing else here finds Redis again
                self._link.lose(error)
                await asyncio.sleep(BEAT_S)
                continue
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, due - time.monotonic())):
                    await self._woken.wait()

    async def write(self) -> None:
        """Write what requests have used that have ended."""
        while batch := list(islice(self._settled, _BATCH)):
            async with self._redis.pipeline(transaction=False) as pipeline:
                for one in batch:
                    await self._scripts["settle"](
                        keys=[
                            f"{_WRITTEN}{self._id}", f"{_ACCOUNT}{one.key.name}", f"{_HELD}{one.key.name}",
                            f"{_CHARGES}{one.key.name}", f"{USAGE}{one.day}",
                        ],
                        args=[
                            self._shared_now(), one.number, one.reservation,
                            one.key.limits.tokens_per_minute or 0, one.key.name, one.prompt_tokens,
                            one.completion_tokens,
                        ],
                        client=pipeline,
                    )  # fmt: skip
                await pipeline.execute()
            for _ in batch:
                self._settled.popleft()

    async def beat(self) -> None:
        """Report that this replica is there, renew its leases, and read its keys again."""
        async with self._link.beat():
            served = await self._scripts["beat"](
                keys=[_HEARTBEAT, _REPLICAS, _ARTIFACTS],
                args=[self._shared_now(), LEASE_S, GRACE_S, self._id, self._artifact()],
            )
            self._compare(set(served))
            await self._renew()
            await self._keys.refresh()

    async def _renew(self) -> None:
        held = defaultdict(list)
        for reservation, key in self._held.items():
            held[key.name, key.limits.tokens_per_minute or 0].append(reservation)
        async with self._redis.pipeline(transaction=False) as pipeline:
            for (name, tokens_per_minute), reservations in held.items():
                await self._scripts["renew"](
                    keys=[f"{_ACCOUNT}{name}", f"{_HELD}{name}", f"{_CHARGES}{name}"],
                    args=[self._shared_now(), LEASE_S, tokens_per_minute, *reservations],
                    client=pipeline,
                )
            await pipeline.execute()

    def _compare(self, served: set[str]) -> None:
        """Log when replicas serve different artifacts. That is normal only while new weights are loaded."""
        if len(served) > 1 and served != self._served:
            log.warning("event=replicas_differ artifacts=%s", ",".join(sorted(served)))
        elif len(served) == 1 and len(self._served) > 1:
            log.info("event=replicas_agree artifact=%s", *served)
        self._served = served


@dataclass(slots=True)
class RedisReservation(Reservation):
    ledger: RedisLedger
    key: Key
    reservation: str
    account: Account

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.ledger.settle(self.key, self.reservation, prompt_tokens, completion_tokens)


def _lines(day: str, counts: Mapping[str, str]) -> list[Line]:
    names = sorted({field.partition(":")[0] for field in counts})
    return [
        Line(day, name, *(int(counts.get(f"{name}:{what}", 0)) for what in Line._fields[2:]))
        for name in names
    ]
