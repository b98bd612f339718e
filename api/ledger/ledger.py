"""The interface of the ledger: who may use the service, how much each key has left, and what it has used.

`memory.MemoryLedger` keeps everything in this process and two files; `redis.RedisLedger` shares it between
replicas. `backends.open_ledger` chooses, and tests/api/test_ledger.py is the contract that both pass. For
one request:

    key = await ledger.find(credential)                      # None: nobody we know
    ledger.check(key, answers)                               # before any work is done for it
    reservation = await ledger.admit(key, tokens, answers)   # the most that it can cost
    reservation.settle(prompt_tokens, completion_tokens)     # what it did cost; always, and once
"""

import hashlib
import hmac
import secrets
from abc import ABC, abstractmethod

from api.errors import Unauthorised
from api.ledger.account import Account
from api.ledger.keys import API_KEY_NAME, Key, Limits, new_key
from api.ledger.usage import Line


class Reservation(ABC):
    """Hold a part of a key's limits for a running request."""

    account: Account

    @abstractmethod
    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Record what the request used and release the rest. Call it once, however the request ended."""

    def headers(self) -> dict[str, str]:
        """Return OpenAI's x-ratelimit-* headers."""
        return self.account.rate_headers()


class Ledger(ABC):
    """Keys, limits and usage.

    required: a request needs a key. many_keys: there may be other keys than the one from the environment.
    """

    required = True
    many_keys = True

    def __init__(self, api_key: str | None) -> None:
        """api_key: the key from the environment. It has no limits, and no backend stores it."""
        self._api_key = new_key(API_KEY_NAME, Limits(), secret=api_key)[1] if api_key is not None else None
        self._salt = secrets.token_bytes(32)

    @abstractmethod
    def start(self) -> None:
        """Begin background work; needs a running event loop."""

    @abstractmethod
    async def close(self) -> None:
        """Write what is not written yet. Blocks for a few seconds at most."""

    async def find(self, credential: bytes) -> Key | None:
        """Return the key that `credential` is. Raises: LimitsUnavailable if the backend cannot be asked."""
        digest = hashlib.sha256(credential).hexdigest()
        key = self._api_key if self._api_key and self._api_key.sha256 == digest else await self._find(digest)
        # The lookup compares hashes, so its timing reveals nothing. compare_digest takes constant time.
        return key if key and hmac.compare_digest(key.sha256, digest) else None

    @abstractmethod
    async def _find(self, digest: str) -> Key | None: ...

    @abstractmethod
    def check(self, key: Key, answers: int) -> None:
        """Refuse a key that is known to have nothing left, without asking any other process.

        Raises: RateLimited.
        """

    @abstractmethod
    async def admit(self, key: Key, tokens: int, answers: int) -> Reservation:
        """Reserve what a request can cost at most, by the limits that the key has now.

        tokens: of all prompts and answers. Raises: RateLimited, Unauthorised if the key has been revoked,
        LimitsUnavailable; nothing is reserved then.
        """

    @abstractmethod
    async def usage(self, day: str | None = None, name: str | None = None) -> list[Line]:
        """Return the usage of `day` and of the key `name`, or of all, newest day first."""

    @abstractmethod
    async def keys(self) -> list[Key]:
        """Return the keys that were created, without the one from the environment."""

    @abstractmethod
    async def create(self, name: str, limits: Limits, priority: int) -> str:
        """Create a key and return its secret, which is stored nowhere. Raises: SettingsError."""

    @abstractmethod
    async def revoke(self, name: str) -> None:
        """Delete the key. Raises: SettingsError if there is none of this name."""

    @abstractmethod
    async def verify(self) -> None:
        """Raises: SettingsError or LimitsUnavailable if keys cannot be read where they are kept."""

    def cache_salt(self, key: Key) -> str:
        """Return a salt that keeps the engine's cache of this key's prompts apart from all others.

        Otherwise the time of an answer would reveal what other keys have asked.
        """
        return hmac.new(self._salt, key.sha256.encode(), hashlib.sha256).hexdigest()


def unauthorised() -> Unauthorised:
    return Unauthorised(
        "A valid API key is needed: `Authorization: Bearer $API_KEY`, or `x-api-key: $API_KEY`."
    )
