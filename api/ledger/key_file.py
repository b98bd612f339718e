"""The JSON file of keys (API_KEYS_FILE): written by one process at a time, read again when it changes."""

import contextlib
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import Field, ValidationError, field_validator

from api.errors import SettingsError
from api.ledger.keys import NORMAL, Key, Limits, _Strict, new_key, no_such_key, require_free
from api.telemetry.log import log

CHECK_EVERY_S = 1.0


class Keys(_Strict):
    keys: list[Key] = Field(default_factory=list)

    @field_validator("keys")
    @classmethod
    def _each_once(cls, keys: list[Key]) -> list[Key]:
        for what in ("name", "sha256"):
            seen = [getattr(key, what) for key in keys]
            if twice := {value for value in seen if seen.count(value) > 1}:
                raise ValueError(f"{what} {min(twice)} is there twice")
        return keys


class WatchedKeys:
    """The keys of a file as it is now, by their SHA-256. A file that breaks changes nothing."""

    def __init__(self, file: Path, reserved: str | None, now: Callable[[], float]) -> None:
        """reserved: a name that no key may have. Raises: SettingsError if the file cannot be used."""
        self._file = file
        self._reserved = reserved
        self._now = now
        self._version = _version(file)
        self._checked_at = now()
        self._keys = self._read()

    def get(self, digest: str) -> Key | None:
        self._read_changes()
        return self._keys.get(digest)

    def _read_changes(self) -> None:
        if self._now() - self._checked_at < CHECK_EVERY_S:
            return
        self._checked_at = self._now()
        version = _version(self._file)
        if version == self._version:
            return
        self._version = version
        try:
            self._keys = self._read()
        except SettingsError as error:
            log.error("event=keys_unreadable kept=%d error=%r", len(self._keys), str(error))
        else:
            log.info("event=keys_read count=%d", len(self._keys))

    def _read(self) -> dict[str, Key]:
        keys = read_keys(self._file)
        if any(key.name == self._reserved for key in keys):
            raise SettingsError(
                f"API_KEYS_FILE {self._file}: {self._reserved!r} is the name of API_KEY: "
                "revoke this key, or do without API_KEY"
            )
        return {key.sha256: key for key in keys}


def read_keys(file: Path) -> list[Key]:
    """Return the keys of the file, none if it does not exist. Raises: SettingsError, one line."""
    try:
        return Keys.model_validate(json.loads(file.read_bytes())).keys
    except FileNotFoundError:
        return []  # none made yet: nobody may come in
    except (OSError, ValueError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            where = ".".join(map(str, first["loc"]))
            raise SettingsError(f"API_KEYS_FILE {file}: {where}: {first['msg']}") from None
        raise SettingsError(f"API_KEYS_FILE {file} cannot be read: {error}") from None


def create_key(file: Path, name: str, limits: Limits, priority: int = NORMAL) -> str:
    """Add a key and return its secret, which is stored nowhere. Raises: SettingsError."""
    secret, key = new_key(name, limits, priority)
    with _writing(file) as keys:
        require_free(name, keys)
        _write(file, [*keys, key])
    return secret


def revoke_key(file: Path, name: str) -> None:
    """Raises: SettingsError if there is none of this name."""
    with _writing(file) as keys:
        left = [key for key in keys if key.name != name]
        if len(left) == len(keys):
            raise no_such_key(name)
        _write(file, left)


def _version(file: Path) -> tuple[int, ...] | None:
    try:
        found = os.stat(file)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns


@contextlib.contextmanager
def _writing(file: Path) -> Iterator[list[Key]]:
    """Give what the file holds, while no other process of ours writes it."""
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = (file.parent / f".{file.name}.lock").open("w")
    except OSError as error:
        raise SettingsError(f"API_KEYS_FILE {file} cannot be written: {error.strerror}") from None
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield read_keys(file)


def _write(file: Path, keys: list[Key]) -> None:
    """Replace the file as a whole, readable to its owner only."""
    scratch = None
    try:
        with tempfile.NamedTemporaryFile("w", dir=file.parent, prefix=f".{file.name}.", delete=False) as new:
            scratch = Path(new.name)
            new.write(Keys(keys=keys).model_dump_json(indent=1) + "\n")
            new.flush()
            os.fsync(new.fileno())
        scratch.replace(file)
    except OSError as error:
        if scratch:
            scratch.unlink(missing_ok=True)
        raise SettingsError(f"API_KEYS_FILE {file} cannot be written: {error.strerror}") from None
