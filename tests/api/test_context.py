"""What does not fit the context: what is cut, what is refused, and in which words."""

import re
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.api import MODEL, House, ask, assert_openai_error

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
DIALECTS: dict[str, tuple[str, Callable[[str], dict[str, Any]]]] = {
    "/v1/chat/completions": ("max_tokens", lambda text: ask(messages=[{"role": "user", "content": text}])),
    "/v1/completions": ("max_tokens", lambda text: {"model": MODEL, "prompt": text}),
    "/v1/responses": ("max_output_tokens", lambda text: {"model": MODEL, "input": text}),
}


async def answer_of(house: House, path: str, text: str, **fields: Any) -> Any:
    await house.load()
    async with house.client() as client:
        return await client.post(path, json=DIALECTS[path][1](text) | fields)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("path", DIALECTS)
async def test_more_tokens_than_are_left_are_cut_to_what_is_left(
    make_house: MakeHouse, path: str, stream: bool
) -> None:
    house = make_house()
    answer = await answer_of(house, path, "Hi", **{DIALECTS[path][0]: 8000}, stream=stream)
    assert answer.status_code == 200, answer.text
    [call] = house.engine.calls
    assert call["max_tokens"] == 256 - len(call["prompt_ids"])


@pytest.mark.parametrize("path", DIALECTS)
async def test_the_setting_refuses_them_and_names_the_field(make_house: MakeHouse, path: str) -> None:
    house, (field, _) = make_house(strict_max_tokens=True), DIALECTS[path]
    error = assert_openai_error(
        await answer_of(house, path, "Hi", **{field: 255}), 400, "context_length_exceeded"
    )
    assert error["param"] == field
    assert house.engine.calls == []


@pytest.mark.parametrize(("field", "asked"), [({}, 1), ({"max_tokens": 10}, 10)])
async def test_the_context_error_has_the_words_that_clients_match(
    make_house: MakeHouse, field: dict[str, int], asked: int
) -> None:
    house = make_house()
    answer = await answer_of(house, "/v1/chat/completions", "x" * 300, **field)
    error = assert_openai_error(answer, 400, "context_length_exceeded")
    assert error["message"] == (
        f"This model's maximum context length is 256 tokens. However, you requested {320 + asked} tokens "
        f"(320 in the messages, {asked} in the completion). Please reduce the length of the messages or "
        "completion. (context_length_exceeded)"
    )
    assert error["param"] == "messages"


@pytest.mark.parametrize("path", DIALECTS)
async def test_every_dialect_says_it_so_of_its_own_field(make_house: MakeHouse, path: str) -> None:
    error = assert_openai_error(
        await answer_of(make_house(), path, "x" * 300), 400, "context_length_exceeded"
    )
    said = rf"^This model's maximum context length is 256 tokens\. .* in the {error['param']}, .*_exceeded\)$"
    assert re.match(said, error["message"])


async def test_the_list_of_models_says_where_the_context_ends(make_house: MakeHouse) -> None:
    house = make_house(max_model_len=100)
    async with house.client() as client:
        [model] = (await client.get("/v1/models")).json()["data"]
    assert model["max_model_len"] == 100
