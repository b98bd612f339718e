"""Requests out of thin air: what is good comes back as it was, and what is not is refused, and quickly."""

import json
import time
from collections.abc import Callable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, ValidationError

from api.dialects.chat.schema import ChatRequest
from api.dialects.completions.schema import CompletionRequest
from api.dialects.fields import INT64_MAX
from tests.support.api import MODEL, House, ask

REQUESTS: dict[str, type[BaseModel]] = {
    "/v1/chat/completions": ChatRequest,
    "/v1/completions": CompletionRequest,
}
# Other tests leave threads behind that end by themselves, and may use `random` meanwhile.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")
EACH = pytest.mark.parametrize("path", REQUESTS)
CALM = settings(deadline=None, max_examples=100, suppress_health_check=list(HealthCheck), database=None)
MOST_CPU_S = 0.25

texts = st.text(st.characters(codec="utf-8"), max_size=20)
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.integers(-(2**70), 2**70), st.floats(allow_nan=True), texts,
    st.sampled_from(["", "user", "assistant", "text", "auto", "json_object", "\0", "\ud800", "1" * 300]),
)  # fmt: skip
anything = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(texts, inner, max_size=5),
    max_leaves=20,
)


def optional(kind: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | kind


token_ids = st.integers(0, 2**31 - 1)
shaping: dict[str, st.SearchStrategy[Any]] = {
    "temperature": optional(st.floats(0, 2)),
    "top_p": optional(st.floats(0, 1, exclude_min=True)),
    "top_k": optional(st.integers(-1, 1_000_000)),
    "min_p": optional(st.floats(0, 1)),
    "frequency_penalty": optional(st.floats(-2, 2)),
    "presence_penalty": optional(st.floats(-2, 2)),
    "repetition_penalty": optional(st.floats(0.01, 10)),
    "seed": optional(st.integers(-INT64_MAX, INT64_MAX)),
    "stop": optional(texts.filter(bool) | st.lists(texts.filter(bool), max_size=4)),
    "stop_token_ids": optional(st.lists(token_ids, max_size=16)),
    "logit_bias": optional(
        st.dictionaries(st.integers(0, 999_999_999).map(str), st.floats(-100, 100), max_size=5)
    ),
    "n": optional(st.integers(1, 8)),
    "stream_options": optional(st.fixed_dictionaries({"include_usage": st.booleans()})),
    "max_tokens": optional(st.integers(1, INT64_MAX)),
}
content = texts | st.lists(st.fixed_dictionaries({"type": st.just("text"), "text": texts}), max_size=3)
message = st.fixed_dictionaries(
    {"role": st.sampled_from(["system", "developer", "user", "assistant"]), "content": content}
)
good: dict[str, st.SearchStrategy[dict[str, Any]]] = {
    "/v1/chat/completions": st.fixed_dictionaries(
        {"model": texts, "stream": st.just(True), "messages": st.lists(message, min_size=1, max_size=4)},
        optional={**shaping, "max_completion_tokens": optional(st.integers(1, INT64_MAX))},
    ),
    "/v1/completions": st.fixed_dictionaries(
        {
            "model": texts,
            "stream": st.just(True),
            "prompt": texts | st.lists(texts, min_size=1, max_size=8) | st.lists(token_ids, min_size=1),
        },
        optional={**shaping, "logprobs": optional(st.integers(0, 5)), "echo": optional(st.booleans())},
    ),
}


@EACH
@CALM
@given(data=st.data())
def test_a_good_request_comes_back_as_it_was(path: str, data: st.DataObject) -> None:
    found = data.draw(good[path])
    request = REQUESTS[path].model_validate(found)
    assert request.model_dump(exclude_unset=True, by_alias=True) == found
    again = request.model_dump_json(exclude_unset=True, by_alias=True)
    assert REQUESTS[path].model_validate(orjson.loads(again)) == request


@EACH
@CALM
@given(data=st.data())
def test_anything_else_is_refused_quickly_and_by_no_other_error(path: str, data: st.DataObject) -> None:
    fields = [*REQUESTS[path].model_fields, "unknown"]
    wrong = data.draw(st.dictionaries(st.sampled_from(fields), anything, max_size=6) | anything)
    found = data.draw(good[path]) | wrong if isinstance(wrong, dict) else wrong
    begun = time.process_time()
    try:
        REQUESTS[path].model_validate(found)
    except ValidationError as error:
        assert error.errors(include_url=False)
    assert time.process_time() - begun < MOST_CPU_S


def _spoilt(message: bytes, at: int, by: bytes) -> bytes:
    at %= len(message) + 1
    return message[:at] + by + message[at:]


raw = st.one_of(
    st.binary(max_size=200),
    anything.map(lambda value: json.dumps(value).encode()),  # NaN, Infinity and lone surrogates too
    st.builds(
        _spoilt, st.just(orjson.dumps(ask())), st.integers(0, 200),
        st.sampled_from([b"\xff", b"\xed\xa0\x80", b"\0", b"\\ud800", b"NaN", b"1e999", b"{", b'"']),
    ),
)  # fmt: skip


@pytest.mark.anyio
@EACH
async def test_any_bytes_are_answered_in_openais_body(make_house: Callable[..., House], path: str) -> None:
    house = make_house()
    await house.load()

    @CALM
    @given(body=raw)
    def answered(body: bytes) -> None:
        bodies.append(body)

    bodies: list[bytes] = []
    answered()
    headers = {"content-type": "application/json"}
    async with house.client(headers=headers) as client:
        for body in bodies:
            answer = await client.post(path, content=body)
            assert answer.status_code in (200, 400, 404), (body, answer.text)
            if answer.status_code != 200:
                assert set(answer.json()["error"]) == {"message", "type", "param", "code"}


@pytest.mark.anyio
async def test_of_a_field_that_is_there_twice_the_last_counts_for_checks_and_use(
    make_house: Callable[..., House],
) -> None:
    house = make_house()
    await house.load()
    twice = (
        '{{"messages":[{{"role":"user","content":"Hi"}}],"model":"{0}","max_tokens":{1},"max_tokens":{2}}}'
    )
    headers = {"content-type": "application/json"}
    async with house.client(headers=headers) as client:
        path = "/v1/chat/completions"
        assert (await client.post(path, content=twice.format(MODEL, 0, 3))).status_code == 200
        assert (await client.post(path, content=twice.format(MODEL, 3, 0))).status_code == 400
    assert [call["max_tokens"] for call in house.engine.calls] == [3]
