"""Anthropic's errors: the body of a refused request, and the last event of a stream that failed."""

from typing import Literal

import orjson
from pydantic import BaseModel

from api.errors import ApiError, ContextLengthExceeded, Overloaded
from api.telemetry.log import current_request_id

# Anthropic's name for a status. Its clients decide by the status whether to try again.
_TYPES = {
    401: "authentication_error",
    404: "not_found_error",
    408: "timeout_error",
    413: "request_too_large",
    429: "rate_limit_error",
}


class ErrorDetail(BaseModel):
    type: str
    message: str


class ErrorBody(BaseModel):
    type: Literal["error"] = "error"
    error: ErrorDetail
    request_id: str


def error_body(error: ApiError) -> bytes:
    """Return the JSON of an `ErrorBody`."""
    detail = {"type": _type(error), "message": _message(error)}
    return orjson.dumps({"type": "error", "error": detail, "request_id": current_request_id.get()})


def error_event(error: ApiError) -> bytes:
    """Return a stream's last event; no `message_stop` follows it."""
    return b"event: error\ndata: " + error_body(error) + b"\n\n"


def _type(error: ApiError) -> str:
    if isinstance(error, Overloaded):
        return "overloaded_error"
    other = "invalid_request_error" if error.status < 500 else "api_error"
    return _TYPES.get(error.status, other)


def _message(error: ApiError) -> str:
    """Return the error's words. Claude Code acts on Anthropic's own about the context."""
    if not isinstance(error, ContextLengthExceeded):
        return error.message
    prompt, answer, most = error.prompt_tokens, error.answer_tokens, error.context
    if prompt >= most:
        return f"prompt is too long: {prompt} tokens > {most} maximum"
    return (
        f"input length and `max_tokens` exceed context limit: {prompt} + {answer} > {most}, "
        "decrease input length or `max_tokens` and try again"
    )
