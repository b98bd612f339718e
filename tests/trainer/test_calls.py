"""Functions and calls become one form, however a data set spells them; what is broken is dropped by name."""

import json
from typing import Any

import pytest

from trainer.data.clean import clean
from trainer.data.conversation import Conversation
from trainer.data.formats import RawRow
from trainer.data.parse import Reading, parse_row
from trainer.data.shapes import RowError
from trainer.errors import DataError

RAIN = {"name": "rain", "description": "Rain?", "parameters": {"type": "object", "properties": {"city": {}}}}
NOW = {"name": "now"}
TOOLS = [{"type": "function", "function": RAIN}, {"type": "function", "function": NOW}]
ARGUMENTS = {"city": "Düren", "days": [1, None]}
BARE = {"name": "rain", "arguments": json.dumps(ARGUMENTS)}
USER = {"role": "user", "content": "q"}
RESULT = {"role": "tool", "content": "wet"}
ANSWER = {"role": "assistant", "content": "It rains."}


def call(name: str = "rain", arguments: Any = ARGUMENTS, **more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def calls(*calls: Any, content: Any = None) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": list(calls)}


def row(*messages: dict[str, Any], tools: Any = TOOLS, **more: Any) -> dict[str, Any]:
    return {"messages": list(messages), "tools": tools, **more}


def spoken(conversation: Conversation) -> list[Any]:
    """Each turn as its role and content, or the calls of a turn that has no text."""
    return [
        [(c.name, json.loads(c.arguments)) for c in m.calls] if m.calls else f"{m.role}:{m.content}"
        for m in conversation.messages
    ]


SHAREGPT = [
    {"from": "human", "value": "q"},
    {"from": "function_call", "value": json.dumps({"name": "rain", "arguments": ARGUMENTS})},
    {"from": "observation", "value": "wet"},
    {"from": "gpt", "value": "It rains."},
]


@pytest.mark.parametrize(
    "raw",
    [
        row(USER, calls(call()), RESULT, ANSWER),
        row(USER, calls(call(arguments=json.dumps(ARGUMENTS))), RESULT, ANSWER),
        row(USER, calls(call(), content=""), RESULT, ANSWER, tools=json.dumps(TOOLS)),
        row(USER, calls(call(), content=" "), RESULT, ANSWER, tools=[RAIN, NOW]),
        row(USER, calls(BARE), RESULT, ANSWER, tools=[json.dumps(t) for t in TOOLS]),
        row(USER, calls(call(id="a")), RESULT | {"tool_call_id": "a"}, ANSWER, tools=json.dumps([RAIN, NOW])),
        row(
            USER,
            {"role": "assistant", "content": None, "function_call": BARE},
            {"role": "function", "name": "rain", "content": "wet"},
            ANSWER,
            tools=None,
            functions=[RAIN, NOW],
        ),
        {"conversations": SHAREGPT, "tools": json.dumps([RAIN, NOW])},
        {
            "conversations": [SHAREGPT[0], {"from": "function_call", "value": [BARE]}, *SHAREGPT[2:]],
            "tools": TOOLS,
        },
    ],
)  # fmt: skip
def test_every_spelling_of_tools_and_calls_is_one_conversation(raw: dict[str, Any]) -> None:
    conversation = parse_row(raw, "s")
    assert spoken(conversation) == ["user:q", [("rain", ARGUMENTS)], "tool:wet", "assistant:It rains."]
    assert [json.loads(tool) for tool in conversation.tools] == TOOLS


@pytest.mark.parametrize(
    "answer",
    [
        f"<tool_call>\n{json.dumps(BARE | {'arguments': ARGUMENTS})}\n</tool_call>",
        f"<tool_call>{ {'arguments': ARGUMENTS, 'name': 'rain'} }</tool_call>\n",
        json.dumps([{"name": "rain", "arguments": ARGUMENTS}]),
        json.dumps({"name": "rain", "parameters": ARGUMENTS}),
    ],
)
def test_calls_that_an_answer_writes_as_text_are_calls(answer: str) -> None:
    result = {"role": "tool", "content": "<tool_response>\nwet\n</tool_response>"}
    conversation = parse_row(row(USER, {"role": "assistant", "content": answer}, result, ANSWER), "s")
    assert spoken(conversation) == ["user:q", [("rain", ARGUMENTS)], "tool:wet", "assistant:It rains."]
    assert conversation.repaired == ("calls and results in texts read as such",)
    said = f"Let me see.\n{answer}" if "<tool_call>" in answer else answer
    last = parse_row(row(USER, {"role": "assistant", "content": said}), "s").messages[-1]
    assert (last.content, last.calls[0].name) == ("Let me see." if said != answer else "", "rain")


@pytest.mark.parametrize(
    "answer",
    [
        '<tool_call>{"name": "snow", "arguments": {}}</tool_call>',
        '<tool_call>{"name": "rain", "arguments": {}}</tool_call> and so it is',
        '<tool_call>{"name": "rain", "arguments": [1]}</tool_call>',
        "<tool_call>rain()</tool_call>",
        "Write <tool_call> to call.",
        '{"name": "rain"}',
        '{"city": "Düren"}',
        "[1, 2]",
        "[]",
        "{rain}",
    ],
)
def test_other_texts_stay_texts(answer: str) -> None:
    conversation = parse_row(row(USER, {"role": "assistant", "content": answer}), "s")
    assert (conversation.messages[-1].content, conversation.messages[-1].calls) == (answer, ())
    assert conversation.repaired == ()
    bare = parse_row({"prompt": "q", "completion": json.dumps(BARE)}, "s")
    assert bare.messages[-1].content == json.dumps(BARE), "without tools there are no calls"


def test_the_shape_of_a_row_is_that_of_its_columns_whatever_its_messages_have() -> None:
    assert parse_row(row(USER, calls(call())), "s").shape == "OpenAI messages"
    assert parse_row({"conversations": SHAREGPT, "tools": TOOLS}, "s").shape == "ShareGPT"


def test_parallel_calls_and_their_results_stay_apart() -> None:
    raw = row(USER, calls(call(id="a"), call("now", "", id="b")),
              RESULT | {"tool_call_id": "b"}, RESULT | {"tool_call_id": "a"}, ANSWER)  # fmt: skip
    assert spoken(parse_row(raw, "s"))[1:4] == [[("rain", ARGUMENTS), ("now", {})], "tool:wet", "tool:wet"]
    apart = row(USER, calls(call()), calls(call("now", {})), RESULT, RESULT | {"content": ""}, ANSWER)
    conversation = parse_row(apart, "s")
    assert spoken(conversation)[1:4] == [[("rain", ARGUMENTS), ("now", {})], "tool:wet", "tool:"]
    assert conversation.repaired == ("turns of the same role merged",)


def test_text_beside_a_call_and_results_that_are_no_text_are_kept() -> None:
    said = parse_row(row(USER, calls(call(), content="Let me see.")), "s").messages[-1]
    assert (said.content, said.calls[0].name) == ("Let me see.", "rain")
    contents: list[Any] = [{"mm": 3}, [{"mm": 3}], [3, "mm"], 3, [{"type": "text", "text": "3 mm"}]]
    texts = ['{"mm": 3}', '[{"mm": 3}]', '[3, "mm"]', "3", "3 mm"]
    for content, text in zip(contents, texts, strict=True):
        raw = row(USER, calls(call()), {"role": "tool", "content": content}, ANSWER)
        assert parse_row(raw, "s").messages[2].content == text


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (row(USER, calls(call("snow"))), "a call of a function that is not among the tools"),
        (row(USER, calls(call()), tools=None), "a call, and no tools"),
        (row(USER, calls(call(arguments="{city: x"))), "the arguments of a call are not JSON"),
        (row(USER, calls(call(arguments=[1]))), "the arguments of a call are not a JSON object"),
        (row(USER, calls({"type": "function"})), "a call without the name of a function"),
        (row(USER, {"role": "function_call", "content": "rain()"}), "a call is not JSON"),
        (row(USER, RESULT, ANSWER), "a result without a call"),
        (row(USER, calls(call()), RESULT, RESULT, ANSWER), "a result without a call"),
        (row(USER, calls(call(id="a")), RESULT | {"tool_call_id": "b"}, ANSWER), "a result without a call"),
        (row(USER, calls(call()), ANSWER), "an answer after a call without its result"),
        (row(USER | {"tool_calls": [call()]}, ANSWER), "a call by the user"),
        (row(USER, ANSWER, tools="rain(city)"), "tools are not JSON"),
        (row(USER, ANSWER, tools=[{"type": "function"}]), "a tool is not a function with a name"),
        (row(USER, ANSWER, tools=[RAIN, RAIN]), "two tools have one name"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_broken_tool_data_costs_its_row_and_is_counted_by_the_true_reason(
    raw: dict[str, Any], reason: str
) -> None:
    cleaned = clean([RawRow("f:1", raw), RawRow("f:2", row(USER, ANSWER))])
    assert (cleaned.dropped, len(cleaned.conversations)) == ({reason: 1}, 1)


@pytest.mark.parametrize(
    ("kinds", "trained"), [(["assistant"], [False, True]), (["tool_calls"], [True, False])]
)
def test_train_on_chooses_between_answers_of_text_and_calls(kinds: Any, trained: list[bool]) -> None:
    raw = row(USER, calls(call()), RESULT, ANSWER)
    reading = Reading(train_on=kinds)
    assert [m.trained for m in parse_row(raw, "s", reading=reading).messages[1::2]] == trained
    without_any = row(USER, ANSWER) if kinds == ["tool_calls"] else row(USER, calls(call()))
    with pytest.raises(RowError, match=r"no answer of data\.train_on"):
        parse_row(without_any, "s", reading=reading)


def test_weight_0_counts_for_calls_too() -> None:
    raw = row(USER, calls(call()) | {"weight": 0}, RESULT, ANSWER)
    assert [m.trained for m in parse_row(raw, "s").messages[1::2]] == [False, True]


def test_rows_that_differ_in_tools_or_calls_are_not_duplicates() -> None:
    raws = [
        row(USER, calls(call())),
        row(USER, calls(call(arguments={}))),
        row(USER, calls(call()), tools=[RAIN]),
    ]
    assert len({parse_row(raw, "s").row_id for raw in raws}) == 3


def test_fields_of_tools_that_serving_would_not_show_are_named() -> None:
    tools = [{"type": "function", "function": RAIN | {"strict": True}}]
    cleaned = clean([RawRow("f:1", row(USER, ANSWER, tools=tools, parallel_tool_calls=False))])
    assert cleaned.unread == {"tools.strict": 1, "parallel_tool_calls": 1}
    assert [json.loads(tool) for tool in cleaned.conversations[0].tools] == TOOLS[:1]


def test_tools_and_calls_can_be_left_out_by_name() -> None:
    reading = Reading(ignored=("tools", "tool_calls"))
    raw = row(USER, calls(call(), content="Let me see."))
    assert spoken(parse_row(raw, "s", reading=reading)) == ["user:q", "assistant:Let me see."]
    with pytest.raises(DataError, match="'tool_calls' holds calls of functions"):
        parse_row({"prompt": "q", "completion": "a", "tool_calls": [call()]}, "s")
