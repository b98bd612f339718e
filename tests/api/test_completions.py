"""POST /v1/completions as an OpenAI client sees it."""

import json
from collections.abc import AsyncGenerator, Callable
from typing import Any

import httpx
import pytest
from transformers import PreTrainedTokenizerFast

from api.dialects.completions.schema import Completion
from api.engine.delta import Delta
from api.errors import EngineFailed
from api.generation.merged import merged
from tests.support.api import MODEL, FakeEngine, House

pytestmark = pytest.mark.anyio
URL = "/v1/completions"
MakeHouse = Callable[..., House]


async def post(house: House, **fields: Any) -> httpx.Response:
    await house.load()
    async with house.client() as client:
        response: httpx.Response = await client.post(URL, json={"model": MODEL, "prompt": "Hi"} | fields)
        return response


def events(answer: httpx.Response) -> list[Any]:
    *lines, done, _ = answer.text.split("\n\n")
    assert done == "data: [DONE]"
    return [json.loads(line.removeprefix("data: ")) for line in lines]


async def test_a_text_is_continued_without_a_template(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast
) -> None:
    house = make_house()
    completion = Completion.model_validate((await post(house, prompt="Hi<|im_end|>")).json())
    assert completion.id.startswith("cmpl-")
    assert [(c.text, c.finish_reason) for c in completion.choices] == [("Hello world", "stop")]
    assert completion.usage and completion.usage.completion_tokens == 3
    [call] = house.engine.calls
    assert call["max_tokens"] == 16
    assert tokenizer.eos_token_id not in call["prompt_ids"]  # what a person writes is text


async def test_a_stream_of_text_ends_with_reason_usage_and_done(make_house: MakeHouse) -> None:
    answer = await post(make_house(), stream=True, stream_options={"include_usage": True})
    *chunks, usage = events(answer)
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Hello world"
    assert [chunk["choices"][0]["finish_reason"] for chunk in chunks] == [None, None, "stop"]
    assert usage["choices"] == [] and usage["usage"]["completion_tokens"] == 3
    for chunk in (*chunks, usage):
        assert Completion.model_validate(chunk).object == "text_completion"


@pytest.mark.parametrize("stream", [False, True])
async def test_several_prompts_are_several_choices(make_house: MakeHouse, stream: bool) -> None:
    house = make_house()
    answer = await post(house, prompt=["Hi", "Ho", "Ha"], stream=stream, max_tokens=5)
    bodies = events(answer) if stream else [answer.json()]
    texts = ["", "", ""]
    for choice in (choice for body in bodies for choice in body["choices"]):
        texts[choice["index"]] += choice["text"]
    assert texts == ["Hello world"] * 3
    assert len({tuple(call["prompt_ids"]) for call in house.engine.calls}) == 3


async def test_token_ids_are_taken_as_they_are(make_house: MakeHouse) -> None:
    house = make_house()
    await post(house, prompt=[[7, 8], [9]])
    assert [call["prompt_ids"] for call in house.engine.calls] == [[7, 8], [9]]
    await post(house, prompt=[5])
    assert house.engine.calls[-1]["prompt_ids"] == [5]


@pytest.mark.parametrize("stream", [False, True])
async def test_logprobs_count_characters_from_the_start(make_house: MakeHouse, stream: bool) -> None:
    def delta(text: str, id: int, reason: Any = None) -> Delta:
        return Delta(text, 1, reason, logprobs=[[(id, -0.5), (id, -0.5), (0, -2)]])

    deltas = [delta("h", 71), delta("i", 72), delta("", 258, "stop")]
    answer = await post(make_house(FakeEngine(deltas=deltas)), logprobs=2, stream=stream)
    bodies = events(answer) if stream else [answer.json()]
    found = [body["choices"][0]["logprobs"] for body in bodies]
    assert [offset for entry in found for offset in entry["text_offset"]] == [0, 1, 2]
    assert [len(top) for entry in found for top in entry["top_logprobs"]] == [2, 2, 2]
    assert [value for entry in found for value in entry["token_logprobs"]] == [-0.5] * 3


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("logprobs", [None, 1])
async def test_an_answer_begins_with_its_prompt_for_who_asks(
    make_house: MakeHouse, stream: bool, logprobs: int | None
) -> None:
    """lm-eval reads the logprobs of a prompt's end so: choices in a test are continuations of a question."""
    rows = [[(71, float("nan"))], [(72, -0.5), (72, -0.5)], [(0, -1.0), (7, -0.1), (0, -1.0)]]
    engine = FakeEngine([Delta("!", 1, "length", logprobs=rows if logprobs else None)])
    house = make_house(engine)
    answer = await post(house, prompt=[71, 72], echo=True, logprobs=logprobs, max_tokens=1, stream=stream)
    bodies = events(answer) if stream else [answer.json()]
    assert "".join(body["choices"][0]["text"] for body in bodies) == "hi!"
    assert house.engine.calls[0]["echo"] is True
    found = [body["choices"][0]["logprobs"] for body in bodies if body["choices"][0]["logprobs"]]
    if not logprobs:
        assert found == []
        return
    [lists] = found
    assert lists["token_logprobs"] == [None, -0.5, -1.0] and lists["top_logprobs"][0] is None
    assert lists["top_logprobs"][2][lists["tokens"][2]] == -1.0
    assert lists["text_offset"][:2] == [0, 1] and len(lists["tokens"]) == 3
    Completion.model_validate(bodies[0])


