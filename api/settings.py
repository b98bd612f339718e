"""Settings from the environment, refused with one line if they are wrong or unsafe.

The engine's own variables (VLLM_*) are defaulted in engine/engine.py, not here.
"""

import ipaddress
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator, Field, SecretStr, ValidationError, model_validator
from pydantic_core import ErrorDetails
from pydantic_settings import BaseSettings, SettingsConfigDict

from api.errors import SettingsError

MIN_OPEN_KEY_CHARS = 16


def _usable_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII characters without spaces")
    return key


Key = Annotated[SecretStr, AfterValidator(_usable_key)]


class Settings(BaseSettings):
    """Every option of the service: API_<NAME>, and ARTIFACTS_DIR, which the trainer shares."""

    model_config = SettingsConfigDict(
        env_prefix="API_",
        env_ignore_empty=True,
        frozen=True,
        validate_by_name=True,
        hide_input_in_errors=True,
    )

    artifacts_dir: Path = Field(default=Path("artifacts"), validation_alias="ARTIFACTS_DIR")
    host: str = "127.0.0.1"
    port: int = Field(default=8000, ge=1, le=65535)
    key: Key | None = None
    admin_port: int | None = Field(default=None, ge=1, le=65535)
    admin_key: Key | None = None
    keys_file: Path | None = None
    usage_file: Path | None = None
    max_model_len: int = Field(default=2048, ge=16, le=1_000_000)
    max_num_seqs: int = Field(default=64, ge=1, le=4096)
    max_queue: int = Field(default=256, ge=1, le=100_000)
    max_queue_tokens: int = Field(default=500_000, ge=1, le=10**9)
    request_timeout_s: float = Field(default=600.0, gt=0, le=86_400)
    kv_cache_gib: float = Field(default=1.0, gt=0, le=1024)
    drain_timeout_s: float = Field(default=5.0, ge=0, le=3600)

    @model_validator(mode="after")
    def _open_only_with_a_strong_key(self) -> "Settings":
        weak = _is_weak(self.key) and (self.key is not None or self.keys_file is None)
        if weak and not is_loopback(self.host):
            raise ValueError(
                f"API_HOST={self.host} can be reached from other machines, so API_KEY must be set, with "
                f"at least {MIN_OPEN_KEY_CHARS} characters (`openssl rand -hex 24` makes one), or "
                "API_KEYS_FILE; without them use API_HOST=127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _admin_only_with_a_strong_key_of_its_own(self) -> "Settings":
        if self.admin_port is None:
            return self
        if self.admin_port == self.port:
            raise ValueError(f"API_ADMIN_PORT={self.admin_port} must be another than API_PORT")
        if _is_weak(self.admin_key):
            raise ValueError(
                f"API_ADMIN_PORT={self.admin_port} needs API_ADMIN_KEY with at least {MIN_OPEN_KEY_CHARS} "
                "characters (`openssl rand -hex 24` makes one)"
            )
        if self.admin_key == self.key:
            raise ValueError("API_ADMIN_KEY must be another than API_KEY, which clients know")
        return self


def _is_weak(key: SecretStr | None) -> bool:
    return key is None or len(key.get_secret_value()) < MIN_OPEN_KEY_CHARS


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings() -> Settings:
    """The settings of this process.

    Raises: SettingsError, one line naming the variable; the key is never part of it.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_line(detail) for detail in error.errors())) from None


def _line(detail: ErrorDetails) -> str:
    name = str(detail["loc"][0]) if detail["loc"] else ""
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not name:
        return message
    variable = name if name.isupper() else f"API_{name.upper()}"
    seen = "" if name.endswith("key") else f"={detail['input']}"
    return f"{variable}{seen}: {message}"
