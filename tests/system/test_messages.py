"""/v1/messages through Anthropic's client, by the real engine."""

from typing import Any

import anthropic
import pytest

from bench.load import Service
from tests.support import PATIENCE_S
from tests.support.system import CERTAIN, KEY

WEATHER: Any = {
    "name": "weather",
    "description": "The weather in a city.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"enum": ["Paris", "Rome"]}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture
def client(service: Service) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=service.url, api_key=KEY, max_retries=0, timeout=2 * PATIENCE_S)


@pytest.fixture
def asked(service: Service) -> dict[str, Any]:
    messages = [{"role": "user", "content": CERTAIN}]
    return {"model": service.model, "max_tokens": 6, "messages": messages, "extra_body": {"temperature": 0}}


def test_whole_answer_stream_and_count_agree(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    whole = client.messages.create(**asked, system=[{"type": "text", "text": "Be brief."}])
    assert whole.stop_reason in ("max_tokens", "end_turn") and 0 < whole.usage.output_tokens <= 6
    [block] = whole.content
    assert block.type == "text" and block.text
    with client.messages.stream(**asked, system="Be brief.") as stream:
        assert "".join(stream.text_stream) == block.text
        assert stream.get_final_message().stop_reason == whole.stop_reason
    del asked["max_tokens"], asked["extra_body"]
    counted = client.messages.count_tokens(**asked, system="Be brief.")
    assert counted.input_tokens == whole.usage.input_tokens + (whole.usage.cache_read_input_tokens or 0)


def test_a_stop_sequence_is_named(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    said = client.messages.create(**asked).content[0]
    assert said.type == "text"
    stop = said.text.split()[1]
    answer = client.messages.create(**asked, stop_sequences=["never said", stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_a_tool_is_called_and_its_result_is_read(client: anthropic.Anthropic, asked: dict[str, Any]) -> None:
    asked |= {"tools": [WEATHER], "max_tokens": 64}
    choice: Any = {"type": "tool", "name": "weather"}
    whole = client.messages.create(**asked, tool_choice=choice)
    [call] = whole.content
    assert whole.stop_reason == "tool_use" and call.type == "tool_use"
    with client.messages.stream(**asked, tool_choice=choice) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.type == "tool_use" and streamed.input == call.input in (
        {"city": "Paris"},
        {"city": "Rome"},
    )
    asked["messages"] += [
        {"role": "assistant", "content": whole.content},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": call.id, "content": "11 C"}]},
    ]
    more = client.messages.create(**asked | {"max_tokens": 4}, tool_choice={"type": "none"})
    assert more.content[0].type == "text" and more.stop_reason in ("end_turn", "max_tokens")


def test_fields_that_change_nothing_are_named_and_others_are_refused(
    client: anthropic.Anthropic, service: Service, asked: dict[str, Any]
) -> None:
    raw = client.beta.messages.with_raw_response.create(
        **asked,
        betas=["context-management-2025-06-27"],
        context_management={"edits": [{"type": "clear_thinking_20251015"}]},
        thinking={"type": "enabled", "budget_tokens": 1024},
        metadata={"user_id": "u"},
        output_config={"effort": "low"},
    )
    assert raw.parse().content
    named = raw.headers["x-ignored-fields"].split(", ")
    assert named == [
        "context_management", "metadata", "output_config.effort", "thinking", "thinking.budget_tokens",
    ]  # fmt: skip
    image: Any = {"type": "image", "source": {"type": "url", "url": "https://example.org/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match=r"messages\.0\.content\.0.*'image'"):
        client.messages.create(**{**asked, "messages": [{"role": "user", "content": [image]}]})
    with pytest.raises(anthropic.NotFoundError, match=service.model) as missing:
        client.messages.create(**{**asked, "model": "claude-x"})
    assert missing.value.type == "not_found_error"
    stranger = client.with_options(api_key="wrong")
    with pytest.raises(anthropic.AuthenticationError):
        stranger.messages.create(**asked)
