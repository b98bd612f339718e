"""The ledger under random use: whatever happens, no limit is passed and everything comes back.

Hypothesis makes up stories of requests, changed limits, replaced keys, passing time and killed processes, for
every backend. The model knows what must hold at every moment; it does not know how a bucket works.
"""

import asyncio
import shutil
import tempfile
from collections.abc import Coroutine, Iterator
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from api.errors import RateLimited, Unauthorised
from api.ledger.keys import NORMAL, Key, Limits
from api.ledger.ledger import Ledger, Reservation
from bench.redis_server import SERVER, RedisServer, redis_server
from tests.support.ledgers import Backend, MemoryBackend, RedisBackend

NAMES = ("ann", "bob")
LIMITS = st.builds(
    Limits,
    requests_per_minute=st.none() | st.integers(1, 5),
    tokens_per_minute=st.none() | st.integers(10, 100),
    tokens_per_day=st.none() | st.integers(50, 500),
    answers_at_once=st.none() | st.integers(1, 4),
)
ROUNDING = 1e-3


@dataclass
class Admitted:
    """One request that was let in, by the limits of that number. used: None until it has ended."""

    at: float
    tokens: int
    answers: int
    limits_number: int
    reservation: Reservation
    used: tuple[int, int] | None = None


@dataclass
class Holder:
    """The holder of the keys of one name. counted: the tokens of every request that has ended today."""

    limits: Limits
    key: Key
    limits_number: int = 0
    admitted: list[Admitted] = field(default_factory=list)
    counted: list[tuple[int, int]] = field(default_factory=list)

    @property
    def running(self) -> list[Admitted]:
        return [one for one in self.admitted if one.used is None]


