"""Read the settings from the environment (`FRONTEND_*`)."""

import json
import os
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    HttpUrl,
    SecretStr,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from errors import SettingsError
from votes import VoteFile

PREFIX = "FRONTEND_"
SPACE_PORTS = (80, 443, 8080)
Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class Example(BaseModel):
    """A prompt to try: `title` on the button, `prompt` to the model."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    title: Text
    prompt: Text


DEFAULT_EXAMPLES = (
    Example(title="Explain an idea", prompt="Explain what a hash table is, in five sentences."),
    Example(title="Write some code", prompt="Write a Python function that reverses a string."),
    Example(title="Rewrite a text", prompt="Make this polite: send me the report today."),
)


def _read_json(path: str) -> object:
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(error.strerror) from error


class Settings(BaseSettings):
    """Every option of the page; each field is the variable `FRONTEND_<FIELD>`.

    intro, examples: in place of what the API says of its model. The variable of the examples names a JSON
    file, a list of `{"title": ..., "prompt": ...}`
    context_tokens: for the meter and the answer length, if the API does not report it
    votes: the file that votes are appended to; without it the page does not ask for votes
    trusted_proxies: addresses and networks whose X-Forwarded-For names the visitor; without it nobody's does
    space_id: set by Hugging Face on a Space
    """

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, env_ignore_empty=True, frozen=True, validate_default=False
    )

    api_url: HttpUrl
    api_key: SecretStr | None = None
    host: str = "127.0.0.1"
    port: int = Field(default=7860, ge=1, le=65535)
    root_path: str = ""
    title: Text = "Chat"
    intro: str = ""
    examples: Annotated[tuple[Example, ...], NoDecode, BeforeValidator(_read_json)] = ()
    temperature: float = Field(default=0.7, ge=0, le=2)
    max_tokens: int = Field(default=512, ge=16, le=4096)
    context_tokens: int | None = Field(default=None, ge=1)
    attribution: str = ""
    votes: Path | None = None
    visitor_answers: int = Field(default=4, ge=2)
    visitor_messages_per_minute: int = Field(default=30, ge=1)
    trusted_proxies: str = ""
    history_secret: SecretStr = SecretStr("finechat")
    space_id: str = Field(default="", validation_alias="SPACE_ID")

    @field_validator("root_path")
    @classmethod
    def _is_a_prefix(cls, path: str) -> str:
        if path and not path.startswith("/"):
            raise ValueError("begins with a slash, such as /chat")
        return path.rstrip("/")

    @field_validator("trusted_proxies")
    @classmethod
    def _are_addresses(cls, proxies: str) -> str:
        """Refuse a name, which uvicorn would ignore in silence, and whatever trusts everybody."""
        parts = [part.strip() for part in proxies.split(",") if part.strip()]
        for part in parts:
            try:
                network = ip_network(part)
            except ValueError:
                raise ValueError(f"{part!r} is not an address or network such as 10.1.0.0/16") from None
            if not network.prefixlen:
                raise ValueError(f"{part} is everybody, so visitors could choose their address")
        return ",".join(parts)

    @field_validator("votes")
    @classmethod
    def _can_be_written(cls, votes: Path | None) -> Path | None:
        if votes:
            try:
                VoteFile(votes)
            except OSError as error:
                raise ValueError(f"cannot be written, or the key next to it: {error.strerror}") from error
        return votes

    @model_validator(mode="after")
    def _can_be_reached(self) -> Self:
        if self.space_id and self.api_url.port not in SPACE_PORTS:
            ports = ", ".join(map(str, SPACE_PORTS))
            raise ValueError(
                f"FRONTEND_API_URL={self.api_url}: a Space reaches other hosts at the ports {ports}"
            )
        return self


def load_settings() -> Settings:
    """Return the settings of the environment.

    Raises: SettingsError, which names every wrong or unknown variable in one line
    """
    known = {PREFIX + field.upper() for field in Settings.model_fields} - {"FRONTEND_SPACE_ID"}
    unknown = sorted(name for name in os.environ if name.startswith(PREFIX) and name not in known)
    if unknown:
        raise SettingsError(
            f"unset {', '.join(unknown)}: not an option; the options are {', '.join(sorted(known))}"
        )
    try:
        return Settings()
    except ValidationError as error:
        wrong = [_complaint(e["loc"], e["input"], e["msg"]) for e in error.errors()]
        raise SettingsError(f"set {'; '.join(wrong)}") from error


def _complaint(location: tuple[int | str, ...], seen: object, problem: str) -> str:
    problem = problem.removeprefix("Value error, ")
    if not location:
        return problem
    if location == ("api_url",) and problem == "Field required":
        return "FRONTEND_API_URL to the address of an OpenAI-style API, such as http://127.0.0.1:8000"
    field, *item = location  # `item` is a place in the file of examples
    where = f" item {'.'.join(map(str, item))}" if item else f"={seen}"
    return f"{PREFIX}{str(field).upper()}{where}: {problem}"
