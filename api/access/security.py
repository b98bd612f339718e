"""The gate in front of every route: the key, and limits on bytes, before anything is parsed.

Deny by default: a path that is not in OPEN_PATHS needs the key, whether a route exists or not.
The decision reads scope["path"], which routing reads too, never a URL rebuilt from headers.
"""

import asyncio
import hashlib
import hmac

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import (
    ApiError,
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    HeadersTooLarge,
    Unauthorised,
)
from api.settings import Settings

OPEN_PATHS = frozenset({"/health/live", "/health/ready"})
MAX_BODY_BYTES = 2**20
MAX_HEADER_BYTES = 16 * 2**10
BODY_TIMEOUT_S = 10.0


class Gate:
    """ASGI: lets through what is authorised and small."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self._app = app
        self._key_digest = None if settings.key is None else _digest(settings.key.get_secret_value().encode())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        try:
            self._authorise(scope)
            _check_headers(scope)
            if scope["method"] == "POST":
                receive = _replay(await _read_body(scope, receive), receive)
        except ClientGone:
            return
        except ApiError as error:
            await error.response()(scope, receive, send)
            return
        await self._app(scope, receive, send)

    def _authorise(self, scope: Scope) -> None:
        if self._key_digest is None or scope["path"] in OPEN_PATHS:
            return
        scheme, _, credential = _header(scope, b"authorization").partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(
            _digest(credential.strip()), self._key_digest
        ):
            raise Unauthorised("A valid API key is needed: `Authorization: Bearer $API_KEY`.")


def _check_headers(scope: Scope) -> None:
    """h11 bounds what it buffers, but lets through a head that arrives in one piece.

    Raises: HeadersTooLarge.
    """
    size = len(scope["raw_path"]) + len(scope["query_string"])
    size += sum(len(name) + len(value) for name, value in scope["headers"])
    if size > MAX_HEADER_BYTES:
        raise HeadersTooLarge(f"The address and headers are larger than {MAX_HEADER_BYTES} bytes.")


async def _read_body(scope: Scope, receive: Receive) -> bytes:
    """Raises: BodyTooLarge, BodyTimeout, ClientGone."""
    declared = _header(scope, b"content-length")
    if declared.isdigit() and int(declared) > MAX_BODY_BYTES:
        raise _too_large()
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                body += message.get("body", b"")
                if len(body) > MAX_BODY_BYTES:
                    raise _too_large()
                if not message.get("more_body"):
                    return bytes(body)
    except TimeoutError:
        raise BodyTimeout(f"The body did not arrive within {BODY_TIMEOUT_S:g} s.") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """The body that was read, once; then what the connection says."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""


def _digest(secret: bytes) -> bytes:
    """Digests are compared, so that the time taken tells nothing about the key's length."""
    return hashlib.sha256(secret).digest()
