"""Who may come in, and how much they may have: a JSON file of keys, or one key from the environment.

Several replicas have theirs in Redis instead (shared.py).

The file is read again when it changes. Only SHA-256 hashes are kept: a key is 256 random bits, so a slow
hash would protect nothing more. `python -m api keys` writes it.
"""

import contextlib
import fcntl
import hashlib
import hmac
import json
import os
import secrets
import tempfile
import time
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, field_validator

from api.errors import SettingsError
from api.http.log import log

LOOK_EVERY_S = 1.0
PREFIX = "fc-"
SINGLE = "default"  # the name of the key that API_KEY holds
NORMAL = 5

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
Limit = Annotated[int, Field(ge=1, le=10**12)]
Priority = Annotated[
    int, Field(ge=0, le=9, description=f"0 to 9, {NORMAL} without it; the higher, the sooner.")
]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Limits(_Strict):
    """None: no such limit. Tokens are those of prompts and answers together."""

    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    tokens_per_day: Limit | None = Field(None, description="The day is UTC's.")
    answers_at_once: Limit | None = None


class Key(_Strict):
    name: Name
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    created_at: str
    priority: Priority = NORMAL
    limits: Limits = Limits()


class KeyFile(_Strict):
    keys: list[Key] = []

    @field_validator("keys")
    @classmethod
    def _each_once(cls, keys: list[Key]) -> list[Key]:
        for what in ("name", "sha256"):
            seen = [getattr(key, what) for key in keys]
            if twice := {value for value in seen if seen.count(value) > 1}:
                raise ValueError(f"{what} {min(twice)} is there twice")
        return keys


class Keys:
    """The keys that open this service; without any, everyone may come in."""

    def __init__(self, file: Path | None, single: str | None) -> None:
        """Raises: SettingsError if the file cannot be read or is not what it should be."""
        self._file = file
        self._single = {} if single is None else _by_digest([_key(SINGLE, single, Limits())])
        self._stamp = _stamp(file)
        self._looked = time.monotonic()
        self._salts = secrets.token_bytes(32)  # the cache that they are for lasts as long as the process
        self._known = self._single | _by_digest(read_keys(file).keys if file else [])

    @property
    def needed(self) -> bool:
        return self._file is not None or bool(self._single)

    async def find(self, credential: bytes) -> Key | None:
        self._look_again()
        digest = hashlib.sha256(credential).hexdigest()
        found = self._known.get(digest)
        # The dictionary compares hashes, which tell an attacker nothing; this one takes the same time always.
        return found if found and hmac.compare_digest(found.sha256, digest) else None

    def cache_salt(self, key: Key) -> str:
        """Prompts are cached apart by it: or a quick answer would tell a key what others have asked."""
        return hmac.new(self._salts, key.sha256.encode(), hashlib.sha256).hexdigest()

    def _look_again(self) -> None:
        now = time.monotonic()
        if self._file is None or now - self._looked < LOOK_EVERY_S:
            return
        self._looked = now
        stamp = _stamp(self._file)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._known = self._single | _by_digest(read_keys(self._file).keys)
        except SettingsError as error:
            log.error("event=keys_unreadable kept=%d error=%r", len(self._known), str(error))
        else:
            log.info("event=keys_read count=%d", len(self._known))


def read_keys(file: Path) -> KeyFile:
    """Raises: SettingsError, one line."""
    try:
        return KeyFile.model_validate(json.loads(file.read_bytes()))
    except FileNotFoundError:
        return KeyFile()  # none made yet: nobody may come in
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SettingsError(f"API_KEYS_FILE {file}: {where}: {first['msg']}") from None
        raise SettingsError(f"API_KEYS_FILE {file} cannot be read: {error}") from None


def create_key(file: Path, name: str, limits: Limits, priority: int = NORMAL) -> str:
    """Add a key and return it: it is kept nowhere. Raises: SettingsError if the name is taken or wrong."""
    secret, key = new_key(name, limits, priority)
    with _writing(file) as known:
        require_free(name, known.keys)
        _write(file, [*known.keys, key])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Raises: SettingsError if there is none of this name."""
    with _writing(file) as known:
        left = [key for key in known.keys if key.name != name]
        if len(left) == len(known.keys):
            raise unknown(name)
        _write(file, left)


def new_key(name: str, limits: Limits, priority: int) -> tuple[str, Key]:
    """The secret, and what is kept of it. Raises: SettingsError if `name` is no name."""
    secret = PREFIX + secrets.token_urlsafe(32)
    return secret, _key(name, secret, limits, priority)


def require_free(name: str, keys: Iterable[Key]) -> None:
    """Raises: SettingsError."""
    if any(key.name == name for key in keys):
        raise SettingsError(f"there is a key named {name!r} already; revoke it first")


def unknown(name: str) -> SettingsError:
    return SettingsError(f"there is no key named {name!r}")


def _key(name: str, secret: str, limits: Limits, priority: int = NORMAL) -> Key:
    try:
        return Key(
            name=name,
            sha256=hashlib.sha256(secret.encode()).hexdigest(),
            created_at=datetime.now(UTC).isoformat(timespec="seconds"),
            priority=priority,
            limits=limits,
        )
    except ValidationError:
        raise SettingsError(
            f"{name!r} is no name for a key: letters, digits, '.', '_' and '-', 64 at most"
        ) from None


def _by_digest(keys: list[Key]) -> dict[str, Key]:
    return {key.sha256: key for key in keys}


def _stamp(file: Path | None) -> tuple[int, ...] | None:
    try:
        told = os.stat(file) if file else None
    except OSError:
        return None
    return told and (told.st_ino, told.st_size, told.st_mtime_ns)


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[KeyFile]:
    """What the file holds, while no other process of ours writes it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = (file.parent / f".{file.name}.lock").open("w")
    except OSError as error:
        raise SettingsError(f"API_KEYS_FILE {file} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read_keys(file)


def _write(file: Path, keys: list[Key]) -> None:
    """Whole or not at all, and readable to its owner only."""
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
            new.write(KeyFile(keys=keys).model_dump_json(indent=1) + "\n")
            new.flush()
            os.fsync(new.fileno())
        os.replace(new.name, file)
    except OSError as error:
        raise SettingsError(f"API_KEYS_FILE {file} cannot be written: {error.strerror}") from None
