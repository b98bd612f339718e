"""Keys and usage in Redis, as `python -m api keys` and `python -m api usage` write and read them.

shared.py is what the service does with them.
"""

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any

import redis

from api.errors import SettingsError
from api.ledger.keys import NORMAL, Key, KeyFile, Limits, new_key, require_free, unknown
from api.ledger.usage import Line

KEYS = "finechat:keys"  # a hash: SHA-256 → Key as JSON
USAGE = (
    "finechat:usage:"  # with a day: a hash of <key>:requests, <key>:prompt_tokens, <key>:completion_tokens
)
_TIMEOUT_S = 5.0


def read_keys(url: str) -> KeyFile:
    """Raises: SettingsError, one line, here and below."""
    with _connected(url) as client:
        return KeyFile(keys=sorted(_known(client), key=lambda key: key.name))


def create_key(url: str, name: str, limits: Limits, priority: int = NORMAL) -> str:
    """Add a key and return it: it is kept nowhere."""
    secret, key = new_key(name, limits, priority)

    def add(pipeline: Any) -> None:
        require_free(name, _known(pipeline))
        pipeline.multi()
        pipeline.hset(KEYS, key.sha256, key.model_dump_json())

    with _connected(url) as client:
        client.transaction(add, KEYS)
    return secret


def revoke_key(url: str, name: str) -> None:
    with _connected(url) as client:
        found = [key.sha256 for key in _known(client) if key.name == name]
        if not found:
            raise unknown(name)
        client.hdel(KEYS, *found)


def read_usage(url: str, day: str | None = None) -> list[Line]:
    """Of one day or of all, the newest first."""
    with _connected(url) as client:
        places = [f"{USAGE}{day}"] if day else sorted(client.scan_iter(f"{USAGE}*"), reverse=True)
        return [line for place in places for line in usage_lines(place, client.hgetall(place))]


def usage_lines(place: str, counts: Mapping[Any, Any]) -> list[Line]:
    """Of the day that `place` is named for."""
    day = place.removeprefix(USAGE)
    names = sorted({field.partition(":")[0] for field in counts})
    return [
        Line(day, name, *(int(counts.get(f"{name}:{what}", 0)) for what in Line._fields[2:]))
        for name in names
    ]


def require_reachable(url: str) -> None:
    with _connected(url) as client:
        client.ping()


@contextlib.contextmanager
def _connected(url: str) -> Iterator[Any]:
    try:
        with redis.Redis.from_url(
            url, decode_responses=True, socket_timeout=_TIMEOUT_S, socket_connect_timeout=_TIMEOUT_S
        ) as client:
            yield client
    except (redis.RedisError, ValueError) as error:
        raise SettingsError(f"API_REDIS_URL cannot be used: {error}") from None


def _known(client: Any) -> list[Key]:
    return [Key.model_validate_json(told) for told in client.hvals(KEYS)]