class LedgerMachine(RuleBasedStateMachine):
    """A ledger of one process at a time, in files or in the Redis that a subclass names."""

    redis_url: ClassVar[str | None] = None

    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.folder = Path(tempfile.mkdtemp())
        self.backend: Backend = RedisBackend(self.redis_url) if self.redis_url else MemoryBackend(self.folder)
        self.ledger: Ledger = self.run(self.backend.open())
        self.holders: dict[str, Holder] = {}
        self.revoked: list[Key] = []
        self.days = count(2)

    def run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self.runner.run(work)

    @initialize(limits=LIMITS, others=LIMITS)
    def create_keys(self, limits: Limits, others: Limits) -> None:
        for name, its in zip(NAMES, (limits, others), strict=True):
            self.holders[name] = Holder(its, self._create(name, its))

    @rule(name=st.sampled_from(NAMES), share=st.sampled_from([0.3, 0.5, 1.0, 1.1]), answers=st.integers(1, 4))
    def admit(self, name: str, share: float, answers: int) -> None:
        """Ask for a share of what the key may have in a minute."""
        holder = self.holders[name]
        self._admit(holder, max(1, round(share * (holder.limits.tokens_per_minute or 100))), answers)

    @precondition(lambda self: any(holder.running for holder in self.holders.values()))
    @rule(data=st.data(), seconds=st.sampled_from([20.0, 61.0]))
    def give_back_late(self, data: st.DataObject, seconds: float) -> None:
        """End an answer unused when others have used the tokens that drained, and ask for them again."""
        running = [(holder, one) for holder in self.holders.values() for one in holder.running]
        holder, one = data.draw(st.sampled_from(running))
        self.pass_time(seconds)
        self._admit(holder, holder.limits.tokens_per_minute or 100, 1)
        self._settle(holder, one, 0, 0)
        self._written()
        self._admit(holder, one.tokens, 1)

    @precondition(lambda self: any(holder.running for holder in self.holders.values()))
    @rule(data=st.data())
    def settle(self, data: st.DataObject) -> None:
        running = [(holder, one) for holder in self.holders.values() for one in holder.running]
        holder, one = data.draw(st.sampled_from(running))
        used = data.draw(st.sampled_from([0, one.tokens // 2, one.tokens]))
        prompt = data.draw(st.integers(0, used))
        self._settle(holder, one, prompt, used - prompt)
        self._written()

    @rule(name=st.sampled_from(NAMES), limits=LIMITS)
    def change_limits(self, name: str, limits: Limits) -> None:
        self.run(self.backend.set_limits(self.ledger, name, limits))
        self.holders[name].limits = limits
        self.holders[name].limits_number += 1

    @rule(name=st.sampled_from(NAMES), limits=LIMITS)
    def replace_key(self, name: str, limits: Limits) -> None:
        self.run(self.ledger.revoke(name))
        self.revoked.append(self.holders[name].key)
        self.holders[name].key, self.holders[name].limits = self._create(name, limits), limits
        self.holders[name].limits_number += 1

    @rule(seconds=st.sampled_from([0.5, 3.0, 20.0, 61.0]))
    def pass_time(self, seconds: float) -> None:
        self.run(self.backend.pass_time(self.ledger, seconds))

    @rule()
    def midnight(self) -> None:
        self.backend.clock.day = f"2030-01-{next(self.days):02}"
        for holder in self.holders.values():
            holder.counted = []

    @rule()
    def kill_and_restart(self) -> None:
        """What ran is gone and costs nothing; what was written counts on."""
        self.run(self.backend.kill(self.ledger))
        self.ledger = self.run(self.backend.open())
        for holder in self.holders.values():
            holder.admitted = []

    @invariant()
    def revoked_keys_open_nothing(self) -> None:
        for key in self.revoked[-1:]:
            with pytest.raises(Unauthorised):
                self.run(self.ledger.admit(key, 1, 1))

    @rule()
    def usage_is_what_was_used(self) -> None:
        lines = {line.key: line for line in self.run(self.ledger.usage(self.backend.clock.day))}
        for name, holder in self.holders.items():
            prompt, completion = (sum(part) for part in zip((0, 0), *holder.counted, strict=True))
            if holder.counted:
                assert lines[name][2:] == (len(holder.counted), prompt, completion)
            else:
                assert name not in lines

    @invariant()
    def nothing_is_negative(self) -> None:
        for holder in self.holders.values():
            for one in holder.running[-1:]:
                assert one.reservation.account.answers >= 0
                assert one.reservation.account.tokens_held >= 0
                assert all(int(v) >= 0 for n, v in one.reservation.headers().items() if "remaining" in n)

    def teardown(self) -> None:
        """Everything comes back: when all has ended and a minute is over, each key has all of its limits."""
        if self.holders:
            for holder in self.holders.values():
                for one in holder.running:
                    self._settle(holder, one, 0, 0)
            self._written()
            self.backend.clock.day = "2030-12-31"
            self.run(self.backend.pass_time(self.ledger, 125))
            for name, holder in self.holders.items():
                most = Limits(answers_at_once=4, tokens_per_minute=100, tokens_per_day=100)
                self.run(self.backend.set_limits(self.ledger, name, most))
                self.run(self.ledger.admit(holder.key, 100, 4))
        self.run(self.ledger.close())
        self.run(self.backend.close())
        self.runner.close()
        shutil.rmtree(self.folder)

    def _admit(self, holder: Holder, tokens: int, answers: int) -> None:
        now = self.backend.clock.now()
        try:
            reservation = self.run(self.ledger.admit(holder.key, tokens, answers))
        except RateLimited:
            return
        holder.admitted.append(Admitted(now, tokens, answers, holder.limits_number, reservation))
        self._within_limits(holder, now)

    def _create(self, name: str, limits: Limits) -> Key:
        secret: str = self.run(self.ledger.create(name, limits, NORMAL))
        self.run(self.backend.catch_up(self.ledger))
        key: Key | None = self.run(self.ledger.find(secret.encode()))
        assert key is not None and key.limits == limits
        return key

    def _settle(self, holder: Holder, one: Admitted, prompt: int, completion: int) -> None:
        one.reservation.settle(prompt, completion)
        one.used = prompt, completion
        holder.counted.append((prompt, completion))

    def _written(self) -> None:
        now = self.backend.clock.seconds
        self.run(self.backend.catch_up(self.ledger))
        self.backend.clock.seconds = now

    def _within_limits(self, holder: Holder, now: float) -> None:
        """Of the key that has just been let in: answers, the day, and every window of time that ends now."""
        limits = holder.limits
        if limits.answers_at_once is not None:
            assert sum(one.answers for one in holder.running) <= limits.answers_at_once
        if limits.tokens_per_day is not None:
            held = sum(one.tokens for one in holder.running)
            assert sum(map(sum, holder.counted)) + held <= limits.tokens_per_day
        for limit, cost in (("requests_per_minute", _requests), ("tokens_per_minute", _tokens)):
            if (size := getattr(limits, limit)) is None:
                continue
            total = 0.0
            for one in reversed(holder.admitted):
                if one.limits_number != holder.limits_number:
                    break
                total += cost(one)
                assert total <= size * (1 + (now - one.at) / 60) + ROUNDING, f"{limit} from {one.at} to {now}"


def _requests(_: Admitted) -> int:
    return 1


def _tokens(one: Admitted) -> int:
    return one.tokens if one.used is None else sum(one.used)


STORIES = settings(
    max_examples=25, stateful_step_count=20, deadline=None, derandomize=True, database=None,
    suppress_health_check=[HealthCheck.too_slow],
)  # fmt: skip


def test_memory() -> None:
    run_state_machine_as_test(LedgerMachine, settings=STORIES)


@pytest.fixture(scope="module")
def redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with redis_server(tmp_path_factory.mktemp("redis")) as server:
        yield server


@pytest.mark.skipif(SERVER is None, reason="no redis-server here; `make test` brings one")
def test_redis(redis: RedisServer) -> None:
    machine = type("RedisMachine", (LedgerMachine,), {"redis_url": redis.url})
    run_state_machine_as_test(machine, settings=STORIES)
