"""ASGI middleware: serve only the paths that the page uses, and forbid calls to other hosts.

Gradio also has routes for uploads, files, proxies and API documents; they answer 404 here. The content
security policy stops the browser from calling another host, whatever an answer contains. Otherwise an image
in an answer could carry the conversation away in its address.
"""

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

EXACT = {
    "/",
    "/config",
    "/theme.css",
    "/favicon.ico",
    "/manifest.json",
    "/robots.txt",
    "/gradio_api/queue/join",
    "/gradio_api/queue/data",
    "/gradio_api/cancel",
    "/gradio_api/reset",
    "/gradio_api/run/predict",
}
BELOW = ("/assets/", "/static/", "/svelte/", "/gradio_api/heartbeat/")
MAX_BODY_BYTES = 2**22  # the whole history and a long chat
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'self'; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
        "style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; font-src 'self' data:; "
        "object-src 'none'; base-uri 'self'; form-action 'none'; "
        "frame-ancestors 'self' https://huggingface.co"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class AllowList:
    """`app`, restricted to the routes above."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI connection."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif scope["type"] == "http":
            await self._answer(scope, receive, _with_headers(send))

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        path, headers = scope["path"], Headers(scope=scope)
        length = headers.get("content-length", "0")
        if path not in EXACT and not path.startswith(BELOW):
            await PlainTextResponse("Not found", 404)(scope, receive, send)
        elif "transfer-encoding" in headers or int(length) > MAX_BODY_BYTES:
            await PlainTextResponse("The conversation is too long", 413)(scope, receive, send)
        else:
            await self._app(scope, receive, send)


def _with_headers(send: Send) -> Send:
    async def wrapped(message: Message) -> None:
        if message["type"] == "http.response.start":
            MutableHeaders(scope=message).update(HEADERS)
        await send(message)

    return wrapped
