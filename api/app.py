"""The two ASGI applications: request log → access control → routes, with an error body for every failure."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from api.dialects import models, openai_errors
from api.dialects.chat import route as chat
from api.dialects.completions import route as completions
from api.dialects.invalid import invalid_request
from api.dialects.messages import route as messages
from api.dialects.responses import route as responses
from api.errors import ApiError, InternalError, InvalidRequest, MethodNotAllowed, NotFound
from api.http.access import AccessControl
from api.http.request_log import IGNORED_FIELDS, RequestLog
from api.http.state import RequestState
from api.ledger.account import RATE_HEADERS
from api.ledger.backends import open_ledger
from api.ledger.ledger import Ledger
from api.operations import admin, health, metrics
from api.service import Service
from api.telemetry.log import log

# Each module names its routes, and who writes an error on their paths. Any other path gets OpenAI's errors.
DIALECTS = (chat, completions, responses, messages, models)


def create_app(service: Service, cors_origins: Sequence[str] = ()) -> ASGIApp:
    """Return the whole service as one ASGI application; its lifespan loads and ends the engine.

    cors_origins: sites whose pages may call it from a browser.
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
    for dialect in DIALECTS:
        app.include_router(dialect.router)
    for module in (health, metrics):
        app.include_router(module.router, responses={"4XX": {"model": openai_errors.ErrorBody}})
    _describe_keys(app.openapi(), service.ledger.required)
    return _wrapped(app, service, service.ledger, health.OPEN_PATHS, metrics.PATHS, cors_origins)


def create_admin_app(service: Service, key: str) -> ASGIApp:
    """Return the operator's application: every path needs `key`, which no client has."""
    app = FastAPI(openapi_url=None, redirect_slashes=False)
    for module in (admin, metrics):
        app.include_router(module.router)
    return _wrapped(app, service, open_ledger(api_key=key), frozenset(), frozenset())


def _wrapped(
    app: FastAPI,
    service: Service,
    ledger: Ledger,
    open_paths: frozenset[str],
    operator_paths: frozenset[str],
    cors_origins: Sequence[str] = (),
) -> ASGIApp:
    app.state.service = service
    app.exception_handler(ApiError)(_api_error)
    app.exception_handler(HTTPException)(_http_error)
    app.exception_handler(RequestValidationError)(_invalid)
    app.exception_handler(Exception)(_defect)
    routes = frozenset(path for route in app.routes if (path := getattr(route, "path", None)))
    inside: ASGIApp = AccessControl(_with_head(app), ledger, open_paths, operator_paths, service.operator)
    if cors_origins:
        inside = _open_to(cors_origins, inside)
    error_bodies = {route.path: dialect.error_body for dialect in DIALECTS for route in dialect.router.routes}
    anthropics = [path for path, error_body in error_bodies.items() if error_body is messages.error_body]
    id_headers = dict.fromkeys(anthropics, messages.REQUEST_ID)
    return RequestLog(
        inside, service.metrics, service.tracing, routes, error_bodies, openai_errors.error_body, id_headers
    )


def _with_head(app: ASGIApp) -> ASGIApp:
    """Answer HEAD as GET. The server leaves out the body."""

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "HEAD":
            scope = {**scope, "method": "GET"}
        await app(scope, receive, send)

    return answer


def _open_to(origins: Sequence[str], app: ASGIApp) -> ASGIApp:
    """Allow browsers, outside of the access control: a preflight request has no key."""
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST"),
        allow_headers=("*",),  # OpenAI's client sends a dozen of its own
        expose_headers=(
            "x-request-id",
            messages.REQUEST_ID.decode(),
            IGNORED_FIELDS,
            "retry-after",
            "x-should-retry",
            *RATE_HEADERS,
        ),
    )


def _describe_keys(document: dict[str, Any], needed: bool) -> None:
    """Add the keys to the OpenAPI document: FastAPI does not know of the access control."""
    document["components"]["securitySchemes"] = {
        "key": {"type": "http", "scheme": "bearer"},
        "x-api-key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
    }
    document["security"] = [{"key": []}, {"x-api-key": []}, *([] if needed else [{}])]
    for path in health.OPEN_PATHS:
        document["paths"][path]["get"]["security"] = []


async def _api_error(request: Request, error: ApiError) -> Response:
    return RequestState.of(request.scope).refuse(error)


async def _http_error(request: Request, error: HTTPException) -> Response:
    """Answer Starlette's own errors: no such path, wrong method, or a body that is not JSON at all."""
    state = RequestState.of(request.scope)
    if error.status_code == 404:
        return state.refuse(NotFound("There is no such path."))
    if error.status_code == 405:
        response = state.refuse(MethodNotAllowed(f"{request.method} is not possible here."))
        response.headers.update(error.headers or {})
        if response.headers.get("allow") == "GET":
            response.headers["allow"] = "GET, HEAD"
        return response
    return state.refuse(InvalidRequest("The body is not valid JSON."))


async def _invalid(request: Request, error: RequestValidationError) -> Response:
    return RequestState.of(request.scope).refuse(invalid_request(error))


async def _defect(request: Request, error: Exception) -> Response:
    log.error("event=defect", exc_info=error)
    return RequestState.of(request.scope).refuse(InternalError("Internal error."))
