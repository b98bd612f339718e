"""What a request to /v1/messages may have, what becomes of it, and what is refused."""

from collections.abc import Callable
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from api.dialects.messages.schema import MAX_BLOCKS, MessageRequest
from api.engine.prompt import Prompt
from api.generation.answer_schema import Format
from tests.support.api import FakeEngine, House
from tests.support.messages import TOOL, URL, error_of, post, wants

pytestmark = pytest.mark.anyio
MakeHouse = Callable[..., House]


async def test_the_prompt_is_the_one_of_the_same_chat(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast
) -> None:
    house = make_house()
    blocks = [{"type": "text", "text": "Hi"}, {"type": "text", "text": "there"}]
    messages = [
        {"role": "user", "content": blocks},
        {"role": "assistant", "content": "Hello"},
        {"role": "user", "content": "And?"},
    ]
    await post(house, wants(system=[{"type": "text", "text": "Be kind."}], messages=messages))
    [call] = house.engine.calls
    assert tokenizer.decode(call["prompt_ids"]) == (
        "<|bos|><|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nHi\nthere<|im_end|>\n"
        "<|im_start|>assistant\nHello<|im_end|>\n<|im_start|>user\nAnd?<|im_end|>\n<|im_start|>assistant\n"
    )


def test_blocks_become_turns_calls_and_results() -> None:
    def use(id: str) -> dict[str, Any]:
        return {"type": "tool_use", "id": id, "name": "weather", "input": {"city": "Paris"}}

    def result(id: str, content: Any) -> dict[str, Any]:
        return {"type": "tool_result", "tool_use_id": id, "content": content}

    request = MessageRequest.model_validate(
        wants(
            tools=[TOOL],
            messages=[
                {"role": "user", "content": "Weather?"},
                {"role": "user", "content": "In Paris."},
                {"role": "assistant", "content": [{"type": "text", "text": "Well:"}, use("a"), use("b")]},
                {
                    "role": "user",
                    "content": [
                        result("a", "11 C"),
                        result("b", [{"type": "text", "text": "rain"}]),
                        {"type": "text", "text": "So?"},
                    ],
                },
            ],
        )
    )
    asked, called, first, second, more = request.conversation().messages
    assert (asked.role, asked.text) == ("user", "Weather?\nIn Paris.")
    assert (called.role, called.text) == ("assistant", "Well:")
    assert [(call.id, call.name, call.arguments) for call in called.calls] == [
        ("a", "weather", '{"city":"Paris"}'),
        ("b", "weather", '{"city":"Paris"}'),
    ]
    assert [(turn.role, turn.call_id, turn.text) for turn in (first, second)] == [
        ("tool", "a", "11 C"),
        ("tool", "b", "rain"),
    ]
    assert (more.role, more.text) == ("user", "So?")


@pytest.mark.parametrize(
    ("choice", "names", "required", "parallel"),
    [
        (None, ["weather", "now"], False, True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ["weather", "now"], False, False),
        ({"type": "any"}, ["weather", "now"], True, True),
        ({"type": "tool", "name": "now"}, ["now"], True, True),
        ({"type": "none"}, [], False, True),
    ],
)
def test_a_tool_choice_says_what_may_and_must_be_called(
    tokenizer: PreTrainedTokenizerFast, choice: Any, names: list[str], required: bool, parallel: bool
) -> None:
    tools = [TOOL, {"type": "custom", "name": "now", "input_schema": {"type": "object"}}]
    offer = MessageRequest.model_validate(wants(tools=tools, tool_choice=choice)).offer()
    assert (offer.names, offer.parallel) == (names, parallel)
    assert (offer.answer_schema(None, "", Prompt(tokenizer)) is not None) == required


@pytest.mark.parametrize("field", ["output_config", "output_format"])
async def test_an_output_format_is_the_schema_of_the_answer(make_house: MakeHouse, field: str) -> None:
    format = {"type": "json_schema", "schema": {"const": "x"}}
    request = MessageRequest.model_validate(
        wants(**{field: {"format": format} if field == "output_config" else format})
    )
    assert request.format() == Format({"const": "x"})


