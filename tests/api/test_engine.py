"""The parts of the engine that need no vLLM; tests/system has the rest."""

import math
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from api.engine.artifact import read_artifact
from api.engine.delta import ThinkingDelta, echoed
from api.engine.engine import Engine
from api.engine.presets import hardware_arguments
from api.engine.sampling import Sampling
from api.engine.thinking import Marker, Thinks
from api.errors import EngineFailed, EngineStartError
from api.settings import Settings


class FakeLlm:
    """Answer in two outputs of so many tokens. asked: vLLM's parameters of each request."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, tokens: int = 1) -> None:
        self.asked: list[Any] = []
        self._tokens = tokens
        exceptions = SimpleNamespace(EngineDeadError=RuntimeError, EngineGenerateError=RuntimeError)
        kinds = SimpleNamespace(DELTA="delta", FINAL_ONLY="final only")
        for name, module in {
            "vllm": SimpleNamespace(SamplingParams=SimpleNamespace),
            "vllm.sampling_params": SimpleNamespace(RequestOutputKind=kinds, StructuredOutputsParams=dict),
            "vllm.v1.engine.exceptions": exceptions,
        }.items():
            monkeypatch.setitem(sys.modules, name, module)

    async def generate(self, prompt: Any, params: Any, **_: Any) -> AsyncIterator[Any]:
        self.asked.append(params)
        for text in ("a", "b"):
            completion = SimpleNamespace(index=0, text=text, token_ids=[1] * self._tokens, logprobs=None)
            completion.finish_reason = None
            yield SimpleNamespace(outputs=[completion], num_cached_tokens=0)


@pytest.mark.anyio
@pytest.mark.parametrize(("stream", "tokens"), [(True, 1), (False, 8)])
async def test_answers_come_while_they_are_generated_also_those_that_are_sent_whole(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch, stream: bool, tokens: int
) -> None:
    """Or a whole answer whose client leaves would cost its key nothing but the prompt."""
    llm = FakeLlm(monkeypatch, tokens)
    engine = Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts))
    engine._llms = [llm]
    deltas = [delta async for delta in engine.generate("x", [1], Sampling(), 16, stream=stream)]
    assert [(delta.text, delta.tokens) for delta in deltas] == [("a", tokens), ("b", tokens)]
    assert (llm.asked[0].output_kind, llm.asked[0].stream_interval) == ("delta", tokens)


@pytest.mark.anyio
async def test_an_answer_that_thinks_obeys_a_grammar_with_its_thinking(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    llm = FakeLlm(monkeypatch, 2)
    engine = Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts))
    engine._llms = [llm]
    for thinks in (None, Thinks(Marker("<t>"), Marker("</t>", 7, special=True), inside=True)):
        asked = engine.generate("x", [1], Sampling(), 16, stream=True, json_schema="{}", thinks=thinks)
        ids = [delta.ids if isinstance(delta, ThinkingDelta) else None async for delta in asked]
        assert ids == [None if thinks is None else [1, 1]] * 2
    plain, thought = llm.asked
    assert (plain.structured_outputs, plain.skip_special_tokens) == ({"json": "{}"}, True)
    [(kind, grammar)] = thought.structured_outputs.items()
    assert kind == "grammar" and "answer: %json" in grammar
    assert not thought.skip_special_tokens, "the closing marker is a control token, and it must be seen"


@pytest.mark.anyio
@pytest.mark.parametrize(
    ("inside", "prompt", "asked", "limit"),
    [
        (True, [1, 6, 2], 5, 6),  # the template has written a line break behind the marker
        (True, [6, 1, 7, 6], 0, 0),
        (True, [1, 6], 10**18, 256),
        (True, [1, 6], None, None),
        (False, [1, 2], 5, 5),
        (False, [1, 6, 2, 7, 1], 5, 5),
        (False, [1, 6, 2], 5, None),  # what a message contains is no thinking
    ],
)
async def test_the_engine_counts_the_thinking_from_its_marker(
    artifacts: Path,
    monkeypatch: pytest.MonkeyPatch,
    inside: bool,
    prompt: list[int],
    asked: int | None,
    limit: int | None,
) -> None:
    llm = FakeLlm(monkeypatch)
    engine = Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts))
    engine._llms = [llm]
    sampling = Sampling(thinking_tokens=asked)
    for thinks in (
        Thinks(Marker("<t>", 6), Marker("</t>", 7), inside),
        Thinks(Marker("<t>"), Marker("</t>", 7), inside),
        None,
    ):
        async for _ in engine.generate("x", prompt, sampling, 16, stream=True, thinks=thinks):
            pass
    found = [getattr(params, "thinking_token_budget", None) for params in llm.asked]
    assert found == [limit, None, None]
    assert not hasattr(llm.asked[0], "thinking_tokens"), "vLLM has no such parameter"


def test_an_echoed_prompt_has_logprobs_for_all_tokens_but_its_first() -> None:
    own, other = SimpleNamespace(logprob=-0.5, rank=2), SimpleNamespace(logprob=-0.1, rank=1)
    completion = SimpleNamespace(text="!", token_ids=[9], logprobs=[{9: own}], finish_reason=None)
    first = SimpleNamespace(prompt_logprobs=[None, {8: own, 4: other}])
    (before, *nothing), *rest = echoed([7, 8], first, completion, 0, 0).logprobs or []
    assert before[0] == 7 and math.isnan(before[1]) and nothing == []
    assert rest == [[(8, -0.5), (4, -0.1), (8, -0.5)], [(9, -0.5), (9, -0.5)]]
    later = SimpleNamespace(prompt_logprobs=[])
    assert echoed([7, 8], later, completion, 0, 0).logprobs == [[(9, -0.5), (9, -0.5)]]


@pytest.mark.anyio
async def test_a_request_whose_turn_comes_after_the_engine_ended_gets_engine_failed(artifacts: Path) -> None:
    """A queue of requests can outlive the engine that they wait for by a second."""
    engine = Engine(Settings(artifacts_dir=artifacts), read_artifact(artifacts))
    engine.shutdown()
    with pytest.raises(EngineFailed):
        await anext(engine.generate("late", [1], Sampling(), 1, stream=True))


def hardware(monkeypatch: pytest.MonkeyPatch, gpus: int) -> None:
    platform = SimpleNamespace(is_cpu=lambda: gpus == 0)
    monkeypatch.setitem(sys.modules, "vllm", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "vllm.platforms", SimpleNamespace(current_platform=platform))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)


@pytest.mark.parametrize(
    ("gpus", "sizes"),
    [(0, (2, 1)), (1, (2, 1)), (3, (2, 2))],
    ids=["none", "one", "fewer than both together"],
)
def test_more_gpus_than_exist_are_refused_in_one_line(
    monkeypatch: pytest.MonkeyPatch, gpus: int, sizes: tuple[int, int]
) -> None:
    hardware(monkeypatch, gpus)
    settings = Settings(tensor_parallel_size=sizes[0], data_parallel_size=sizes[1])
    with pytest.raises(
        EngineStartError, match=rf"= {sizes[0] * sizes[1]} GPUs are needed, and there are {gpus}$"
    ):
        hardware_arguments(settings, engines=1)


def test_the_engine_gets_the_settings_of_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    hardware(monkeypatch, gpus=4)
    found: dict[str, Any] = hardware_arguments(
        Settings(tensor_parallel_size=2, data_parallel_size=2), engines=1
    )
    assert (found["tensor_parallel_size"], found["data_parallel_size"]) == (2, 2)
