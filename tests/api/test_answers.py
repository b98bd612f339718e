"""The events of answers: the same for a stream and a whole answer, in one order, with nothing left open."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, cast

import pytest

from api.engine.delta import Delta
from api.engine.messages import Tool
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.engine.tool_prompt import HERMES
from api.errors import EngineFailed
from api.generation.answer_schema import Offer
from api.generation.answers import Answers
from api.generation.events import Usage
from api.generation.request import FieldNames, GenerationRequest
from api.telemetry.metrics import Metrics, Tally

METRICS = Metrics()
CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'


class Recorder:
    """Events as tuples, without ids and logprobs; every event sends one byte."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        def note(*arguments: Any) -> bytes:
            said = [getattr(one, "name", one) for one in arguments if not isinstance(one, list)]
            self.events.append((name, *said))
            return b"."

        return note


def answers(recorder: Recorder, *, n: int = 1, tools: bool = False) -> Answers:
    request = GenerationRequest(
        model="m",
        prompts=["x"],
        sampling=Sampling(n=n),
        max_tokens=None,
        stream=True,
        fields=FieldNames("prompt", "max_tokens"),
        offer=Offer([Tool("f")] if tools else ()),
    )
    prompt = cast(Prompt, SimpleNamespace(written=HERMES, calls_in_controls=False))
    return Answers(cast(Any, recorder), request, prompt, Tally("", 5, n, True, METRICS), {})


def read(deltas: Sequence[Delta], **options: Any) -> list[tuple[Any, ...]]:
    recorder = Recorder()
    made = answers(recorder, **options)
    sent = b"".join(made.read(delta) for delta in deltas)
    assert len(sent) == len(recorder.events), "what an event returns is sent"
    assert made.running == 0
    return recorder.events


def test_an_answer_begins_once_and_ends_once() -> None:
    deltas = [
        Delta("a", 1, None, cached_tokens=3),
        Delta("", 1, None),
        Delta("b", 1, None),
        Delta("c", 1, "stop", stop="."),
    ]
    assert read(deltas) == [
        ("start", Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=1)),
        ("text", 0, "a", True),
        ("text", 0, "b"),
        ("text", 0, "c", False),
        ("part_end", 0, True),
        ("finish", 0, "stop", "."),
        ("end", Usage(prompt_tokens=5, cached_tokens=3, completion_tokens=4)),
    ]


@pytest.mark.parametrize("tools", [False, True])
def test_an_answer_without_text_has_one_empty_text(tools: bool) -> None:
    found = read([Delta("", 1, "length")], tools=tools)
    assert [event[0] for event in found] == ["start", "text", "part_end", "finish", "end"]
    assert found[1:4] == [("text", 0, "", True), ("part_end", 0, False), ("finish", 0, "length", None)]


def test_answers_of_one_request_share_start_and_end() -> None:
    deltas = [Delta("a", 1, None, 0), Delta("b", 1, "stop", 1), Delta("", 1, "stop", 0)]
    found = [event[:2] if event[0] in ("text", "finish") else event[:1] for event in read(deltas, n=2)]
    assert found[0] == ("start",) and found[-1] == ("end",)
    ended = [("part_end",), ("finish", 1), ("part_end",), ("finish", 0)]
    assert found[1:-1] == [("text", 0), ("text", 1), *ended]


def test_a_text_ends_before_a_call_and_a_call_before_the_next() -> None:
    found = read([Delta(f"Well: {CALL}{CALL}", 9, "stop")], tools=True)[1:-1]
    assert found == [
        ("text", 0, "Well: ", True),
        ("part_end", 0, True),
        ("call", 0, 0, "f", False),
        ("arguments", 0, 0, '{"a": 1}'),
        ("part_end", 0, True),
        ("call", 0, 1, "f", False),
        ("arguments", 0, 1, '{"a": 1}'),
        ("part_end", 0, True),
        ("finish", 0, "tool_calls", None),
    ]


def test_a_failure_ends_what_is_open_and_nothing_else() -> None:
    recorder = Recorder()
    made = answers(recorder, n=3)
    for delta in (Delta("a", 1, None, 0), Delta("b", 1, "stop", 1)):
        made.read(delta)
    recorder.events.clear()
    failure = EngineFailed("gone")
    made.fail(failure)
    assert recorder.events == [("part_end", 0, False), ("error", failure)]


def test_nothing_is_sent_while_a_text_may_still_become_a_call() -> None:
    recorder = Recorder()
    made = answers(recorder, tools=True)
    assert made.read(Delta(CALL[:20], 1, None)) == b""
    assert recorder.events == []
