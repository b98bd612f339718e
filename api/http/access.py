"""Checks in front of every route: the key, and limits on bytes, before anything is parsed.

Access is denied by default: a path that is not listed as open needs the key, whether a route exists or not.
The decision reads scope["path"], which routing reads too, never a URL rebuilt from headers.
"""

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.errors import (
    ApiError,
    BodyTimeout,
    BodyTooLarge,
    ClientGone,
    HeadersTooLarge,
    NotFound,
)
from api.http.content_coding import decoded
from api.http.state import RequestState
from api.ledger.keys import Key
from api.ledger.ledger import Ledger, unauthorised

MAX_BODY_BYTES = 2**20
MAX_HEADER_BYTES = 16 * 2**10
BODY_TIMEOUT_S = 10.0
# On every answer: its type is what it says, it is not for caches, and it is not a page.
SECURITY_HEADERS = {
    "x-content-type-options": "nosniff",
    "cache-control": "no-store",
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
}


class AccessControl:
    """ASGI: pass on only requests that are authorised and small."""

    def __init__(
        self,
        app: ASGIApp,
        ledger: Ledger,
        open_paths: frozenset[str],
        operator_paths: frozenset[str] = frozenset(),
        operator: Ledger | None = None,
    ) -> None:
        """operator_paths: open to the key that `operator` knows, and to a client's key only if it is the only
        key there is."""
        self._app = app
        self._ledger = ledger
        self._open_paths = open_paths
        self._operator_paths = operator_paths
        self._operator = operator

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        state = RequestState.of(scope)
        try:
            state.key = await self._authorise(scope)
            _check_headers(scope)
            if scope["method"] == "POST":
                body = await _read_body(scope, receive)
                receive = _replay(await decoded(body, _coding(scope), MAX_BODY_BYTES), receive)
        except ClientGone:
            return
        except ApiError as error:
            await state.refuse(error)(scope, receive, send)
            return
        await self._app(scope, receive, send)

    async def _authorise(self, scope: Scope) -> Key | None:
        if not self._ledger.required or scope["path"] in self._open_paths:
            return None
        credential = _credential(scope)
        for_operator = scope["path"] in self._operator_paths
        if for_operator and self._operator and await self._operator.find(credential):
            return None
        key = await self._ledger.find(credential)
        if key is None:
            raise unauthorised()
        if for_operator and (self._operator or self._ledger.many_keys):
            raise NotFound("There is no such path.")
        return key


def _credential(scope: Scope) -> bytes:
    """Return the key, from `Authorization: Bearer` or, as Anthropic's clients send it, from `x-api-key`.

    Raises: Unauthorised if there is none.
    """
    scheme, _, credential = _header(scope, b"authorization").partition(b" ")
    if scheme.lower() == b"bearer":
        return credential.strip()
    if key := _header(scope, b"x-api-key"):
        return key.strip()
    raise unauthorised()


def _check_headers(scope: Scope) -> None:
    """Limit the head: h11 bounds what it buffers, but passes a head that arrives in one piece.

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
    """Return a `receive` that gives the body once, then what the connection sends."""
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def replayed() -> Message:
        return pending.pop() if pending else await receive()

    return replayed


def _too_large() -> BodyTooLarge:
    return BodyTooLarge(f"The body is larger than {MAX_BODY_BYTES} bytes.")


def _coding(scope: Scope) -> str:
    """Return what the body is compressed with; a list of codings as the client wrote it."""
    return b",".join(value for name, value in scope["headers"] if name == b"content-encoding").decode(
        "latin-1"
    )


def _header(scope: Scope, name: bytes) -> bytes:
    for key, value in scope["headers"]:
        if key == name:
            return bytes(value)
    return b""
