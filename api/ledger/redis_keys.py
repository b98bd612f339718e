"""The keys in Redis, as one replica knows them: those it has seen, and batched lookups of the others."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from itertools import islice

from api.errors import LimitsUnavailable
from api.ledger.keys import Key
from api.telemetry.log import log

_BATCH = 100


class KnownKeys:
    """Keys that this replica has seen, by SHA-256.

    An unknown credential is looked up in Redis, together with the others that arrived during the lookup
    before it. There is one lookup at a time, so a flood of unknown credentials takes one connection.
    """

    def __init__(self, read: Callable[[list[str]], Awaitable[list[str | None]]]) -> None:
        """read: returns the JSON of the keys with these hashes. Raises: LimitsUnavailable."""
        self._read = read
        self._keys: dict[str, tuple[str, Key]] = {}  # with the JSON that the key was made from
        self._wanted: dict[str, asyncio.Future[Key | LimitsUnavailable | None]] = {}
        self._looking: asyncio.Task[None] | None = None

    async def find(self, digest: str) -> Key | None:
        """Raises: LimitsUnavailable."""
        if digest in self._keys:
            return self._keys[digest][1]
        if digest not in self._wanted:
            self._wanted[digest] = asyncio.get_running_loop().create_future()
        if self._looking is None or self._looking.done():
            self._looking = asyncio.create_task(self._look_up())
        found = await asyncio.shield(self._wanted[digest])  # others may wait for the same
        if isinstance(found, LimitsUnavailable):
            raise LimitsUnavailable(found.message)
        return found

    def update(self, digest: str, text: str | None) -> Key | None:
        """Remember a key by its JSON and return it; forget it if it is gone or no key."""
        if text is None:
            self._keys.pop(digest, None)
            return None
        if digest not in self._keys or self._keys[digest][0] != text:
            try:
                self._keys[digest] = text, Key.model_validate_json(text)
            except ValueError as error:
                log.error("event=key_unreadable sha256=%s error=%r", digest, str(error))
                self._keys.pop(digest, None)
                return None
        return self._keys[digest][1]

    async def refresh(self) -> None:
        """Read again all keys that are remembered. Raises: LimitsUnavailable."""
        digests = list(self._keys)
        for start in range(0, len(digests), _BATCH):
            await self._fetch(digests[start : start + _BATCH])

    async def _look_up(self) -> None:
        while self._wanted:
            # Taken out first: who asks from now on may ask for a key that is created meanwhile.
            batch = {digest: self._wanted.pop(digest) for digest in list(islice(self._wanted, _BATCH))}
            try:
                found: Iterable[Key | LimitsUnavailable | None] = await self._fetch(list(batch))
            except LimitsUnavailable as error:
                found = [error] * len(batch)
            for future, result in zip(batch.values(), found, strict=True):
                future.set_result(result)

    async def _fetch(self, digests: list[str]) -> list[Key | None]:
        texts = await self._read(digests)
        return [self.update(digest, text) for digest, text in zip(digests, texts, strict=True)]
