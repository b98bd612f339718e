"""Chunks of chat and text completions, written from templates that are made once a stream.

A piece of text costs one JSON string escape instead of building and dumping pydantic objects; tests/api hold
each chunk against its schema.
"""

from typing import Any

import orjson
from pydantic import BaseModel, Field

from api.dialects.openai_errors import error_event
from api.errors import ApiError
from api.generation import events
from api.generation.events import Identity

DONE = b"data: [DONE]\n\n"


class PromptTokensDetails(BaseModel):
    cached_tokens: int = 0


class CompletionTokensDetails(BaseModel):
    reasoning_tokens: int


class Usage(BaseModel):
    """cached_tokens: tokens of the prompt that were in the engine's cache and not computed again.

    reasoning_tokens: of the thinking, with its markers.
    """

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails = PromptTokensDetails()
    completion_tokens_details: CompletionTokensDetails | None = Field(
        None, exclude_if=lambda details: details is None, description="If the model thinks."
    )

    @classmethod
    def of(cls, usage: events.Usage) -> "Usage":
        """Return the usage in OpenAI's format."""
        return cls(
            prompt_tokens=usage.prompt_tokens,
            completion_tokens=usage.completion_tokens,
            total_tokens=usage.prompt_tokens + usage.completion_tokens,
            prompt_tokens_details=PromptTokensDetails(cached_tokens=usage.cached_tokens),
            completion_tokens_details=(
                None
                if usage.thinking_tokens is None
                else CompletionTokensDetails(reasoning_tokens=usage.thinking_tokens)
            ),
        )


def head(identity: Identity) -> dict[str, Any]:
    """Return the fields that all chunks and the whole answer have in common."""
    return {
        "id": identity.id,
        "created": identity.created,
        "model": identity.model,
        "system_fingerprint": identity.fingerprint,
    }


class Chunks:
    """Write what both dialects put around the choice of a chunk, and their common events."""

    _plain: bytes  # what follows the text of a choice without logprobs

    def __init__(self, identity: Identity, object: str, include_usage: bool) -> None:
        self._include_usage = include_usage
        self._head = b"data: " + orjson.dumps({**head(identity), "object": object})[:-1] + b',"choices":['
        self._schema_errors: dict[int, bytes] = {}  # of choices that are about to end
        # As OpenAI does: with include_usage every chunk has the field, and it is null until the last.
        self._end_with(b'],"usage":null}' if include_usage else b"]}")

    def _end_with(self, tail: bytes) -> None:
        """Set what chunks end with from now on."""
        self._tail = tail + b"\n\n"
        self._close = self._plain + self._tail

    def start(self, usage: events.Usage) -> bytes:
        return b""

    def count(self, usage: events.Usage) -> None:
        self._end_with(b'],"usage":' + Usage.of(usage).model_dump_json().encode() + b"}")

    def part_end(self, index: int, whole: bool) -> bytes:
        return b""

    def schema_error(self, index: int, error: str) -> None:
        self._schema_errors[index] = b',"schema_error":' + orjson.dumps(error)

    def end(self, usage: events.Usage) -> bytes:
        if not self._include_usage:
            return DONE
        return self._head + b'],"usage":' + Usage.of(usage).model_dump_json().encode() + b"}\n\n" + DONE

    def error(self, error: ApiError) -> bytes:
        return error_event(error)
