"""Whether and how long a request lets a model think, and the thinking of earlier answers in a history."""

import dataclasses
from typing import Any

import pytest

from api.engine.thinking import Marker
from tests.support.api import House, assert_openai_error
from tests.support.thinking import HYBRID, OPENED, SWITCHED
from tests.support.thinking_house import (
    CHAT,
    MESSAGES,
    PLAIN,
    RESPONSES,
    USER,
    Serve,
    ignored,
    post,
)

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize(
    ("path", "fields"),
    [
        (CHAT, {"include_reasoning": False}),
        (CHAT, {"reasoning": {"exclude": True}}),
        (RESPONSES, {"include_reasoning": False}),
    ],
)
async def test_a_client_may_leave_the_thinking_out(serve: Serve, path: str, fields: dict[str, Any]) -> None:
    answer = await post(serve(OPENED), path, **fields)
    assert "Green" not in answer.text and "Blue." in answer.text and ignored(answer) == ""
    assert '"reasoning_tokens":21' in answer.text


OFF: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {"enable_thinking": False}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": False}}),
    (CHAT, {"reasoning_effort": "none"}),
    (CHAT, {"thinking": {"type": "disabled"}}),
    (CHAT, {"reasoning": {"effort": "none"}}),
    (CHAT, {"reasoning": {"enabled": False}}),
    (CHAT, {"enable_thinking": False, "reasoning_effort": "high"}),
    (RESPONSES, {"reasoning": {"effort": "none"}}),
    (RESPONSES, {"enable_thinking": False}),
    (MESSAGES, {"thinking": {"type": "disabled"}}),
    (MESSAGES, {"thinking": None}),
]
ON: list[tuple[str, dict[str, Any]]] = [
    (CHAT, {}),
    (CHAT, {"reasoning_effort": "low"}),
    (CHAT, {"thinking": {"type": "enabled"}}),
    (CHAT, {"chat_template_kwargs": {"enable_thinking": True}, "reasoning_effort": "none"}),
    (RESPONSES, {"reasoning": {"effort": "high"}}),
    (MESSAGES, {"thinking": {"type": "adaptive"}}),
]


@pytest.mark.parametrize(("path", "fields"), OFF)
async def test_thinking_can_be_turned_off_where_the_template_can(
    serve: Serve, path: str, fields: dict[str, Any]
) -> None:
    house = serve(SWITCHED, "Blue. </think>")
    answer = await post(house, path, **fields)
    assert prompt_of(house).endswith("<think>\n\n</think>\n\n") and house.engine.calls[0]["thinks"] is None
    assert "Blue. </think>" in answer.text and ignored(answer) == "", "nothing is taken out of such an answer"


@pytest.mark.parametrize(("path", "fields"), ON)
async def test_thinking_is_on_where_it_is_asked_for(serve: Serve, path: str, fields: dict[str, Any]) -> None:
    house = serve(SWITCHED)
    answer = await post(house, path, **fields)
    assert prompt_of(house).endswith("<think>\n") and house.engine.calls[0]["thinks"].inside
    assert "Green? No." in answer.text and "think>" not in answer.text and ignored(answer) == ""


def prompt_of(house: House) -> str:
    served = house.service.lifecycle.require_ready()
    return served.prompt.text(house.engine.calls[-1]["prompt_ids"])


@pytest.mark.parametrize(
    ("path", "fields", "named"),
    [
        (CHAT, {"enable_thinking": False, "reasoning_effort": "none"}, "enable_thinking, reasoning_effort"),
        (CHAT, {"thinking": {"type": "disabled"}, "reasoning": {"enabled": False}}, "reasoning, thinking"),
        (CHAT, {"reasoning": {"summary": "auto"}}, "reasoning.summary"),
        (CHAT, {"enable_thinking": True}, ""),
        (RESPONSES, {"reasoning": {"effort": "none", "summary": None}}, "reasoning"),
        (MESSAGES, {"thinking": {"type": "disabled"}}, "thinking"),
        (MESSAGES, {"thinking": None}, ""),
    ],
)
async def test_what_the_template_cannot_do_is_ignored_and_named(
    serve: Serve, path: str, fields: dict[str, Any], named: str
) -> None:
    """OPENED always thinks."""
    assert ignored(await post(serve(OPENED), path, **fields)) == named


EARLIER: dict[str, tuple[dict[str, Any], str]] = {
    CHAT: (
        {"messages": [USER, {"role": "assistant", "content": "Hello", "reasoning_content": "Greet."}, USER]},
        "messages.reasoning_content",
    ),
    f"{CHAT} ": (
        {"messages": [USER, {"role": "assistant", "content": "Hello", "reasoning": "Greet."}, USER]},
        "messages.reasoning",
    ),
    RESPONSES: (
        {"input": [
            USER,
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "Greet."}]},
            {"role": "assistant", "content": "Hello"},
            USER,
        ]},
        "input.reasoning",
    ),
    f"{RESPONSES} ": (
        {"input": [
            USER,
            {"type": "reasoning", "summary": [{"type": "summary_text", "text": "Greet."}]},
            {"role": "assistant", "content": "Hello"},
            USER,
        ]},
        "input.reasoning",
    ),
    MESSAGES: (
        {"messages": [
            USER,
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "Greet."}, {"type": "text", "text": "Hello"}
            ]},
            USER,
        ]},
        "messages.content.thinking",
    ),
}  # fmt: skip


