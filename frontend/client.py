"""Client of an OpenAI-style API: fetch its status, stream an answer.

It never retries by itself, and it logs how a request went but never its text.
"""

import asyncio
import hmac
import json
import logging
import secrets
import time
import uuid
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress
from dataclasses import asdict, dataclass
from typing import Any

import httpx

from conversations import Message
from errors import ApiError, CutShort, Malformed, Refused, Unreachable

STATUS_TTL_S = 2.0  # all open pages share one status for this long
STATUS_TIMEOUT_S = 5.0
SILENCE_TIMEOUT_S = 120.0  # a busy API may let a chat wait before its first token

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Model:
    """A model of the API's list.

    context_tokens, licence, description, examples: None and empty if the API does not report them. vLLM
    reports the first, finechat all of them.
    """

    id: str
    context_tokens: int | None = None
    licence: str = ""
    description: str = ""
    examples: tuple[str, ...] = ()


@dataclass(frozen=True)
class Status:
    """The models of the API, or why there are none."""

    models: tuple[Model, ...] = ()
    failure: ApiError | None = None

    def model(self, name: object) -> Model | None:
        """Return the model with that name, otherwise the first."""
        return next((m for m in self.models if m.id == name), next(iter(self.models), None))


@dataclass(frozen=True)
class Sampling:
    """The settings of an answer. The API decides those that are None or empty."""

    temperature: float
    max_tokens: int | None
    top_p: float | None = None
    seed: int | None = None
    stop: tuple[str, ...] = ()

    def body(self) -> dict[str, Any]:
        """Return the fields of a request."""
        return {name: value for name, value in asdict(self).items() if value not in (None, ())}


@dataclass
class Answer:
    """The part of an answer that has arrived.

    thinking: what the model thought before it
    prompt_tokens, tokens: as the API counts them, None until it reports them
    first_token_s, last_token_s: of thinking or text, since the request was sent
    """

    text: str = ""
    thinking: str = ""
    prompt_tokens: int | None = None
    tokens: int | None = None
    first_token_s: float | None = None
    last_token_s: float = 0.0
    finish_reason: str = ""

    @property
    def all_tokens(self) -> int:
        """Tokens of the conversation including this answer, 0 if the API does not report them."""
        return (self.prompt_tokens or 0) + (self.tokens or 0)