async def test_a_last_message_of_the_assistant_is_continued(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast
) -> None:
    house = make_house()
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Well,"}]
    await post(house, wants(messages=messages))
    [call] = house.engine.calls
    assert tokenizer.decode(call["prompt_ids"]).endswith("<|im_start|>assistant\nWell,")


@pytest.mark.parametrize(("clear_at", "shown"), [("never", True), ("next_user_message", False)])
def test_a_system_message_is_shown_as_long_as_it_says(clear_at: str, shown: bool) -> None:
    told = {"role": "system", "content": "Today is Monday.", "clear_at": clear_at}
    user, answer = {"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}
    for messages, seen in (([user, told], True), ([user, told, answer, user], shown)):
        conversation = MessageRequest.model_validate(wants(messages=messages)).conversation()
        assert any(each.role == "system" for each in conversation.messages) == seen


async def test_a_line_that_differs_in_every_request_stays_out_of_the_prompt(
    make_house: MakeHouse, tokenizer: PreTrainedTokenizerFast
) -> None:
    """Claude Code sends it; with it the engine could use no cached prompt again."""
    house = make_house(FakeEngine(max_model_len=4096))
    line = "x-anthropic-billing-header: cc_version=2.1.100; cch=eb6c6;"
    for system in ([line, "Be kind."], [f"{line}\nBe kind."], ["Be kind."]):
        answer = await post(house, wants(system=[{"type": "text", "text": text} for text in system]))
        ignored = answer.headers.get("x-ignored-fields")
        assert ignored == (None if system == ["Be kind."] else "system.x-anthropic-billing-header")
    assert len({tuple(call["prompt_ids"]) for call in house.engine.calls}) == 1


async def test_what_changes_nothing_is_ignored_and_named(make_house: MakeHouse) -> None:
    """As Claude Code sends it."""
    cached = {"cache_control": {"type": "ephemeral", "ttl": "1h"}}
    thinking = {"type": "thinking", "thinking": "Hm", "signature": "x"}
    fields = wants(
        system=[{"type": "text", "text": "Be kind.", **cached}],
        messages=[
            {"role": "user", "content": [{"type": "text", "text": "Hi", **cached}]},
            {
                "role": "assistant",
                "content": [thinking, {"type": "text", "text": "Hello", "citations": None}],
            },
            {"role": "user", "content": "And?"},
            {"role": "system", "content": "Today is Monday."},
        ],
        tools=[
            {**TOOL, **cached, "eager_input_streaming": True},
            {"type": "web_search_20250305", "name": "web_search", "max_uses": 8},
        ],
        metadata={"user_id": "u"},
        thinking={"type": "adaptive"},
        context_management={"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        output_config={"effort": "high"},
        mcp_servers=[],
        tool_choice=None,
    )
    house = make_house(FakeEngine(max_model_len=4096))
    answer = await post(house, fields)
    assert answer.status_code == 200, answer.text
    named = (
        "context_management, mcp_servers, messages.content.cache_control, messages.content.signature, "
        "messages.content.thinking, metadata, output_config.effort, system.cache_control, thinking, "
        "tools.cache_control, tools.eager_input_streaming, tools.web_search_20250305"
    )
    assert answer.headers["x-ignored-fields"] == named
    plain = wants(
        system="Be kind.",
        messages=[
            {"role": "user", "content": "Hi"},
            {"role": "assistant", "content": "Hello"},
            {"role": "user", "content": "And?"},
            {"role": "system", "content": "Today is Monday."},
        ],
        tools=[TOOL],
    )
    await post(house, plain)
    first, second = house.engine.calls
    assert first["prompt_ids"] == second["prompt_ids"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"max_tokens": None}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages.0.role"),
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"stop_sequences": [""]}, "stop_sequences.0"),
        ({"stop_sequences": ["x"] * 17}, "stop_sequences"),
        ({"tools": [{"name": "f"}]}, "tools.0.input_schema"),
        ({"tools": [{"name": "f g", "input_schema": {}}]}, "tools.0.name"),
        ({"tools": [TOOL, TOOL]}, "two functions 'weather'"),
        ({"tool_choice": {"type": "any"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": "f"}, "tools": [TOOL]}, "tool_choice"),
        ({"output_format": {"type": "json_schema", "schema": {"not": {}}}}, "output_config.format"),
        ({"chat_template": "x"}, "chat_template"),
        ({"n": 2}, "'n'"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_bad_field_is_refused_by_its_name(
    make_house: MakeHouse, fields: dict[str, Any], named: str
) -> None:
    house = make_house(FakeEngine(max_model_len=4096))
    assert named in error_of(await post(house, wants(**fields)), 400, "invalid_request_error")
    assert house.engine.calls == []


def block_of(role: str, **block: Any) -> dict[str, Any]:
    return {"messages": [{"role": role, "content": [block]}]}


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            block_of("user", type="tool_use", id="a", name="f", input={}),
            "messages.0.content.0: belongs to a message of role 'assistant'",
        ),
        (
            block_of("assistant", type="tool_result", tool_use_id="a"),
            "messages.0.content.0: belongs to a message of role 'user'",
        ),
        (
            block_of("user", type="tool_result", tool_use_id="a"),
            "messages.0: it answers a call that is not before it (a)",
        ),
        (block_of("user", type="text"), "messages.0.content.0.text"),
        (block_of("user", type="text", text="x", extra=1), "extra"),
    ],
)
async def test_bad_block_is_refused_by_its_name(
    make_house: MakeHouse, fields: dict[str, Any], named: str
) -> None:
    assert named in error_of(await post(make_house(), wants(**fields)), 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        (
            block_of("user", type="image", source={}),
            "messages.0.content.0: an object of type 'image'. The model reads",
        ),
        (block_of("user", type="document", source={}), "messages.0.content.0: an object of type 'document'"),
        ({"container": "c"}, "container: The service runs no code"),
        ({"mcp_servers": [{}]}, "mcp_servers: The service calls no other servers"),
        ({"max_token": 1}, "Did you mean 'max_tokens'?"),
    ],
    ids=lambda value: ascii(value)[:50],
)
async def test_what_would_change_the_answer_is_refused_with_the_way_out(
    make_house: MakeHouse, fields: dict[str, Any], named: str
) -> None:
    assert named in error_of(await post(make_house(), wants(**fields)), 400, "invalid_request_error")


