"""Thinking told apart from the answer by the real engine, as clients read it.

The model has never learned to think: its template is replaced, and two tokens that nobody uses are markers.
`logit_bias` makes it write the closing one.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import anthropic
import jsonschema
import openai
import pytest

from bench.load import Service
from tests.support import PATIENCE_S
from tests.support.system import Up
from tests.support.thinking import SWITCHED, thinking_artifact

CLOSES = {"15": 100}  # so that the thinking ends at once
MAY_CLOSE = {"15": 9}  # or sooner or later
COLOR = {
    "type": "object",
    "properties": {"color": {"enum": ["red", "blue"]}, "why": {"type": "string", "maxLength": 8}},
    "required": ["color", "why"],
    "additionalProperties": False,
}
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "x", "schema": COLOR, "strict": True}}
USER: Any = {"role": "user", "content": "Name a color."}
LITELLM = """
import json, litellm, sys
ask = json.loads(sys.argv[1])
message = litellm.completion(**ask).choices[0].message
deltas = [chunk.choices[0].delta for chunk in litellm.completion(**ask, stream=True)]
streamed = "".join(getattr(delta, "reasoning_content", None) or "" for delta in deltas)
print(json.dumps([message.reasoning_content, streamed, message.content]))
"""


@pytest.fixture(scope="module")
def thinking(first_up: Up, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder: Path = tmp_path_factory.mktemp("thinking")
    model = (first_up.artifacts / "models" / "current").resolve()
    thinking_artifact(model, folder / "artifacts", SWITCHED, special=False)
    service = Service(folder / "artifacts", folder / "api.log", {"API_MAX_NUM_SEQS": "8"})
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture
def api(thinking: Service) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{thinking.url}/v1", api_key="none", max_retries=0, timeout=2 * PATIENCE_S)


@pytest.fixture
def asked(thinking: Service) -> dict[str, Any]:
    return {"model": thinking.model, "messages": [USER], "temperature": 0, "max_tokens": 12}


def test_thinking_ends_at_its_limit_and_no_request_has_anothers(
    api: openai.OpenAI, asked: dict[str, Any]
) -> None:
    """In vLLM before 0.28 a limit could end up in other requests (GHSA-fpch-3xrf-7q96)."""

    def thinking_tokens(limit: int | None) -> Any:
        fields = {} if limit is None else {"thinking_token_budget": limit}
        done = api.chat.completions.create(**asked, extra_body=fields)
        assert bool(done.choices[0].message.content) == (limit is not None)
        details = done.usage and done.usage.completion_tokens_details
        return details and details.reasoning_tokens

    limits = [None, 0, 3, None, 1, 5, None, 2] * 2
    with ThreadPoolExecutor(len(limits)) as threads:
        for limit, tokens in zip(limits, threads.map(thinking_tokens, limits), strict=True):
            # The marker counts, too, and so may the line break behind it.
            assert tokens in ((12,) if limit is None else (limit + 1, limit + 2))


def test_an_answer_with_a_limit_of_thinking_obeys_its_schema(
    api: openai.OpenAI, asked: dict[str, Any]
) -> None:
    more: dict[str, Any] = {"max_tokens": 64, "extra_body": {"reasoning": {"max_tokens": 4}}}
    done = api.chat.completions.create(**asked | more, response_format=FORMAT)
    jsonschema.validate(json.loads(done.choices[0].message.content or ""), COLOR)


def test_an_answer_that_is_cut_in_its_thinking_is_the_same_streamed(
    api: openai.OpenAI, asked: dict[str, Any]
) -> None:
    whole = api.chat.completions.create(**asked)
    [choice], details = whole.choices, whole.usage and whole.usage.completion_tokens_details
    assert (choice.message.content, choice.finish_reason) == ("", "length")
    assert details and details.reasoning_tokens == 12
    with_stops = api.chat.completions.create(**asked, stop=["e", " ", "\n"]).choices[0]
    assert with_stops.message == choice.message, "stop strings do not end the thinking"
    chunks = [chunk.choices[0] for chunk in api.chat.completions.create(**asked, stream=True)]
    for name in ("reasoning_content", "reasoning"):
        thought = "".join((chunk.delta.model_extra or {}).get(name) or "" for chunk in chunks)
        assert thought == (choice.message.model_extra or {})[name] != ""
    assert [chunk.delta.content for chunk in chunks if chunk.delta.content] == []


def test_thinking_that_is_turned_off_is_not_in_the_prompt(api: openai.OpenAI, asked: dict[str, Any]) -> None:
    for off in ({"reasoning_effort": "none"}, {"extra_body": {"enable_thinking": False}}):
        answer = api.chat.completions.create(**asked, **off)
        assert "reasoning_content" not in (answer.choices[0].message.model_extra or {})
        assert answer.usage and answer.usage.completion_tokens_details is None
    thought = api.chat.completions.create(**asked)
    assert thought.usage and answer.usage.prompt_tokens > thought.usage.prompt_tokens, (
        "an empty block is longer"
    )


def test_a_format_holds_after_the_thinking_wherever_it_ends(
    api: openai.OpenAI, asked: dict[str, Any]
) -> None:
    asked |= {"response_format": FORMAT, "max_tokens": 60}
    ended = set()
    for bias in (CLOSES, MAY_CLOSE):
        answer = api.chat.completions.create(**asked | {"temperature": 1.3}, logit_bias=bias, n=8, seed=1)
        for choice in answer.choices:
            ended.add(choice.finish_reason)
            if choice.finish_reason == "stop":
                jsonschema.validate(json.loads(choice.message.content or ""), COLOR)
            assert "think>" not in str((choice.message.model_extra or {}).get("reasoning_content"))
    assert "stop" in ended
    off = api.chat.completions.create(**asked, reasoning_effort="none").choices[0]
    jsonschema.validate(json.loads(off.message.content or ""), COLOR)


def test_a_required_call_follows_the_thinking(api: openai.OpenAI, asked: dict[str, Any]) -> None:
    tool: Any = {"type": "function", "function": {"name": "paint", "parameters": COLOR}}
    asked |= {"tools": [tool], "tool_choice": "required", "logit_bias": CLOSES, "max_tokens": 64}
    with api.chat.completions.stream(**asked) as stream:
        streamed = stream.get_final_completion().choices[0]
    whole = api.chat.completions.create(**asked).choices[0]
    for choice in (streamed, whole):
        assert choice.finish_reason == "tool_calls"
        [call] = choice.message.tool_calls or []
        assert call.type == "function"
        jsonschema.validate(json.loads(call.function.arguments), COLOR)


def test_a_response_has_the_thinking_as_an_item_and_takes_it_back(
    api: openai.OpenAI, asked: dict[str, Any]
) -> None:
    ask: Any = {"model": asked["model"], "temperature": 0, "max_output_tokens": 8}
    whole = api.responses.create(**ask, input="Name a color.")
    with api.responses.stream(**ask, input="Name a color.") as stream:
        streamed = [event.delta for event in stream if event.type == "response.reasoning_text.delta"]
    [item] = whole.output
    assert item.type == "reasoning" and item.content and item.content[0].text == "".join(streamed) != ""
    assert whole.usage and whole.usage.output_tokens_details.reasoning_tokens == 8
    said: Any = {"role": "assistant", "content": "Blue."}
    more = api.responses.with_raw_response.create(**ask, input=[USER, item.to_dict(), said, USER])
    assert more.headers.get("x-ignored-fields") == "input.id, input.status"


def test_anthropics_client_has_thinking_if_it_asks(thinking: Service, asked: dict[str, Any]) -> None:
    api = anthropic.Anthropic(base_url=thinking.url, api_key="none", max_retries=0, timeout=2 * PATIENCE_S)
    ask: Any = {"model": asked["model"], "max_tokens": 8, "messages": [USER]}
    ask["extra_body"] = {"temperature": 0}
    [block] = api.messages.create(**ask).content
    assert block.type == "text"
    answer = api.messages.create(**ask, thinking={"type": "enabled", "budget_tokens": 1024})
    [block] = answer.content
    assert block.type == "thinking" and block.thinking and answer._request_id
    assert answer.usage.output_tokens_details and answer.usage.output_tokens_details.thinking_tokens == 8
    with api.messages.stream(**ask, thinking={"type": "adaptive"}) as stream:
        thought = "".join(event.thinking for event in stream if event.type == "thinking")
        assert thought == block.thinking
        assert stream.get_final_message().content == answer.content


def test_litellm_reads_the_thinking(thinking: Service, asked: dict[str, Any]) -> None:
    """In a process of its own: what it warns about is its own."""
    ask = {**asked, "model": f"openai/{asked['model']}", "api_base": f"{thinking.url}/v1", "api_key": "none"}
    quiet = {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "PYTHONWARNINGS": "ignore"}
    done = subprocess.run(
        [sys.executable, "-c", LITELLM, json.dumps(ask)],
        env={**os.environ, **quiet}, capture_output=True, text=True, timeout=4 * PATIENCE_S,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    whole, streamed, text = json.loads(done.stdout.splitlines()[-1])
    assert whole == streamed != "" and not text
