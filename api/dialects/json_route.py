"""The POST routes of all dialects: JSON is counted, then judged by rules.py, then validated by the schema."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.dialects.rules import MAX_VALUES, NESTED, Strict, apply
from api.errors import InvalidRequest, NotJson
from api.http.state import RequestState


class _JsonRequest(Request):
    """A request whose JSON has been read. value: what is left of it for the schema."""

    value: Any = None

    async def json(self) -> Any:
        return self.value


class JsonRoute(APIRoute):
    """A route whose requests must say that they are JSON. Raises: NotJson, InvalidRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()
        assert self.body_field is not None
        model: type[Strict] = self.body_field.field_info.annotation  # type: ignore[assignment]

        async def handle_json(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                raise NotJson("The body must be JSON, sent as `Content-Type: application/json`.")
            read = _JsonRequest(request.scope, request.receive)
            read.value, ignored = apply(model, _parsed(await read.body()))
            RequestState.of(request.scope).ignored.update(ignored)
            return await handle(read)

        return handle_json


def _parsed(body: bytes) -> Any:
    """Parse with orjson, which refuses NaN and lone surrogates, unlike the json module."""
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError:
        raise InvalidRequest("The body is not valid JSON.") from None
    # A value follows a comma or an opened list or object. Most bodies have few of these, also in their texts.
    if body.count(b",") + body.count(b"{") + body.count(b"[") > MAX_VALUES:
        _require_few_values(value)
    return value


def _require_few_values(body: Any) -> None:
    """Bound the work of validation: a megabyte of small wrong values would hold the event loop for seconds.

    Integers in lists are not counted: token ids are many, and validation stops at the first wrong one.
    Raises: InvalidRequest.
    """
    found, pending = 0, [body]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            found += len(part)
            pending += [value for value in part.values() if type(value) in NESTED]
        elif isinstance(part, list):
            values = [value for value in part if type(value) is not int]
            found += len(values)
            pending += [value for value in values if type(value) in NESTED]
        if found > MAX_VALUES:
            raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")


def answers_with(body: type[BaseModel], error: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Return what the OpenAPI document says of the answers of an endpoint."""
    return {
        200: {
            "description": "The answer, or with `stream` its chunks as server-sent events.",
            "model": body,
            "content": {"text/event-stream": {}},
        },
        "4XX": {"model": error},
        "5XX": {"model": error},
    }
