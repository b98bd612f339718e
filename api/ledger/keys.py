"""Define a key: its name, limits and priority, and the SHA-256 of its secret.

Only hashes are stored: a secret is 256 random bits, so a slow hash would protect nothing more.
"""

import hashlib
import secrets
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError

from api.errors import SettingsError

PREFIX = "fc-"
API_KEY_NAME = "default"  # the name of the key that API_KEY holds; no other key may have it
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


def new_key(name: str, limits: Limits, priority: int = NORMAL, secret: str | None = None) -> tuple[str, Key]:
    """Return a secret, random without one, and the key of it. Raises: SettingsError if `name` is no name."""
    secret = secret if secret is not None else PREFIX + secrets.token_urlsafe(32)
    try:
        return secret, Key(
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


def require_free(name: str, keys: Iterable[Key]) -> None:
    """Raises: SettingsError if no new key may have this name."""
    if name == API_KEY_NAME:
        raise SettingsError(f"{name!r} is the name of API_KEY; choose another")
    if any(key.name == name for key in keys):
        raise SettingsError(f"there is a key named {name!r} already; revoke it first")


def no_such_key(name: str) -> SettingsError:
    return SettingsError(f"there is no key named {name!r}")
