"""Schemas are tried out in a process of their own: what would hurt the engine never reaches it."""

import asyncio
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from api.dialects.chat.answer import ChatCompletion, ChatCompletionChunk
from api.dialects.responses.answer import ResponseBody
from api.engine import grammars as grammars_module
from api.engine.artifact import Artifact, read_artifact
from api.engine.delta import Delta
from api.engine.grammars import MAX_WAITING, Grammars
from api.errors import InvalidRequest, Overloaded, Unavailable
from tests.support.api import MODEL, FakeEngine, House, ask, assert_openai_error, events, post

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]
ROOT = Path(__file__).parents[2]
BOMB = {"type": "array", "items": {"type": "integer"}, "maxItems": 10**8}  # minutes in the library itself


@pytest.fixture
def artifact(artifacts: Path) -> Artifact:
    return read_artifact(artifacts)


@pytest.fixture
async def grammars(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Grammars]:
    """A busy machine may take more than a minute to start the worker."""
    monkeypatch.setattr(grammars_module, "TIMEOUT_S", 600)
    made = Grammars()
    yield made
    await made.close()


def says(text: str) -> FakeEngine:
    return FakeEngine(deltas=[Delta(text, 1, None), Delta("", 1, "stop")], max_model_len=4096)


async def refusal(grammars: Grammars, artifact: Artifact, schema: dict[str, Any]) -> str:
    with pytest.raises(InvalidRequest) as refused:
        await grammars.require(json.dumps(schema), artifact, "response_format")
    assert refused.value.param == "response_format"
    return refused.value.message


def children_s(pid: int) -> float:
    """Return the processor time of the children that have ended. A busy machine adds nothing to it."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[13]) + int(fields[14])) / os.sysconf("SC_CLK_TCK")


async def test_bombs_and_dead_ends_are_refused_in_time_and_others_are_not(
    grammars: Grammars, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = json.dumps({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]})
    await grammars.require(good, artifact, "response_format")
    worker = grammars._worker
    assert worker is not None
    before = children_s(worker.pid)
    assert "too much time" in await refusal(grammars, artifact, BOMB)
    assert children_s(worker.pid) - before < 10, "a trial may have 5 s"
    assert "no text can satisfy it" in await refusal(grammars, artifact, {"$ref": "#"})
    empty = {"type": "integer", "minimum": 3, "maximum": 1}
    assert "greater than maximum" in await refusal(grammars, artifact, empty)
    assert "regex parse error" in await refusal(grammars, artifact, {"type": "string", "pattern": "["})
    assert grammars._worker is worker, "one bad schema costs the others nothing"
    monkeypatch.setattr(grammars, "_try", None)  # a second trial would fail: the first is remembered
    assert "too much time" in await refusal(grammars, artifact, BOMB)


LIMITED = """
import time
from api.engine import grammar_worker as worker

def spin():
    while time.process_time() < 15:
        pass
    return "was never ended"

def filled(size):
    return lambda: f"has {len(bytearray(size)) >> 20} MiB"

