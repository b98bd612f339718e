"""Open the ledger that the settings describe."""

from collections.abc import Callable
from pathlib import Path

from api.ledger.ledger import Ledger


def open_ledger(
    *,
    keys_file: Path | None = None,
    usage_file: Path | None = None,
    redis_url: str | None = None,
    api_key: str | None = None,
    artifact: Callable[[], str] = lambda: "",
) -> Ledger:
    """Open the ledger that the settings describe. redis_url excludes the two files.

    artifact: returns the id of what this replica serves now. Raises: SettingsError.
    """
    if redis_url is not None:
        from api.ledger.redis import RedisLedger  # nobody else needs the package

        return RedisLedger(redis_url, api_key, artifact)
    from api.ledger.memory import MemoryLedger

    return MemoryLedger(keys_file, usage_file, api_key)
