"""Read the settings from the environment, a file and a directory of secrets.

The first place that has a setting decides: the variable API_<NAME>; `<name>` in the YAML file that API_CONFIG
names; the file API_<NAME> in the directory that API_SECRETS_DIR names, as Docker mounts secrets; the default.
Wrong and unsafe settings are refused with one line. engine/environment.py sets defaults for the engine's own
variables (VLLM_*), and tracing.py reads OTEL_*.
"""

import ipaddress
import os
import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    SecretStr,
    StringConstraints,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    InitSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SecretsSettingsSource,
    SettingsConfigDict,
)

from api.errors import SettingsError

MIN_OPEN_KEY_CHARS = 16
MAX_ADAPTERS = 16
CONFIG, SECRETS = "API_CONFIG", "API_SECRETS_DIR"
_PLACES = {
    CONFIG: "a YAML file of settings; names are in lower case and without API_",
    SECRETS: "a directory of secrets, one file each with the variable's name",
}
_REDIS_URL = re.compile(r"(rediss?|unix)://.")
_ORIGIN = re.compile(r"https?://[a-z0-9.\-\[\]:]+")


def _usable_key(key: SecretStr) -> SecretStr:
    text = key.get_secret_value()
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise ValueError("must be printable ASCII characters without spaces")
    return key


def _parse_origins(origins: Any) -> Any:
    return [part.strip() for part in origins.split(",")] if isinstance(origins, str) else origins


def _origin(text: str) -> str:
    if not _ORIGIN.fullmatch(text):
        raise ValueError(f"{text!r} is not an origin; one is written as https://chat.example.org")
    return text


def _parse_adapters(text: Any) -> Any:
    """Parse `NAME=DIRECTORY,NAME=DIRECTORY` into a dictionary."""
    if not isinstance(text, str):
        return text
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    named = {name: directory for name, _, directory in pairs}
    if len(named) < len(pairs) or not all(named.values()):
        raise ValueError("must be NAME=DIRECTORY,NAME=DIRECTORY,…, with each name once")
    return named


def _redis_url(url: SecretStr) -> SecretStr:
    if not _REDIS_URL.match(url.get_secret_value()):
        raise ValueError("must begin with redis://, rediss:// or unix://")
    return url


Preset = Literal["auto", "latency", "throughput"]
Key = Annotated[SecretStr, AfterValidator(_usable_key)]
RedisUrl = Annotated[SecretStr, AfterValidator(_redis_url)]  # secret, because it may hold a password
AdapterName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,63}$")]
Adapters = Annotated[
    dict[AdapterName, Path], NoDecode, BeforeValidator(_parse_adapters), Field(max_length=MAX_ADAPTERS)
]
Origins = Annotated[
    tuple[Annotated[str, AfterValidator(_origin)], ...], NoDecode, BeforeValidator(_parse_origins)
]


