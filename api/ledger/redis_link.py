"""One replica's connections to Redis, and whether Redis can be reached."""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, TypeVar

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from api.errors import LimitsUnavailable, SettingsError
from api.telemetry.log import log

TIMEOUT_S = 2.0
QUESTIONS = 16  # of requests at once, each on a connection
T = TypeVar("T")


class RedisLink:
    """client: redis-py's. reachable: a beat was answered, and nothing has failed since."""

    def __init__(self, url: str, woken: asyncio.Event) -> None:
        """woken: set when Redis is lost, so that a beat looks for it. Raises: SettingsError."""
        try:
            self.client: Any = Redis.from_url(
                url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S,
                retry=Retry(NoBackoff(), 0), decode_responses=True,
            )  # fmt: skip
        except ValueError as error:
            raise SettingsError(f"API_REDIS_URL: {error}") from None
        self.reachable = False
        self.serving = False  # commands report a failure themselves
        self._woken = woken
        self._questions = asyncio.Semaphore(QUESTIONS)
        self._times_reached = 0
        self._logged_gone = False

    async def ask(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask for a request: when its turn has come, and only if Redis can be reached.

        Raises: LimitsUnavailable, here and below.
        """

        async def asked() -> T:
            async with self._questions:
                self.require_reachable()  # beats find out when it is: nobody waits for a timeout meanwhile
                return await self._guarded(question)

        return await _uncancelled(asked())

    async def run(self, question: Callable[[], Awaitable[T]]) -> T:
        """Ask in any case and at once."""
        return await _uncancelled(self._guarded(question))

    def require_reachable(self) -> None:
        if not self.reachable:
            raise gone()

    def lose(self, error: Exception) -> None:
        """Note that Redis cannot be reached until a beat says otherwise."""
        if not self._logged_gone and self.serving:
            self._logged_gone = True
            log.error("event=redis_gone error=%r", str(error))
        self.reachable = False
        self._woken.set()

    @contextlib.asynccontextmanager
    async def beat(self) -> AsyncIterator[None]:
        """Note that Redis can be reached if the block succeeds; what is lost meanwhile needs another beat."""
        away = not self.reachable
        if away:  # every idle connection may have died with Redis, and would fail a request
            with contextlib.suppress(RedisError, OSError):
                await self.client.connection_pool.disconnect(inuse_connections=False)
        yield
        if away:
            self.reachable, self._logged_gone = True, False
            self._times_reached += 1
            log.info("event=redis_reached")

    async def _guarded(self, question: Callable[[], Awaitable[T]]) -> T:
        times_reached = self._times_reached
        try:
            return await question()
        except RedisError as error:
            if times_reached == self._times_reached:  # or it was asked before Redis came back
                self.lose(error)
            raise gone() from error


def gone() -> LimitsUnavailable:
    return LimitsUnavailable("Keys and limits cannot be looked up now. Try again in a few seconds.")


async def _uncancelled(work: Awaitable[T]) -> T:
    """Await `work` in a task of its own.

    redis-py can swallow a cancellation, by Python 3.11's asyncio.wait_for
    (github.com/python/cpython/issues/86296), and a request whose client is gone must end.
    """
    return await asyncio.shield(asyncio.ensure_future(work))
