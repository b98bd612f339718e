"""The two ASGI applications: request log → gate → routes, with every failure in OpenAI's body."""

import asyncio
import re
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from api.dialects import models
from api.dialects.chat import route as chat
from api.dialects.completions import route as completions
from api.dialects.responses import route as responses
from api.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from api.http.gate import Gate
from api.http.log import RequestLog, log
from api.ledger.account import RATE_HEADERS
from api.ledger.ledger import Ledger, open_ledger
from api.operations import admin, health
from api.service import Service

# What pydantic puts into a location between a field of several types and the part that is wrong.
_UNION_TAG = re.compile(r"(constrained-)?(str|float)|(list|literal)\[.*\]|[A-Z][A-Za-z]+")


def create_app(service: Service, cors_origins: Sequence[str] = ()) -> ASGIApp:
    """The whole service as one ASGI application; its lifespan loads and ends the engine.

    cors_origins: whose pages may call it from a browser.
    """

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.ledger.start()
        service.lifecycle.start()
        yield
        await service.lifecycle.stop()
        await service.grammars.close()
        await service.ledger.close()
        if service.tracing is not None:
            await asyncio.to_thread(service.tracing.close)

    app = FastAPI(title="finechat", lifespan=lifespan, docs_url=None, redoc_url=None, redirect_slashes=False)
    for module in (chat, completions, responses, models, health):
        app.include_router(module.router)
    _tell_of_keys(app.openapi(), service.ledger.required)
    return _guarded(app, service, service.ledger, health.OPEN_PATHS, cors_origins)


def create_admin_app(service: Service, key: str) -> ASGIApp:
    """What is the operator's alone: every path needs `key`, which is none of the clients'."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    app.include_router(admin.router)
    return _guarded(app, service, open_ledger(api_key=key), frozenset())


def _guarded(
    app: FastAPI,
    service: Service,
    ledger: Ledger,
    open_paths: frozenset[str],
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    app.state.service = service
    app.exception_handler(ApiError)(_api_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_defect)
    routes = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    gate = Gate(app, ledger, open_paths)
    entrance = _open_to(cors_origins, gate) if cors_origins else gate
    return RequestLog(entrance, service.metrics, service.tracing, routes)


def _open_to(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Outside of the gate, because a browser asks for leave without a key."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # OpenAI's client sends a dozen of its own
        expose_headers=("x-request-id", "retry-after", *RATE_HEADERS),
    )


def _tell_of_keys(document: dict[str, Any], needed: bool) -> None:
    """Into the OpenAPI document, which FastAPI keeps: the gate is none of its own devices."""
    document["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"key": []}] if needed else [{"key": []}, {}]
    for path in health.OPEN_PATHS:
        document["paths"][path]["get"]["security"] = []


async def _api_error(_: Request, error: ApiError) -> Response:
    return error.response()


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Starlette's own: no such path, wrong method, or a body that is not JSON at all."""
    if error.status_code == 404:
        return NotFound("There is no such path.").response()
    if error.status_code == 405:
        response = MethodNotAllowed(f"{request.method} is not possible here.").response()
        response.headers.update(error.headers or {})
        return response
    return InvalidRequest("The body is not valid JSON.").response()


async def _invalid(_: Request, error: RequestValidationError) -> Response:
    """One thing wrong with a request, with the name of its field.

    The deepest: where a field may have several types, that is wrong in the one that fits best.
    """
    first = max(error.errors(), key=lambda wrong: len(wrong["loc"]))
    if first["type"] == "json_invalid":
        return InvalidRequest("The body is not valid JSON.").response()
    names = (str(part) for part in first["loc"][1:] if not _UNION_TAG.fullmatch(str(part)))
    field = ".".join(names)
    if first["type"] == "extra_forbidden":
        message = f"{field!r} is not a field of this API."
    else:
        message = f"{field or 'The body'}: {first['msg']}."
    return InvalidRequest(message[:500], param=field[:200] or None).response()


async def _defect(_: Request, error: Exception) -> Response:
    log.error("event=defect", exc_info=error)
    return InternalError("Internal error.").response()
