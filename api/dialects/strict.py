"""What the POST routes share: bodies are JSON and say so, and what the OpenAPI document tells of answers."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.errors import ErrorBody, InvalidRequest, NotJson

MAX_VALUES = 2**15


class _StrictRequest(Request):
    async def json(self) -> Any:
        """By orjson, which refuses what json lets through: NaN and lone surrogates."""
        told = orjson.loads(await self.body())
        _require_few_values(told)
        return told


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                raise NotJson("The body must be JSON, sent as `Content-Type: application/json`.")
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def _require_few_values(told: Any) -> None:
    """A validator takes seconds for a megabyte of small values that are all wrong, and holds up everyone.

    Integers in lists are not counted: token ids are many, and are refused at the first that is wrong.
    Raises: InvalidRequest.
    """
    found, pending = 0, [told]
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


def answers_with(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an endpoint's answers."""
    return {
        200: {
            "description": "The answer, or with `stream` its chunks as server-sent events.",
            "model": body,
            "content": {"text/event-stream": {}},
        },
        "4XX": {"model": ErrorBody},
        "5XX": {"model": ErrorBody},
    }
