"""POST /v1/chat/completions: the life of a request, top to bottom.

The gate has authorised it and FastAPI has validated it against the allow list. Here it is admitted,
rendered, generated and sent, whole or as a stream; then it is accounted.
Admission comes before rendering, so that a full house spends no time on tokens it will not use.
"""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import aclosing
from typing import Any

import orjson
from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from starlette.types import Receive, Scope, Send

from api import sse
from api.engine.engine import Delta
from api.errors import ApiError, ClientGone, ContextLengthExceeded, ErrorBody, NotJson
from api.schema.chat import (
    AssistantMessage,
    ChatCompletion,
    ChatRequest,
    Choice,
    FinishReason,
    Usage,
)
from api.service import Service, ServiceOfApp
from api.telemetry import Tally

# A client that reads nothing for so long has left its slot to others.
SEND_TIMEOUT_S = 30.0

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _StrictRequest(Request):
    async def json(self) -> Any:
        """By orjson, which refuses what json lets through: NaN and lone surrogates."""
        return orjson.loads(await self.body())


class _StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                raise NotJson("The body must be JSON, sent as `Content-Type: application/json`.")
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


router = APIRouter(route_class=_StrictRoute)


@router.post(
    "/v1/chat/completions",
    response_class=JSONResponse,
    responses={
        200: {
            "description": "The answer, or with `stream` its chunks as server-sent events.",
            "model": ChatCompletion,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        "4XX": {"model": ErrorBody},
        "5XX": {"model": ErrorBody},
    },
)
async def create_chat_completion(request: ChatRequest, service: ServiceOfApp) -> Response:
    service.lifecycle.require_ready()
    service.require_model(request.model)
    return _Exchange(request, service)


class _Exchange(Response):
    """One admitted request; raw ASGI, so that a chunk goes straight to the server."""

    def __init__(self, request: ChatRequest, service: Service) -> None:
        super().__init__()
        self._request = request
        self._service = service
        self._id = f"chatcmpl-{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._started = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._service.admission.slot():
            try:
                await self._service.lifecycle.guard(self._answer(scope, receive, send), receive)
            except ClientGone:
                self._service.metrics.aborted.inc()
            except ApiError as error:
                if not self._started:
                    raise
                await _send(send, sse.error_frame(error), more=False)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        engine, prompt = self._service.lifecycle.require_ready()
        # Tokenising a long prompt takes milliseconds: not on the event loop.
        prompt_ids = await asyncio.to_thread(prompt.encode, self._request.messages)
        max_tokens = token_budget(len(prompt_ids), self._request.token_limit(), engine.max_model_len)
        tally = Tally(len(prompt_ids), self._service.metrics)
        deltas = engine.generate(
            self._id, prompt_ids, self._request, max_tokens, stream=bool(self._request.stream)
        )
        async with aclosing(deltas):
            if self._request.stream:
                with self._service.metrics.active_streams.track_inprogress():
                    await self._send_stream(deltas, tally, send)
            else:
                response = await self._whole(deltas, tally)
                await response(scope, receive, send)

    async def _send_stream(self, deltas: AsyncIterator[Delta], tally: Tally, send: Send) -> None:
        frames = sse.ChatFrames(
            id=self._id,
            created=self._created,
            model=self._request.model,
            fingerprint=self._service.artifact.manifest.id,
            include_usage=self._request.wants_usage(),
        )
        async for delta in deltas:
            tally.add(delta.tokens)
            frame = b""
            if not self._started and (delta.text or delta.finish_reason):
                # Headers wait for the first text: until then a failure is an HTTP status.
                await send({"type": "http.response.start", "status": 200, "headers": _STREAM_HEADERS})
                self._started = True
                frame = frames.first(delta.text)
            elif delta.text:
                frame = frames.text(delta.text)
            if delta.finish_reason:
                frame += frames.finish(delta.finish_reason)
                frame += frames.usage(_usage(tally)) if self._request.wants_usage() else b""
                frame += sse.DONE
            if frame:
                await _send(send, frame, more=delta.finish_reason is None)

    async def _whole(self, deltas: AsyncIterator[Delta], tally: Tally) -> Response:
        text = ""
        finish_reason: FinishReason = "stop"
        async for delta in deltas:
            tally.add(delta.tokens)
            text += delta.text
            finish_reason = delta.finish_reason or finish_reason
        completion = ChatCompletion(
            id=self._id,
            created=self._created,
            model=self._request.model,
            system_fingerprint=self._service.artifact.manifest.id,
            choices=[Choice(message=AssistantMessage(content=text), finish_reason=finish_reason)],
            usage=_usage(tally),
        )
        return Response(completion.model_dump_json(), media_type="application/json")


def token_budget(prompt_tokens: int, asked: int | None, max_model_len: int) -> int:
    """How many tokens may be generated: what was asked, or all that the context has left.

    Raises: ContextLengthExceeded if prompt and answer do not fit together.
    """
    room = max_model_len - prompt_tokens
    if room < (asked or 1):
        wish = f"{asked} tokens of answer" if asked else "an answer"
        raise ContextLengthExceeded(
            f"The context holds {max_model_len} tokens; the messages take {prompt_tokens}, which "
            f"leaves no room for {wish}.",
            param="messages" if room < 1 else "max_completion_tokens",
        )
    return asked or room


async def _send(send: Send, body: bytes, *, more: bool) -> None:
    try:
        async with asyncio.timeout(SEND_TIMEOUT_S):
            await send({"type": "http.response.body", "body": body, "more_body": more})
    except TimeoutError:
        raise ClientGone from None


def _usage(tally: Tally) -> Usage:
    return Usage(
        prompt_tokens=tally.prompt_tokens,
        completion_tokens=tally.completion_tokens,
        total_tokens=tally.prompt_tokens + tally.completion_tokens,
    )
