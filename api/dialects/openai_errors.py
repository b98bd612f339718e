"""OpenAI's errors: the body of a refused request, and the last event of a stream that failed."""

import orjson
from pydantic import BaseModel

from api.errors import ApiError


class ErrorDetail(BaseModel):
    message: str
    type: str
    param: str | None
    code: str | None


class ErrorBody(BaseModel):
    error: ErrorDetail


def error_body(error: ApiError) -> bytes:
    """Return the JSON of an `ErrorBody`."""
    detail = {
        "message": error.message,
        "type": error.type,
        "param": error.param,
        "code": error.code,
    }
    return orjson.dumps({"error": detail})


def error_event(error: ApiError) -> bytes:
    """Return a stream's last event; no `[DONE]` follows it."""
    return b"data: " + error_body(error) + b"\n\n"