class Settings(BaseSettings):
    """Every option of the service. `--help` and docs/operations.md print the descriptions."""

    model_config = SettingsConfigDict(
        env_prefix="API_",
        env_ignore_empty=True,
        frozen=True,
        validate_by_name=True,
        hide_input_in_errors=True,
    )

    artifacts_dir: Path = Field(
        Path("artifacts"),
        validation_alias="ARTIFACTS_DIR",
        description="directory of artifacts; its models/current names the one to serve",
    )
    base_dir: Path | None = Field(
        None, description="the base model, served as `base` for comparison with the merged model"
    )
    adapters: Adapters = Field(
        {}, description="NAME=DIRECTORY,NAME=DIRECTORY: adapters of that base, served under their names"
    )
    host: str = Field(
        "127.0.0.1",
        description="address to listen on; any but the loopback needs a key or a file of keys",
    )
    port: int = Field(8000, ge=1, le=65535, description="port to listen on")
    key: Key | None = Field(
        None,
        description="one key without limits, named default; 16 characters or more if others can reach it",
    )
    keys_file: Path | None = Field(
        None, description="file of keys for people and programs, with their limits"
    )
    usage_file: Path | None = Field(
        None, description="SQLite file for the keys' usage; without it a restart resets daily budgets"
    )
    redis_url: RedisUrl | None = Field(
        None,
        description="redis://HOST:PORT/0 that replicas share; it holds keys, limits and usage, not files",
    )
    admin_port: int | None = Field(
        None,
        ge=1,
        le=65535,
        description="port of the operator's endpoints, on the loopback only; without it they are off",
    )
    admin_key: Key | None = Field(
        None,
        description="key of that port and of /metrics; at least 16 characters, and different from API_KEY",
    )
    cors_origins: Origins = Field(
        (), description="origins whose web pages may call the API, separated by commas"
    )
    max_model_len: int = Field(
        2048, ge=16, le=1_000_000, description="longest prompt and answer together, in tokens"
    )
    max_num_seqs: int = Field(64, ge=1, le=4096, description="answers that the engine generates at once")
    max_queue: int = Field(
        256,
        ge=1,
        le=100_000,
        description="answers running or waiting; further ones are refused with 503",
    )
    max_queue_tokens: int = Field(
        500_000,
        ge=1,
        le=10**9,
        description="tokens that all waiting requests may cost; further requests are refused with 503",
    )
    request_timeout_s: float = Field(
        600.0,
        gt=0,
        le=86_400,
        description="longest time for a request, in seconds; a client can ask for less",
    )
    strict_max_tokens: bool = Field(
        False, description="refuse a max_tokens above what the context has left, instead of cutting it"
    )
    keep_alive_s: int = Field(
        75,
        ge=1,
        le=3600,
        description="how long an idle connection stays open, in seconds; longer than your proxy's pool",
    )
    max_idle_connections: int = Field(
        4096,
        ge=1,
        le=100_000,
        description="idle connections, at most half of the allowed files; then the longest idle is closed",
    )
    preset: Preset = Field(
        "auto",
        description="engine settings on a GPU: auto, or latency and throughput, which round weights to FP8",
    )
    tensor_parallel_size: int = Field(1, ge=1, le=64, description="GPUs over which each layer is split")
    data_parallel_size: int = Field(
        1, ge=1, le=64, description="copies of the model in one engine, each on API_TENSOR_PARALLEL_SIZE GPUs"
    )
    kv_cache_gib: float = Field(
        1.0, gt=0, le=1024, description="memory for the key-value cache on a CPU, in GiB"
    )
    gpu_memory_share: float = Field(
        0.9, gt=0, le=1, description="share of a GPU's memory for weights and cache"
    )
    drain_timeout_s: float = Field(
        5.0, ge=0, le=3600, description="how long streams may continue after SIGTERM, in seconds"
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (
            init_settings,
            env_settings,
            InitSettingsSource(settings_cls, _config()),
            SecretsSettingsSource(settings_cls, _secrets()),
        )

    @model_validator(mode="after")
    def _adapters_of_a_base(self) -> "Settings":
        if self.adapters and self.base_dir is None:
            raise ValueError(
                "API_ADAPTERS needs API_BASE_DIR, the directory of the model they were trained on"
            )
        return self

    @model_validator(mode="after")
    def _keys_and_usage_in_one_place(self) -> "Settings":
        if self.redis_url and (self.keys_file or self.usage_file):
            raise ValueError(
                "API_REDIS_URL holds keys and usage: API_KEYS_FILE and API_USAGE_FILE must not be set"
            )
        return self

    @model_validator(mode="after")
    def _open_only_with_a_strong_key(self) -> "Settings":
        known = self.keys_file or self.redis_url  # generated keys are strong
        weak = _is_weak(self.key) and (self.key is not None or known is None)
        if weak and not is_loopback(self.host):
            raise ValueError(
                f"API_HOST={self.host} can be reached from other machines, so API_KEY must be set, with "
                f"at least {MIN_OPEN_KEY_CHARS} characters (`openssl rand -hex 24` makes one), or "
                "API_KEYS_FILE; without them use API_HOST=127.0.0.1"
            )
        return self

    @model_validator(mode="after")
    def _admin_only_with_a_strong_key_of_its_own(self) -> "Settings":
        if self.admin_port is not None and self.admin_port == self.port:
            raise ValueError(f"API_ADMIN_PORT={self.admin_port} must differ from API_PORT")
        if (self.admin_port or self.admin_key) and _is_weak(self.admin_key):
            port = self.admin_port
            needs = f"API_ADMIN_PORT={port} needs API_ADMIN_KEY with" if port else "API_ADMIN_KEY must have"
            raise ValueError(
                f"{needs} at least {MIN_OPEN_KEY_CHARS} characters (`openssl rand -hex 24` makes one)"
            )
        if self.admin_key is not None and self.admin_key == self.key:
            raise ValueError("API_ADMIN_KEY must differ from API_KEY, which clients know")
        return self


def _is_weak(key: SecretStr | None) -> bool:
    return key is None or len(key.get_secret_value()) < MIN_OPEN_KEY_CHARS


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def read_settings() -> Settings:
    """Return the settings of this process.

    Raises: SettingsError with one line that names the variable and never contains a key.
    """
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError("; ".join(_line(detail) for detail in error.errors())) from None


def reference() -> list[tuple[str, str, str]]:
    """Return every variable with its default and its description."""
    settings = [
        (_variable(name), _default(field), field.description or "")
        for name, field in Settings.model_fields.items()
    ]
    return [*settings, *((name, "none", text) for name, text in _PLACES.items())]


def _default(field: FieldInfo) -> str:
    return "none" if field.default in (None, (), {}) else str(field.default)


def _variable(name: str) -> str:
    """Return the variable of a field, given the field's name or alias."""
    return "ARTIFACTS_DIR" if name.upper() == "ARTIFACTS_DIR" else f"API_{name.upper()}"


def _config() -> dict[str, Any]:
    """Return the contents of the settings file. Raises: SettingsError."""
    file = os.environ.get(CONFIG)
    if not file:
        return {}
    try:
        content = yaml.safe_load(Path(file).read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise SettingsError(f"{CONFIG}={file} cannot be read: {' '.join(str(error).split())}") from None
    if not isinstance(content, dict | None) or not all(isinstance(name, str) for name in content or {}):
        raise SettingsError(f"{CONFIG}={file} must hold lines of the form `port: 8000`")
    return content or {}


def _secrets() -> str | None:
    """Return the directory of secrets. Raises: SettingsError if it is not a directory."""
    directory = os.environ.get(SECRETS) or None
    if directory and not Path(directory).is_dir():
        raise SettingsError(f"{SECRETS}={directory} is not a directory")
    return directory


def _line(detail: ErrorDetails) -> str:
    message = str(detail["msg"]).removeprefix("Value error, ")
    if not detail["loc"]:
        return message
    name = str(detail["loc"][0])
    variable = _variable(name)
    if detail["type"] == "extra_forbidden":
        return f"{CONFIG} {os.environ[CONFIG]}: {name} is not a setting"
    secret = name.lower().endswith(("key", "redis_url"))
    seen = "" if secret or len(detail["loc"]) > 1 else f"={detail['input']}"
    if os.environ.get(variable):
        return f"{variable}{seen}: {message}"
    if name in _config():
        return f"{CONFIG} {os.environ[CONFIG]}: {name}{seen}: {message}"
    return f"{SECRETS} {os.environ.get(SECRETS)}: {variable}{seen}: {message}"
