"""Requests and tokens by key and day, in SQLite. A thread writes them as each request ends."""

import queue
import sqlite3
import threading
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from api.errors import SettingsError
from api.telemetry.log import log

_TABLE = """
CREATE TABLE IF NOT EXISTS usage (
  day TEXT NOT NULL, key TEXT NOT NULL, requests INTEGER NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL, PRIMARY KEY (day, key)
) WITHOUT ROWID
"""
_ADD = """
INSERT INTO usage VALUES (?, ?, 1, ?, ?) ON CONFLICT (day, key) DO UPDATE SET
  requests = requests + 1, prompt_tokens = prompt_tokens + excluded.prompt_tokens,
  completion_tokens = completion_tokens + excluded.completion_tokens
"""
_READ = """
SELECT * FROM usage WHERE day = coalesce(:day, day) AND key = coalesce(:key, key) ORDER BY day DESC, key
"""
_BUSY_TIMEOUT_S = 10


class Line(NamedTuple):
    """day: YYYY-MM-DD in UTC."""

    day: str
    key: str
    requests: int
    prompt_tokens: int
    completion_tokens: int


def today() -> str:
    """Return the day in UTC, YYYY-MM-DD."""
    return datetime.now(UTC).date().isoformat()


class Usage:
    """Count what keys have used. file: None to remember it only as long as the process lives."""

    def __init__(self, file: Path | None, today: Callable[[], str] = today) -> None:
        """Raises: SettingsError if the file cannot be opened or is no database of ours."""
        self.file = file
        self._now_today = today
        self._day = today()
        self._tokens: dict[str, int] = {}
        self._queue: queue.SimpleQueue[tuple[str, str, int, int] | threading.Event | None] = (
            queue.SimpleQueue()
        )
        self._thread: threading.Thread | None = None
        if file is not None:
            for line in read_usage(file, self._day):
                self._tokens[line.key] = line.prompt_tokens + line.completion_tokens
            self._thread = threading.Thread(target=self._write, args=(file,), name="usage", daemon=True)
            self._thread.start()

    def tokens_today(self, key: str) -> int:
        if self._day != (day := self._now_today()):
            self._day, self._tokens = day, {}
        return self._tokens.get(key, 0)

    def add(self, key: str, prompt_tokens: int, completion_tokens: int) -> None:
        self._tokens[key] = self.tokens_today(key) + prompt_tokens + completion_tokens
        if self._thread is not None:
            self._queue.put((self._day, key, prompt_tokens, completion_tokens))

    def read(self, day: str | None = None, key: str | None = None) -> list[Line]:
        """Return the file's lines, newest day first, with all that was added before; blocks for a moment."""
        assert self.file is not None
        if self._thread is not None and self._thread.is_alive():
            written = threading.Event()
            self._queue.put(written)
            written.wait(_BUSY_TIMEOUT_S)
        return read_usage(self.file, day, key)

    def close(self) -> None:
        """Write what is left; blocks for a moment."""
        if self._thread is not None:
            self._queue.put(None)
            self._thread.join(_BUSY_TIMEOUT_S)

    def _write(self, file: Path) -> None:
        with _open(file) as database:
            while (row := self._queue.get()) is not None:
                if isinstance(row, threading.Event):
                    row.set()
                    continue
                try:
                    with database:
                        database.execute(_ADD, row)
                except sqlite3.Error as error:  # a full disk must not end the service
                    log.error("event=usage_lost key=%s error=%r", row[1], str(error))
        database.close()


def read_usage(file: Path, day: str | None = None, key: str | None = None) -> list[Line]:
    """Return the lines of `day` and `key`, or of all, newest day first. Raises: SettingsError."""
    database = _open(file)
    try:
        rows = database.execute(_READ, {"day": day, "key": key}).fetchall()
    except sqlite3.Error as error:  # it was cut off, or its table is not ours
        raise _unusable(file, error) from None
    finally:
        database.close()
    return [Line(*row) for row in rows]


def _open(file: Path) -> sqlite3.Connection:
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        database = sqlite3.connect(file, timeout=_BUSY_TIMEOUT_S)
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("PRAGMA synchronous=NORMAL")  # with WAL: whole after a crash of the process
        database.execute(_TABLE)
    except (OSError, sqlite3.Error) as error:
        raise _unusable(file, error) from None
    return database


def _unusable(file: Path, error: Exception) -> SettingsError:
    return SettingsError(
        f"API_USAGE_FILE {file} cannot be used: {error}; restore it, or remove it to count anew"
    )
