"""The frames written from templates are the chunks that pydantic would have written."""

import json
from typing import Any

import pytest

from api.dialects.chat.answer import ChatCompletionChunk, ChunkChoice, Delta
from api.dialects.chat.frames import ChatFrames
from api.dialects.chunks import DONE
from api.errors import EngineFailed
from api.generation.events import Identity, Usage

TEXTS = ["", "plain", 'quo"te \\ back', "new\nline\r\t\x00\x1f", "\u2028 é 🙂", "data: [DONE]\n\n"]
IDENTITY = Identity("chatcmpl-1", 7, "m", "f")


def frames(include_usage: bool) -> ChatFrames:
    return ChatFrames(IDENTITY, 1, include_usage=include_usage)


def parsed(frame: bytes) -> Any:
    assert frame.startswith(b"data: ") and frame.endswith(b"\n\n")
    assert b"\n" not in frame[:-2]  # or a client would see two events
    return json.loads(frame[len(b"data: ") :])


def chunk(choice: ChunkChoice, *, include_usage: bool) -> dict[str, Any]:
    built = ChatCompletionChunk(
        id="chatcmpl-1", created=7, model="m", system_fingerprint="f", choices=[choice]
    )
    made = built.model_dump(exclude=set() if include_usage else {"usage"})
    for name, value in choice.delta.model_dump().items():
        if value is None:
            del made["choices"][0]["delta"][name]
    return made


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_text_frames_equal_the_pydantic_chunks(text: str, include_usage: bool) -> None:
    written = frames(include_usage)
    assert parsed(written.text(0, text, first=True)) == chunk(
        ChunkChoice(delta=Delta(role="assistant", content=text)), include_usage=include_usage
    )
    assert parsed(written.text(0, text)) == chunk(
        ChunkChoice(delta=Delta(content=text)), include_usage=include_usage
    )


@pytest.mark.parametrize("include_usage", [False, True])
@pytest.mark.parametrize("text", TEXTS)
def test_thinking_frames_equal_the_pydantic_chunks(text: str, include_usage: bool) -> None:
    written = frames(include_usage)
    for role, first in (("assistant", True), (None, False)):
        delta = Delta.model_validate({"role": role, "reasoning_content": text, "reasoning": text})
        frame = written.thinking(0, text, first)
        assert parsed(frame) == chunk(ChunkChoice(delta=delta), include_usage=include_usage)
    assert parsed(written.text(0, text, first=True)) == chunk(
        ChunkChoice(delta=Delta(content=text)), include_usage=include_usage
    ), "the role was in the thinking"


@pytest.mark.parametrize("include_usage", [False, True])
def test_finish_frame_equals_the_pydantic_chunk(include_usage: bool) -> None:
    expected = chunk(ChunkChoice(delta=Delta(), finish_reason="length"), include_usage=include_usage)
    assert parsed(frames(include_usage).finish(0, "length")) == expected


def test_usage_frame_has_no_choice() -> None:
    usage = Usage(prompt_tokens=3, cached_tokens=2, completion_tokens=1)
    last, done = frames(True).end(usage).split(b"\n\n", 1)
    made = parsed(last + b"\n\n")
    assert done == DONE == frames(False).end(usage)
    assert made["choices"] == []
    assert made["usage"] == {
        "prompt_tokens": 3,
        "completion_tokens": 1,
        "total_tokens": 4,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


def test_error_frame_is_openais_error_body() -> None:
    assert parsed(frames(False).error(EngineFailed("gone")))["error"] == {
        "message": "gone",
        "type": "server_error",
        "param": None,
        "code": "engine_failed",
    }
