"""Both backends of the ledger with a clock that a test moves, for the contract that they share."""

import json
from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any

from redis.asyncio import Redis

from api.ledger import redis as redis_ledger
from api.ledger.keys import Key, Limits
from api.ledger.ledger import Ledger
from api.ledger.memory import MemoryLedger
from api.ledger.redis import RedisLedger

API_KEY = "the-key-from-the-environment"
BEAT_S = 5.0  # less than a lease, more than CHECK_EVERY_S


class Clock:
    """Seconds since some moment, and a day that a test sets."""

    def __init__(self) -> None:
        self.seconds = 1_000_000.0
        self.day = "2030-01-01"

    def now(self) -> float:
        return self.seconds

    def today(self) -> str:
        return self.day


class Backend(ABC):
    """Where a ledger keeps what it knows. A test opens one ledger, or those of several processes in turn."""

    def __init__(self) -> None:
        self.clock = Clock()

    @abstractmethod
    async def open(self) -> Ledger:
        """Return the ledger of a new process that can serve at once."""

    @abstractmethod
    async def kill(self, ledger: Ledger) -> None:
        """End its process without a goodbye. What it had not written is lost, what it had reserved lapses."""

    @abstractmethod
    async def catch_up(self, ledger: Ledger) -> None:
        """Have the ledger do at once what it does in the background."""

    @abstractmethod
    async def set_limits(self, ledger: Ledger, name: str, limits: Limits) -> None:
        """Change the limits where the key is stored, as an operator does; they hold from then on."""

    async def pass_time(self, ledger: Ledger, seconds: float) -> None:
        while seconds > 0:
            step = min(seconds, BEAT_S)
            self.clock.seconds += step
            seconds -= step
            await self.catch_up(ledger)

    @abstractmethod
    async def close(self) -> None:
        """Forget everything."""


class MemoryBackend(Backend):
    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._keys, self._usage = folder / "keys.json", folder / "usage.db"

    async def open(self) -> Ledger:
        return MemoryLedger(self._keys, self._usage, API_KEY, self.clock.now, self.clock.today)

    async def kill(self, ledger: Ledger) -> None:
        await ledger.close()  # only so that its thread ends

    async def catch_up(self, ledger: Ledger) -> None:
        self.clock.seconds += 1  # its file of keys is read again

    async def set_limits(self, ledger: Ledger, name: str, limits: Limits) -> None:
        stored = json.loads(self._keys.read_text())
        for key in stored["keys"]:
            if key["name"] == name:
                key["limits"] = limits.model_dump()
        self._keys.write_text(json.dumps(stored, indent=2))
        await self.catch_up(ledger)

    async def close(self) -> None:
        for file in (self._keys, self._usage):
            file.unlink(missing_ok=True)


class RedisBackend(Backend):
    def __init__(self, url: str) -> None:
        super().__init__()
        self._url = url
        self._client: Any = Redis.from_url(url, decode_responses=True)

    async def open(self) -> Ledger:
        ledger = RedisLedger(self._url, API_KEY, lambda: "a", self.clock.now, self.clock.today)
        await ledger.beat()
        self.clock.seconds += redis_ledger.GRACE_S
        await ledger.beat()
        return ledger

    async def kill(self, ledger: Ledger) -> None:
        assert isinstance(ledger, RedisLedger)
        ledger._settled.clear()
        await ledger.close()
        self.clock.seconds += redis_ledger.LEASE_S + 1

    async def catch_up(self, ledger: Ledger) -> None:
        assert isinstance(ledger, RedisLedger)
        await ledger.write()
        await ledger.beat()

    async def set_limits(self, ledger: Ledger, name: str, limits: Limits) -> None:
        for digest, text in (await self._client.hgetall(redis_ledger.KEYS)).items():
            key = Key.model_validate_json(text)
            if key.name == name:
                changed = key.model_copy(update={"limits": limits})
                await self._client.hset(redis_ledger.KEYS, digest, changed.model_dump_json())

    async def close(self) -> None:
        await self._client.flushall()
        await self._client.aclose()
