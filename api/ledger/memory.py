"""The ledger of one process: keys in a JSON file, usage in an SQLite file, limits in memory.

A restart forgets what was left of a minute. The day's tokens are read from the usage file, if there is one.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from api.errors import NotFound, SettingsError
from api.ledger import key_file
from api.ledger.account import Account
from api.ledger.key_file import WatchedKeys
from api.ledger.keys import API_KEY_NAME, NORMAL, Key, Limits
from api.ledger.ledger import Ledger, Reservation, unauthorised
from api.ledger.usage import Line, Usage, today


class MemoryLedger(Ledger):
    def __init__(
        self,
        keys_file: Path | None = None,
        usage_file: Path | None = None,
        api_key: str | None = None,
        now: Callable[[], float] = time.monotonic,
        today: Callable[[], str] = today,
    ) -> None:
        """Raises: SettingsError if a file cannot be used."""
        super().__init__(api_key)
        self.required = keys_file is not None or api_key is not None
        self.many_keys = keys_file is not None
        self._keys_file = keys_file
        reserved = API_KEY_NAME if api_key is not None else None
        self._watched = WatchedKeys(keys_file, reserved, now) if keys_file else None
        self._usage = Usage(usage_file, today)
        self._accounts: dict[str, Account] = {}
        self._now = now
        self._numbers = count(1)
        self._today = today

    def start(self) -> None:
        """Do nothing: files need no background work on the event loop."""

    async def close(self) -> None:
        await asyncio.to_thread(self._usage.close)

    async def _find(self, digest: str) -> Key | None:
        return self._watched.get(digest) if self._watched else None

    def check(self, key: Key, answers: int) -> None:
        self._require(self._account(key), key, 1, answers)

    async def admit(self, key: Key, tokens: int, answers: int) -> Reservation:
        current = key if key == self._api_key else await self._find(key.sha256)
        if current is None:
            raise unauthorised()
        account = self._account(current)
        self._require(account, current, tokens, answers)
        id = str(next(self._numbers))
        account.requests.charge(id, 1)
        account.tokens.charge(id, tokens)
        account.answers += answers
        account.tokens_held += tokens
        return MemoryReservation(key.name, account, self._usage, tokens, answers, id)

    async def usage(self, day: str | None = None, name: str | None = None) -> list[Line]:
        if self._usage.file is None:
            raise NotFound("Usage is not kept: API_USAGE_FILE names no file.")
        return await asyncio.to_thread(self._usage.read, day, name)

    async def keys(self) -> list[Key]:
        return key_file.read_keys(self._required_file())

    async def create(self, name: str, limits: Limits, priority: int = NORMAL) -> str:
        return key_file.create_key(self._required_file(), name, limits, priority)

    async def revoke(self, name: str) -> None:
        key_file.revoke_key(self._required_file(), name)

    async def verify(self) -> None:
        """Do nothing: a file that cannot be used is refused when the ledger is opened."""

    def _required_file(self) -> Path:
        if self._keys_file is None:
            raise SettingsError("API_KEYS_FILE names no file")
        return self._keys_file

    def _account(self, key: Key) -> Account:
        account = self._accounts.get(key.name)
        if account is None:
            account = self._accounts[key.name] = Account(key.limits, self._now)
        elif account.limits != key.limits:
            account.follow(key.limits)
        return account

    def _require(self, account: Account, key: Key, tokens: int, answers: int) -> None:
        used_today = self._usage.tokens_today(key.name)
        if refusal := account.refusal(tokens, answers, used_today, self._today()):
            raise refusal


@dataclass(slots=True)
class MemoryReservation(Reservation):
    name: str
    account: Account
    usage: Usage
    tokens: int
    answers: int
    id: str  # of its charges

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        self.account.answers -= self.answers
        self.account.tokens_held -= self.tokens
        self.account.drain()
        self.account.tokens.give_back(self.id, self.tokens - prompt_tokens - completion_tokens)
        self.usage.add(self.name, prompt_tokens, completion_tokens)