async def test_each_of_several_prompts_is_echoed_with_each_of_its_answers(make_house: MakeHouse) -> None:
    deltas = [Delta("!", 1, "stop", 0), Delta("?", 1, "stop", 1)]
    answer = await post(make_house(FakeEngine(deltas)), prompt=["Hi", "Ho"], n=2, echo=True)
    assert [choice["text"] for choice in answer.json()["choices"]] == ["Hi!", "Hi?", "Ho!", "Ho?"]


async def test_the_logprobs_of_a_long_prompt_are_refused_before_they_cost_memory(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("api.generation.request.MAX_ECHO_LOGITS", 259 * 3)
    house = make_house()
    refused = await post(house, prompt=[[1], [1, 2, 3, 4]], echo=True, logprobs=0)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "logprobs")
    assert house.engine.calls == []
    assert (await post(house, prompt=[1, 2, 3, 4], echo=True)).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt"),
        ({"prompt": ["x"] * 9}, "prompt"),
        ({"prompt": [300]}, "prompt"),
        ({"prompt": [1, "x"]}, "prompt"),
        ({"prompt": "x" * 300}, "prompt"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"logprobs": 6}, "logprobs"),
        ({"echo": 1}, "echo"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
    ],
    ids=ascii,
)
async def test_bad_field_is_refused_by_its_name(
    make_house: MakeHouse, fields: dict[str, Any], param: str
) -> None:
    house = make_house()
    answer = await post(house, **fields)
    assert answer.status_code == 400, answer.text
    assert answer.json()["error"]["param"].split(".")[0] == param
    assert house.engine.calls == []


@pytest.mark.parametrize(
    ("fields", "param"), [({"prompt": ["a", "b"], "n": 2}, "n"), ({"prompt": ["a"] * 4}, "prompt")]
)
async def test_more_answers_than_there_can_ever_be_places_for_are_the_clients_error(
    make_house: MakeHouse, fields: dict[str, Any], param: str
) -> None:
    """503 would tell the client to try again, for ever."""
    house = make_house(max_queue=3)
    refused = await post(house, **fields)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert "4 answers" in refused.json()["error"]["message"] and "3" in refused.json()["error"]["message"]
    assert house.engine.calls == []
    assert (await post(house, prompt=["a", "b", "c"])).status_code == 200


@pytest.mark.parametrize("stream", [False, True])
async def test_usage_counts_the_cached_tokens_of_all_prompts(make_house: MakeHouse, stream: bool) -> None:
    engine = FakeEngine([Delta("a", 1, None, cached_tokens=2), Delta("b", 1, "stop")])
    options = {"stream_options": {"include_usage": True}} if stream else {}
    answer = await post(make_house(engine), prompt=["abc", "abd"], stream=stream, **options)
    usage = events(answer)[-1]["usage"] if stream else answer.json()["usage"]
    assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (6, {"cached_tokens": 4})


async def test_one_prompt_that_fails_ends_all() -> None:
    closed = []

    async def stream(number: int, error: Exception | None) -> AsyncGenerator[Delta, None]:
        try:
            yield Delta("x", 1, None)
            if error is not None:
                raise error
            yield Delta("y", 1, "stop")
        finally:
            closed.append(number)

    with pytest.raises(EngineFailed):
        async for _ in merged([stream(0, None), stream(1, EngineFailed("dead")), stream(2, None)], 1):
            pass
    assert sorted(closed) == [0, 1, 2]