worker.CPU_S = 1
for work in (spin, filled(worker.MEMORY_BYTES // 4), filled(2 * worker.MEMORY_BYTES)):
    print(worker._in_a_fork(work, "ended"))
"""


def test_the_kernel_ends_work_that_takes_more_time_or_memory_than_it_may() -> None:
    done = subprocess.run([sys.executable, "-c", LIMITED], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert done.stdout.splitlines() == ["ended", "has 128 MiB", "ended"]


async def test_a_worker_that_dies_is_reported_and_replaced(grammars: Grammars, artifact: Artifact) -> None:
    slow = json.dumps(BOMB)
    asking = [asyncio.ensure_future(grammars.require(slow, artifact, "tools")) for _ in range(2)]
    while grammars._worker is None:
        await asyncio.sleep(0.01)
    os.kill(grammars._worker.pid, signal.SIGKILL)
    for one in asking:
        with pytest.raises(Unavailable):
            await one
    await grammars.require('{"type": "object"}', artifact, "tools")


async def test_too_many_new_schemas_are_refused_at_once(
    grammars: Grammars, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def forever(*_: Any) -> str:
        await asyncio.sleep(3600)
        return ""

    monkeypatch.setattr(grammars, "_try", forever)
    asking = [
        asyncio.ensure_future(grammars.require(str(number), artifact, "tools"))
        for number in (*range(MAX_WAITING), 0)  # the last waits for the first's trial
    ]
    await asyncio.sleep(0)  # each has begun to wait
    with pytest.raises(Overloaded):
        await grammars.require("new", artifact, "tools")
    assert not any(one.done() for one in asking)
    for task in (*asking, *grammars._trials.values()):
        task.cancel()


async def test_too_many_checks_wait_for_nothing(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    async def forever(*_: Any) -> str:
        await asyncio.sleep(3600)
        return ""

    monkeypatch.setattr(grammars, "_ask", forever)
    asking = [asyncio.ensure_future(grammars.check("1", "{}")) for _ in range(MAX_WAITING)]
    await asyncio.sleep(0)  # each has begun to wait
    assert await grammars.check("1", "{}") == "the answer could not be checked"
    for task in (*asking, *grammars._checks):
        task.cancel()


async def test_a_schema_reaches_the_engine_only_after_its_trial(make_house: MakeHouse) -> None:
    house = make_house(says("3"))

    def wants(schema: dict[str, Any]) -> dict[str, Any]:
        format = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        return {**ask(), "response_format": format}

    try:
        refused = await post(house, json=wants({"$ref": "#"}))
        assert assert_openai_error(refused, 400, None)["param"] == "response_format"
        assert house.engine.calls == []
        async with house.client() as client:
            assert (await client.post("/v1/chat/completions", json=wants({"const": 3}))).status_code == 200
            object = ask(response_format={"type": "json_object"})
            assert (await client.post("/v1/chat/completions", json=object)).status_code == 200
    finally:
        await house.service.grammars.close()
    assert [call["json_schema"] for call in house.engine.calls] == ['{"const":3}', '{"type":"object"}']


async def test_a_check_of_an_answer_ends_too(grammars: Grammars) -> None:
    assert await grammars.check('["a"]', '{"uniqueItems": true}') == ""
    assert "non-unique" in await grammars.check('["a", "a"]', '{"uniqueItems": true}')
    assert "not valid JSON" in await grammars.check('["a"', "{}")
    for_ever = json.dumps({"not": {"pattern": "^(a+)+$"}})
    assert await grammars.check(json.dumps("a" * 64 + "!"), for_ever) == "the answer could not be checked"
    worker = grammars._worker
    assert worker is not None
    worker.kill()
    assert await grammars.check("1", "{}") == "the answer could not be checked"
    assert await grammars.check("1", "{}") == "", "a worker that has died is replaced"


TAGS = {"type": "array", "items": {"type": "string"}, "uniqueItems": True}


@pytest.mark.parametrize(("text", "error"), [('["a"]', None), ('["a","a"]', "non-unique")])
async def test_an_answer_to_a_schema_that_is_not_strict_is_checked_at_its_end(
    make_house: MakeHouse, text: str, error: str | None
) -> None:
    house = make_house(says(text))
    format = {"type": "json_schema", "name": "x", "schema": TAGS, "strict": False}
    chat = ask(response_format={"type": "json_schema", "json_schema": {**format, "type": None}})
    del chat["response_format"]["json_schema"]["type"]
    responses = {"model": MODEL, "input": "Hi", "text": {"format": format}}
    await house.load()
    try:
        async with house.client() as client:
            whole = (await client.post("/v1/chat/completions", json=chat)).json()
            ended = events(await client.post("/v1/chat/completions", json={**chat, "stream": True}))[-2]
            response = (await client.post("/v1/responses", json=responses)).json()
            streamed = await client.post("/v1/responses", json={**responses, "stream": True})
    finally:
        await house.service.grammars.close()
    ChatCompletion.model_validate(whole)
    ChatCompletionChunk.model_validate(ended)
    ResponseBody.model_validate(response)
    last = json.loads(streamed.text.strip().splitlines()[-1].removeprefix("data: "))["response"]
    for said in (whole["choices"][0], ended["choices"][0], response, last):
        assert said.get("finish_reason", "stop") == "stop" and said.get("status", "completed") == "completed"
        assert ("schema_error" in said) == (error is not None) and (error or "") in said.get(
            "schema_error", ""
        )
    assert json.loads(house.engine.calls[0]["json_schema"]) == {"type": "array", "items": {"type": "string"}}


async def test_arguments_of_a_function_that_is_not_strict_are_checked(make_house: MakeHouse) -> None:
    house = make_house(says('{"name":"f","arguments":{"tags":["a","a"]}}'))
    function = {"name": "f", "strict": False, "parameters": {"type": "object", "properties": {"tags": TAGS}}}
    body = ask(tools=[{"type": "function", "function": function}], tool_choice="required")
    try:
        [choice] = (await post(house, json=body)).json()["choices"]
    finally:
        await house.service.grammars.close()
    assert choice["finish_reason"] == "tool_calls" and "non-unique" in choice["schema_error"]
    strict = {**function, "strict": True}
    refused = await post(make_house(), json={**body, "tools": [{"type": "function", "function": strict}]})
    assert "'uniqueItems'" in assert_openai_error(refused, 400, None)["message"]


@pytest.mark.parametrize("stop", [None, "!"])
async def test_an_answer_that_the_library_gave_up_on_is_no_answer(
    make_house: MakeHouse, monkeypatch: pytest.MonkeyPatch, stop: str | None
) -> None:
    """vLLM ends it with the reason `stop`. With a stop string of the client it may really have ended."""

    async def require(*_: Any) -> None: ...

    monkeypatch.setattr(Grammars, "require", require)
    body = ask(response_format={"type": "json_object"}, stop=stop)
    answer = await post(make_house(says('{"a":')), json=body)
    if stop:
        assert answer.status_code == 200
    else:
        assert_openai_error(answer, 503, "engine_failed")


@pytest.mark.parametrize(
    ("format", "param"),
    [
        ({"type": "regex"}, "response_format.type"),
        ({"type": "json_schema"}, "response_format.json_schema"),
        ({"type": "text", "json_schema": {"name": "x"}}, "response_format.json_schema"),
        ({"type": "json_schema", "json_schema": {"name": "a b"}}, "response_format.json_schema.name"),
        ({"type": "json_schema", "json_schema": {"name": "x", "y": 3}}, "response_format.json_schema.y"),
        ({"type": "json_schema", "json_schema": {"name": "x", "schema": {"not": {}}}}, "response_format"),
    ],
    ids=ascii,
)
async def test_a_wrong_format_is_named(make_house: MakeHouse, format: dict[str, Any], param: str) -> None:
    answer = await post(make_house(), json=ask(response_format=format))
    assert assert_openai_error(answer, 400, None)["param"] == param
