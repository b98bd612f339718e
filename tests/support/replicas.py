"""Replicas that share a real Redis, and what Redis holds of them."""

import asyncio
import hashlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from redis import Redis

from api.errors import RateLimited
from api.ledger.keys import Key, Limits
from api.ledger.redis import KEYS, USAGE, RedisLedger
from api.ledger.usage import today
from bench.redis_server import RedisServer
from tests.support.api import eventually
from tests.support.ledgers import API_KEY, Clock


@dataclass
class Counted:
    """A replica without background work, its clock, and the commands that it has sent to Redis."""

    ledger: RedisLedger
    clock: Clock
    sent: list[list[str]]


@asynccontextmanager
async def replica(redis: RedisServer, artifact: str = "a") -> AsyncIterator[RedisLedger]:
    """Open the ledger of a replica that serves, once Redis lets requests in."""
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
    """Return what Redis holds for a day, or today: name, requests, tokens of prompts and of answers."""
    counts = client(redis).hgetall(f"{USAGE}{day or today()}")
    parts = ("requests", "prompt_tokens", "completion_tokens")
    names = sorted({field.partition(":")[0] for field in counts})
    return [(name, *(int(counts[f"{name}:{part}"]) for part in parts)) for name in names]


async def request(ledger: RedisLedger, credential: bytes) -> None:
    """Do with the ledger what a request does on its way in. Nothing is written."""
    found = await ledger.find(credential)
    assert found
    ledger.check(found, 1)
    await ledger.admit(found, 10, 1)