@pytest.mark.parametrize("path", EARLIER)
async def test_earlier_thinking_reaches_a_template_that_reads_it(serve: Serve, path: str) -> None:
    fields, name = EARLIER[path]
    house = serve(SWITCHED)
    assert ignored(await post(house, path.strip(), **fields)) == ""
    assert "assistant\n<think>\nGreet.\n</think>\n\nHello<|im_end|>" in prompt_of(house)
    other = serve(OPENED)
    assert ignored(await post(other, path.strip(), **fields)) == name
    assert "Greet." not in prompt_of(other)


async def test_an_answer_that_was_cut_in_its_thinking_can_be_sent_back(serve: Serve) -> None:
    house = serve(SWITCHED)
    await post(house, CHAT, messages=[USER, {"role": "assistant", "reasoning": "Hm"}, USER])
    assert "<think>\nHm\n</think>\n\n<|im_end|>" in prompt_of(house)


async def test_a_reasoning_before_calls_belongs_to_them_and_one_without_an_answer_is_named(
    serve: Serve,
) -> None:
    thought = {"type": "reasoning", "content": [{"type": "reasoning_text", "text": "Look."}], "summary": []}
    call = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "c", "output": "1"}
    house = serve(SWITCHED)
    assert ignored(await post(house, RESPONSES, input=[USER, thought, call, result])) == ""
    assert "<think>\nLook.\n</think>\n\n<tool_call>" in prompt_of(house)
    assert ignored(await post(house, RESPONSES, input=[USER, thought, USER])) == "input.reasoning"
    assert "Look." not in prompt_of(house)


async def test_an_answer_sent_back_as_it_came_is_read(serve: Serve) -> None:
    house = serve(HYBRID, "<think>\nGreen?\n</think>\n\nBlue.")
    message = (await post(house, CHAT)).json()["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Green?", "Blue.")
    await post(house, CHAT, messages=[USER, message, USER])
    assert "<think>\nGreen?\n</think>\n\nBlue.<|im_end|>" in prompt_of(house)
    items = (await post(house, RESPONSES)).json()["output"]
    await post(house, RESPONSES, input=[USER, *items, USER])
    assert "<think>\nGreen?\n</think>\n\nBlue.<|im_end|>" in prompt_of(house)
    blocks = (await post(house, MESSAGES)).json()["content"]
    await post(house, MESSAGES, messages=[USER, {"role": "assistant", "content": blocks}, USER])
    assert "<think>\nGreen?\n</think>\n\nBlue.<|im_end|>" in prompt_of(house)


@pytest.mark.parametrize(
    ("path", "fields", "limit", "named"),
    [
        (CHAT, {"thinking_token_budget": 7}, 7, "thinking_token_budget"),
        (CHAT, {"thinking_token_budget": -1, "reasoning": {"max_tokens": 5}}, None,
         "reasoning.max_tokens, thinking_token_budget"),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": 0}}, 0, "thinking.budget_tokens"),
        (CHAT, {"reasoning": {"max_tokens": 5}}, 5, "reasoning.max_tokens"),
        (RESPONSES, {"reasoning": {"effort": "high", "max_tokens": 5}}, 5, "reasoning.max_tokens"),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 1024}}, 1024, "thinking.budget_tokens"),
        (MESSAGES, {"thinking": {"type": "enabled", "budget_tokens": 0}}, 0, "thinking.budget_tokens"),
        (MESSAGES, {"thinking": {"type": "enabled"}}, None, ""),
        (CHAT, {}, None, ""),
    ],
)  # fmt: skip
async def test_a_limit_of_thinking_reaches_the_engine_or_is_named(
    serve: Serve, path: str, fields: dict[str, Any], limit: int | None, named: str
) -> None:
    """It can be limited where both markers are tokens."""
    house = serve(SWITCHED)
    answer = await post(house, path, **fields)
    [call] = house.engine.calls
    assert call["sampling"].thinking_tokens == limit
    assert ignored(answer) == named, "the markers are text in this tokenizer"
    served = house.service.lifecycle.require_ready()
    assert served.prompt.thinking is not None
    served.prompt.thinking = dataclasses.replace(
        served.prompt.thinking, opening=Marker("<think>", 5), closing=Marker("</think>", 6)
    )
    async with house.client() as client:
        answer = await client.post(path, json=PLAIN[path] | fields)
    assert (answer.status_code, ignored(answer)) == (200, "")


@pytest.mark.parametrize(
    ("path", "fields", "param"),
    [
        (CHAT, {"thinking_token_budget": -2}, "thinking_token_budget"),
        (CHAT, {"thinking": {"type": "enabled", "budget_tokens": -1}}, "thinking.budget_tokens"),
        (RESPONSES, {"reasoning": {"max_tokens": 2**63}}, "reasoning.max_tokens"),
    ],
)
async def test_a_limit_that_is_none_is_refused(
    serve: Serve, path: str, fields: dict[str, Any], param: str
) -> None:
    house = serve(SWITCHED)
    await house.load()
    async with house.client() as client:
        answer = await client.post(path, json=PLAIN[path] | fields)
    assert assert_openai_error(answer, 400, None)["param"] == param
