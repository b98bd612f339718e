"""The POST routes of all dialects: their bodies are JSON, and are counted before they are validated."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.errors import InvalidRequest, NotJson

MAX_VALUES = 2**15


class _JsonRequest(Request):
    async def json(self) -> Any:
        """Parse with orjson, which refuses NaN and lone surrogates, unlike the json module."""
        body = orjson.loads(await self.body())
        _require_few_values(body)
        return body


class JsonRoute(APIRoute):
    """A route whose requests must say that they are JSON. Raises: NotJson, InvalidRequest."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def handle_json(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                raise NotJson("The body must be JSON, sent as `Content-Type: application/json`.")
            return await handle(_JsonRequest(request.scope, request.receive))

        return handle_json


def _require_few_values(body: Any) -> None:
    """Bound the work of validation: a megabyte of small wrong values would hold the event loop for seconds.

    Integers in lists are not counted: token ids are many, and validation stops at the first wrong one.
    Raises: InvalidRequest.
    """
    found, pending = 0, [body]
    while pending:
        part = pending.pop()
        if isinstance(part, dict):
            values = list(part.values())
        elif isinstance(part, list):
            values = [value for value in part if type(value) is not int]
        else:
            continue
        found += len(values)
        if found > MAX_VALUES:
            raise InvalidRequest(f"The body has more than {MAX_VALUES} values.")
        pending += values


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