@pytest.mark.parametrize(
    ("text", "options", "message"),
    [
        ("x" * 300, {}, "prompt is too long: 320 tokens > 256 maximum"),
        (
            "Hi",
            {"strict_max_tokens": True},
            "input length and `max_tokens` exceed context limit: 22 + 250 > 256, decrease input length or "
            "`max_tokens` and try again",
        ),
    ],
)
async def test_what_does_not_fit_is_refused_in_the_words_that_claude_code_acts_on(
    make_house: MakeHouse, text: str, options: dict[str, Any], message: str
) -> None:
    asked = wants(messages=[{"role": "user", "content": text}], max_tokens=250)
    assert error_of(await post(make_house(**options), asked), 400, "invalid_request_error") == message


@pytest.mark.parametrize("url", [URL, f"{URL}/count_tokens"])
async def test_a_limit_of_blocks_counts_those_that_the_model_is_shown(
    make_house: MakeHouse, url: str
) -> None:
    """So does the limit of tools; the OpenAPI document says it in words."""
    house = make_house(FakeEngine(max_model_len=4096))
    shown, hidden = {"type": "text", "text": "a"}, {"type": "redacted_thinking", "data": "x"}
    for count, status in ((MAX_BLOCKS, 200), (MAX_BLOCKS + 1, 400)):
        body = wants(messages=[{"role": "user", "content": [shown] * count + [hidden] * 10}])
        if url != URL:
            del body["max_tokens"]
        answer = await post(house, body, url=url)
        assert answer.status_code == status, answer.text
    assert error_of(answer, 400, "invalid_request_error") == (
        f"messages.0.content: may have at most {MAX_BLOCKS} entries, not {MAX_BLOCKS + 1}."
    )


def test_the_document_counts_no_blocks_that_may_be_left_out() -> None:
    described = MessageRequest.model_json_schema()["$defs"]["InputMessage"]["properties"]["content"]
    [blocks] = [each for each in described["anyOf"] if each.get("type") == "array"]
    assert "maxItems" not in blocks
    assert blocks["description"] == f"At most {MAX_BLOCKS} entries, without those that are left out."