class Api:
    """A client of the API. A process has one, and all chats share its connections."""

    def __init__(
        self, url: str, key: str | None = None, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=url.rstrip("/").removesuffix("/v1"),
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=STATUS_TIMEOUT_S,
            limits=httpx.Limits(max_connections=None),
            transport=transport,
        )
        self._session_key = secrets.token_bytes(16)
        self._lock = asyncio.Lock()
        self._status = Status()
        self._fetched_at = float("-inf")

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def status(self) -> Status:
        """Return the status of the API, at most `STATUS_TTL_S` old. Never raises."""
        async with self._lock:
            if time.monotonic() - self._fetched_at > STATUS_TTL_S:
                self._status = await self._fetch_status()
                self._fetched_at = time.monotonic()
            return self._status

    async def _fetch_status(self) -> Status:
        try:
            models = await self._http.get("/v1/models")
            if models.is_error:
                raise _refused(models)
            listed = tuple(_model(entry) for entry in models.json()["data"])
            if not listed:
                raise Malformed("no model in /v1/models")
            # This route is not part of OpenAI's API: only a clear "not ready" counts, a 404 does not.
            ready = await self._http.get("/health/ready")
            if ready.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                raise _not_ready(ready)
        except ApiError as error:
            return Status(failure=error)
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            return Status(failure=Unreachable(type(error).__name__))
        except (ValueError, LookupError, TypeError, AttributeError):
            return Status(failure=Malformed("/v1/models has an unexpected shape"))
        return Status(listed)

    async def fill(self, answer: Answer, model: str, messages: Sequence[Message], sampling: Sampling) -> None:
        """Add to `answer` what arrives until it is complete. Cancelling this closes the request.

        Raises: ApiError. What arrived before stays in `answer`.
        """
        request_id = uuid.uuid4().hex
        started, outcome = time.monotonic(), "closed"
        try:
            async with aclosing(self._pieces(request_id, model, messages, sampling)) as pieces:
                async for piece in pieces:
                    _take(answer, piece, time.monotonic() - started)
            if not answer.finish_reason:
                raise CutShort("the stream ended without a finish reason")
            outcome = answer.finish_reason
        except httpx.HTTPError as error:
            outcome = type(error).__name__
            raise (CutShort if answer.first_token_s else Unreachable)(outcome) from error
        except ApiError as error:
            outcome = type(error).__name__
            raise
        finally:
            logger.info(
                "chat request_id=%s outcome=%s tokens=%s first_token_s=%s duration_s=%.3f",
                request_id,
                outcome,
                answer.tokens,
                answer.first_token_s and round(answer.first_token_s, 3),
                time.monotonic() - started,
            )

    async def _pieces(
        self, request_id: str, model: str, messages: Sequence[Message], sampling: Sampling
    ) -> AsyncGenerator[dict[str, Any], None]:
        body = {
            "model": model,
            "messages": messages,
            **sampling.body(),
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        async with self._http.stream(
            "POST",
            "/v1/chat/completions",
            json=body,
            headers={"X-Request-ID": request_id, "X-Session-Id": self._session(messages)},
            timeout=httpx.Timeout(STATUS_TIMEOUT_S, read=SILENCE_TIMEOUT_S),
        ) as response:
            if response.is_error:
                await response.aread()
                raise _refused(response)
            async for data in _sse_data(response):
                if data == b"[DONE]":
                    return
                try:
                    piece = json.loads(data)
                except ValueError as error:
                    raise Malformed("an event is not JSON") from error
                if "error" in piece:
                    raise CutShort("the API reported an error within the stream")
                yield piece

    def _session(self, messages: Sequence[Message]) -> str:
        """Return an id of how the conversation begins, so that all its turns reach one replica's cache."""
        begin = messages[: 2 if messages[0]["role"] == "system" else 1]
        return hmac.digest(self._session_key, json.dumps(begin).encode(), "sha256").hex()


def _model(entry: dict[str, Any]) -> Model:
    context, examples = entry.get("max_model_len"), entry.get("examples")
    return Model(
        str(entry["id"]),
        context if isinstance(context, int) and context > 0 else None,
        str(entry.get("licence") or ""),
        str(entry.get("description") or "").strip(),
        tuple(e for e in examples if isinstance(e, str) and e.strip()) if isinstance(examples, list) else (),
    )


async def _sse_data(response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """Yield the payload of each `data:` line.

    `aiter_lines` would not do: it also splits at U+2028 and the like, which JSON may hold unescaped.
    """
    rest = b""
    async for block in response.aiter_bytes():
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                yield line.removeprefix(b"data:").strip()


def _take(answer: Answer, piece: dict[str, Any], elapsed_s: float) -> None:
    for choice in piece.get("choices") or ():
        delta = choice.get("delta") or {}
        text, thinking = delta.get("content"), delta.get("reasoning_content") or delta.get("reasoning")
        if text or thinking:
            answer.text += text or ""
            answer.thinking += thinking or ""
            answer.last_token_s = elapsed_s
            if answer.first_token_s is None:
                answer.first_token_s = elapsed_s
        answer.finish_reason = choice.get("finish_reason") or answer.finish_reason
    if usage := piece.get("usage"):
        answer.prompt_tokens = usage.get("prompt_tokens")
        answer.tokens = usage.get("completion_tokens")


def _refused(response: httpx.Response) -> Refused:
    """Return the exception for an error response whose body is read."""
    try:
        error = response.json()["error"]
        message, code = str(error["message"]), str(error.get("code") or "")
    except (ValueError, LookupError, TypeError, AttributeError):
        message, code = "", ""
    return Refused(response.status_code, message, code, _retry_after_s(response))


def _not_ready(response: httpx.Response) -> Refused:
    """Return why the API is not ready: finechat's says it in `detail`, a proxy in front in an error body."""
    refused = _refused(response)
    with suppress(ValueError, LookupError, TypeError):
        refused.message = str(response.json()["detail"])
    return refused


def _retry_after_s(response: httpx.Response) -> int | None:
    value = response.headers.get("retry-after", "")
    return int(value) if value.isdecimal() else None
