"""Calls of functions: found in what a model writes, streamed as OpenAI streams them."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from api.dialects.chat.answer import ChatCompletion, ChatCompletionChunk
from api.engine.delta import Delta
from api.engine.grammars import Grammars
from api.engine.tool_prompt import HERMES as IN_TAGS
from api.generation.tool_calls import CallParser
from api.ledger.key_file import create_key
from api.ledger.keys import Limits
from tests.support import ROOT
from tests.support.api import FakeEngine, House, ask, assert_openai_error, events, post
from tests.support.tool_calls import TOOLS, read

MakeHouse = Callable[..., House]
TRAINERS = ROOT / "trainer" / "data" / "tools.jinja"  # the trainer puts it before a template without tools
LLAMA = '{"name": "weather", "parameters": {"city": "Paris", "deep": {"a": "}\\"{"}}}'
HERMES = 'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Paris"}}\n</tool_call>'
IN_TAGS_OF_A_TURN = replace(IN_TAGS, end="<|im_end|>")


def function(name: str, parameters: dict[str, Any]) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


@pytest.mark.parametrize(
    ("answer", "text", "calls"),
    [
        (LLAMA, "", [("weather", '{"city": "Paris", "deep": {"a": "}\\"{"}}')]),
        (LLAMA + "; and so it is", "", [("weather", '{"city": "Paris", "deep": {"a": "}\\"{"}}')]),
        ('\n{"type": "function",\n"name":"now","parameters": {}}', "", [("now", "{}")]),
        (HERMES, "Let me see.\n", [("weather", '{"city": "Paris"}')]),
        (HERMES * 2, "Let me see.\n", [("weather", '{"city": "Paris"}')] * 2),
        (HERMES + "\n<tool_response>\nRain", "Let me see.\n", [("weather", '{"city": "Paris"}')]),
        ('{"name": "weather", "parameters": {"city', "", [("weather", '{"city')]),
        ("Hello", "Hello", []),
        ("", "", []),
        (' {"a": 1} <b>', ' {"a": 1} <b>', []),
        ('{"name": "other", "parameters": {}}', '{"name": "other", "parameters": {}}', []),
        ('{"name": "now", "parameters": 3}', '{"name": "now", "parameters": 3}', []),
        ('{"name": "now", ', '{"name": "now", ', []),
        ("a <tool_call> b", "a <tool_call> b", []),
        (
            '<tool_call>{"name": "x", "arguments": {}}',
            '<tool_call>{"name": "x", "arguments": {}}',
            [],
        ),
        ("a <tool_call", "a <tool_call", []),
        ("<tool_call>", "<tool_call>", []),
        ("<<tool_call><tool_call>", "<<tool_call><tool_call>", []),
        (f"Like {LLAMA}", f"Like {LLAMA}", []),
        (" " * 500 + LLAMA, " " * 500 + LLAMA, []),
    ],
)
def test_calls_and_text_are_the_same_however_the_answer_is_cut(
    answer: str, text: str, calls: list[tuple[str, str]]
) -> None:
    assert read(answer) == (text, calls)
    assert read(*answer) == (text, calls)
    for a, b in itertools.combinations(range(0, len(answer), 1 + len(answer) // 200), 2):
        assert read(answer[:a], answer[a:b], answer[b:]) == (text, calls)


def test_only_one_call_is_passed_on_when_parallel_calls_are_not_wanted() -> None:
    assert read(HERMES * 2, parallel=False)[1] == [("weather", '{"city": "Paris"}')]


def test_text_that_is_no_call_waits_for_nothing() -> None:
    parser = CallParser({"now": {}})
    found = ["".join(p.text for p in parser.feed(text)) for text in ("He", "llo", " <", "b> <tool", "tip>")]
    assert found == ["He", "llo", " ", "<b> ", "<tooltip>"]
    assert CallParser({"now": {}}).feed('{"now": ')[0].text == '{"now": '


@pytest.fixture
def trusting(monkeypatch: pytest.MonkeyPatch) -> None:
    """Schemas are not tried out: test_grammars.py does that."""

    async def require(*_: Any) -> None: ...

    monkeypatch.setattr(Grammars, "require", require)


def says(answer: str, reason: Any = "stop") -> FakeEngine:
    deltas = [*(Delta(character, 1, None) for character in answer), Delta("", 1, reason)]
    return FakeEngine(deltas=deltas, max_model_len=4096)


@pytest.mark.anyio
@pytest.mark.parametrize("answer", [LLAMA, HERMES, HERMES * 2, "Hello", ""], ids=range(5))
async def test_a_stream_brings_what_the_whole_answer_has(make_house: MakeHouse, answer: str) -> None:
    whole = (await post(make_house(says(answer)), json=ask(tools=TOOLS))).json()
    ChatCompletion.model_validate(whole)
    bodies = events(await post(make_house(says(answer)), json=ask(tools=TOOLS, stream=True)))[:-1]
    chunks = [ChatCompletionChunk.model_validate(body) for body in bodies]
    deltas = [chunk.choices[0].delta for chunk in chunks]
    assert [delta.role for delta in deltas] == ["assistant"] + [None] * (len(deltas) - 1)
    message = whole["choices"][0]["message"]
    assert "".join(delta.content or "" for delta in deltas) == (message["content"] or "")
    calls: list[dict[str, Any]] = []
    for call in [call for delta in deltas for call in delta.tool_calls or ()]:
        if call.id:
            assert call.index == len(calls) and call.function.arguments == ""
            calls.append({"name": call.function.name, "arguments": ""})
        calls[call.index]["arguments"] += call.function.arguments
    assert calls == [call["function"] for call in message.get("tool_calls", ())]
    reasons = {chunks[-1].choices[0].finish_reason, whole["choices"][0]["finish_reason"]}
    assert reasons == ({"tool_calls"} if calls else {"stop"})
    assert ("tool_calls" in message) == bool(calls)


@pytest.mark.anyio
async def test_a_call_that_is_cut_says_so(make_house: MakeHouse) -> None:
    answer = await post(make_house(says(LLAMA[:40], "length")), json=ask(tools=TOOLS))
    [choice] = answer.json()["choices"]
    assert (choice["finish_reason"], choice["message"]["content"]) == ("length", None)
    assert choice["message"]["tool_calls"][0]["function"]["name"] == "weather"


@pytest.mark.anyio
async def test_logprobs_of_held_back_tokens_come_with_the_next_frame(make_house: MakeHouse) -> None:
    deltas = [Delta(character, 1, None, logprobs=[[(65, -0.5)]]) for character in HERMES]
    deltas.append(Delta("", 1, "stop", logprobs=[[(258, 0)]]))
    engine = FakeEngine(deltas=deltas, max_model_len=4096)
    bodies = events(await post(make_house(engine), json=ask(tools=TOOLS, stream=True, logprobs=True)))[:-1]
    found = [e for b in bodies for e in (b["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert len(found) == len(HERMES) + 1


@pytest.mark.anyio
@pytest.mark.usefixtures("trusting")
@pytest.mark.parametrize(
    ("choice", "called"),
    [
        ("required", ["weather", "now"]),
        ({"type": "function", "function": {"name": "now"}}, ["now"]),
    ],
)
async def test_a_required_call_is_all_that_can_be_said(
    make_house: MakeHouse, choice: Any, called: list[str]
) -> None:
    house = make_house(says('{"name":"now","arguments":{}}'))
    answer = await post(house, json=ask(tools=TOOLS, tool_choice=choice))
    assert answer.json()["choices"][0]["finish_reason"] == "tool_calls"
    assert not house.engine.calls[0]["json_schema"]
    rules = house.engine.calls[0]["rules"].split("\n")
    calls = [line for line in rules if "<tool_call>" in line]
    assert [name for line in calls for name in ("weather", "now") if f'\\"{name}\\"' in line] == called
    nothing = '{"type":"object","properties":{},"additionalProperties":false,'
    assert any(f"_arguments: %json {nothing}" in line for line in rules)


@pytest.mark.anyio
async def test_a_key_beyond_its_limits_has_no_schema_tried(
    make_house: MakeHouse, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried = []

    async def require(_: Grammars, schema: str, *__: Any) -> None:
        tried.append(schema)

    monkeypatch.setattr(Grammars, "require", require)
    secret = create_key(tmp_path / "keys.json", "ann", Limits(requests_per_minute=1))
    house = make_house(says("{}"), keys_file=tmp_path / "keys.json")
    await house.load()
    async with house.client(headers={"authorization": f"Bearer {secret}"}) as client:
        for status in (200, 429):
            body = ask(response_format={"type": "json_object"})
            assert (await client.post("/v1/chat/completions", json=body)).status_code == status
    assert len(tried) == 1


@pytest.mark.anyio
async def test_without_choice_or_with_none_nothing_is_enforced(make_house: MakeHouse) -> None:
    house = make_house(says(LLAMA))
    answer = await post(house, json=ask(tools=TOOLS, tool_choice="none"))
    assert answer.json()["choices"][0]["message"]["content"] == LLAMA
    plain = len(house.engine.calls[0]["prompt_ids"])
    await post(house, json=ask())
    assert [call["json_schema"] for call in house.engine.calls] == [None, None]
    assert len(house.engine.calls[1]["prompt_ids"]) == plain


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tools": [{"type": "functions"}]}, "tools.0.type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ({"tools": TOOLS + TOOLS}, "tools"),
        ({"tools": [function("f", {"type": "array"})]}, "tools"),
        ({"tools": [function("f", {"not": {}})], "tool_choice": "required"}, "tools"),
        ({"tools": TOOLS, "tool_choice": "always"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"tools": TOOLS, "tool_choice": "required", "stop_token_ids": [3]}, "stop_token_ids"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "x", "tool_call_id": "y"}]}, "messages.0.tool_call_id"),
        ({"messages": [{"role": "tool", "content": "x", "tool_call_id": "y"}]}, "messages.0"),
        ({"messages": [{"role": "assistant", "tool_calls": []}]}, "messages.0.content"),
    ],
    ids=ascii,
)
async def test_what_is_wrong_with_tools_is_named(
    make_house: MakeHouse, fields: dict[str, Any], param: str | None
) -> None:
    house = make_house()
    assert assert_openai_error(await post(house, json=ask(**fields)), 400, None)["param"] == param
    assert house.engine.calls == []
