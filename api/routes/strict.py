"""What the POST routes share: bodies are JSON and say so, and what the OpenAPI document tells of answers."""

from collections.abc import Callable, Coroutine
from typing import Any

import orjson
from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from api.errors import ErrorBody, NotJson


class _StrictRequest(Request):
    async def json(self) -> Any:
        """By orjson, which refuses what json lets through: NaN and lone surrogates."""
        return orjson.loads(await self.body())


class StrictRoute(APIRoute):
    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        handle = super().get_route_handler()

        async def strict(request: Request) -> Response:
            media_type = request.headers.get("content-type", "").partition(";")[0].strip()
            if media_type.lower() != "application/json":
                raise NotJson("The body must be JSON, sent as `Content-Type: application/json`.")
            return await handle(_StrictRequest(request.scope, request.receive))

        return strict


def answers_with(body: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """What the OpenAPI document says of an endpoint's answers."""
    return {
        200: {
            "description": "The answer, or with `stream` its chunks as server-sent events.",
            "model": body,
            "content": {"text/event-stream": {"schema": {"type": "string"}}},
        },
        "4XX": {"model": ErrorBody},
        "5XX": {"model": ErrorBody},
    }
