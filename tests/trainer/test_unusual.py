"""Shapes that people publish beside the usual ones, and the trees of OASST."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.data.clean import clean
from trainer.data.formats import RawRow, read_file
from trainer.data.parse import parse_row
from trainer.data.shapes import RowError

TURNS = ["How tall is the mast?", "Nine metres.", "And the boom?", "Four."]
FIRST_TWO = [("user", TURNS[0]), ("assistant", TURNS[1])]
ALL = [*FIRST_TWO, ("user", TURNS[2]), ("assistant", TURNS[3])]
ROLES = ["user", "assistant", "user", "assistant"]


def said(row: Any) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parse_row(row, "made").messages]


def messages(role: str = "role", text: str = "content", roles: list[str] = ROLES) -> list[dict[str, str]]:
    return [{role: who, text: what} for who, what in zip(roles, TURNS, strict=True)]


@pytest.mark.parametrize(
    ("row", "wanted", "shape"),
    [
        ({"conversation": messages()}, ALL, "chat in `conversation`"),
        ({"dialog": TURNS}, ALL, "texts in turn"),
        ({"chat_messages": messages("sender", "text")}, ALL, "chat in `chat_messages`"),
        ({"messages": {"role": ROLES, "content": TURNS}}, ALL, "chat in columns"),
        (
            {"conversation": [dict(zip(("input", "output"), TURNS[i : i + 2], strict=True)) for i in (0, 2)]},
            ALL,
            "turns of question and answer",
        ),
        (
            {"conversations": [{"system": "Be brief.", "user": TURNS[0], "assistant": TURNS[1]}]},
            [("system", "Be brief."), *FIRST_TWO],
            "turns of question and answer",
        ),
        (
            {"messages": [{**turn, "author": {"role": turn["role"]}, "role": None} for turn in messages()]},
            ALL,
            "OpenAI messages",
        ),
        (
            {
                "messages": [
                    {**turn, "content": {"type": "text", "text": turn["content"]}} for turn in messages()
                ]
            },
            ALL,
            "OpenAI messages",
        ),
        ({"inputs": TURNS[0], "targets": TURNS[1]}, FIRST_TWO, "inputs and targets"),
        ({"problem": TURNS[0], "solution": TURNS[1], "answer": "9"}, FIRST_TWO, "problem and solution"),
        ({"question": TURNS[0], "response": TURNS[1]}, FIRST_TWO, "question and answer"),
        ({"instruction": TURNS[0], "answer": TURNS[1]}, FIRST_TWO, "instruction and answer"),
        (
            {"question": "How tall?", "article": "It is 9 m.", "answer": "9 m"},
            [("user", "How tall?\n\nIt is 9 m."), ("assistant", "9 m")],
            "question and answer",
        ),
        ({"data": TURNS, "id": 4}, ALL, "texts in turn"),
        ({"messages": json.dumps(messages())}, ALL, "chat as JSON text"),
        ([list(pair) for pair in zip(ROLES, TURNS, strict=True)], ALL, "pairs of role and text"),
        ({"messages": messages("author", "text", ["user", "bot", "user", "bot"])}, ALL, "OpenAI messages"),
        (
            {"messages": messages("speaker", "message", ["User", "Chatbot", "User", "AI"])},
            ALL,
            "OpenAI messages",
        ),
        (
            {
                "systemInstruction": {"parts": [{"text": "Be brief."}]},
                "contents": [
                    {"role": "user", "parts": [{"text": TURNS[0]}]},
                    {"role": "model", "parts": [{"text": TURNS[1][:4]}, {"text": TURNS[1][4:]}]},
                ],
            },
            [("system", "Be brief."), *FIRST_TWO],
            "chat in `contents`",
        ),
        ({"Instruction": TURNS[0], "Input": "", "Response": TURNS[1]}, FIRST_TWO, "Dolly"),
        ({"question": TURNS[0], "answer": TURNS[1]}, FIRST_TWO, "question and answer"),
        ({"q": TURNS[0], "a": [TURNS[1]]}, FIRST_TWO, "question and answer"),
        ({"input": TURNS[0], "output": TURNS[1]}, FIRST_TWO, "input and output"),
        (
            {"question": "How tall?", "context": "It is 9 m.", "answer": "9 m"},
            [("user", "How tall?\n\nIt is 9 m."), ("assistant", "9 m")],
            "question and answer",
        ),
        (
            {"text": f"### Human: {TURNS[0]}\n### Assistant: {TURNS[1]}\n"},
            FIRST_TWO,
            "text with ### headers",
        ),
        (
            {"text": f"Below is a task.\n\n### Instruction:\n{TURNS[0]}\n\n### Response:\n{TURNS[1]}"},
            [("system", "Below is a task."), *FIRST_TWO],
            "text with ### headers",
        ),
        (
            {"text": "### Human: Write a page.\n### Assistant: # Boats\n### Sails\nOf cloth."},
            [("user", "Write a page."), ("assistant", "# Boats\n### Sails\nOf cloth.")],
            "text with ### headers",
        ),
        (
            {"text": f"Human: {TURNS[0]}\n\nAssistant: {TURNS[1]}"},
            FIRST_TWO,
            "text with `Human:` and `Assistant:`",
        ),
        (
            {
                "text": f"<s>[INST] <<SYS>>\nBe brief.\n<</SYS>>\n\n{TURNS[0]} [/INST] {TURNS[1]} </s>"
                f"<s>[INST] {TURNS[2]} [/INST] {TURNS[3]} </s>"
            },
            [("system", "Be brief."), *ALL],
            "text with [INST]",
        ),
        (
            {
                "text": f"<|im_start|>user\n{TURNS[0]}<|im_end|>\n"
                f"<|im_start|>assistant\n{TURNS[1]}<|im_end|>\n"
            },
            FIRST_TWO,
            "text with ChatML",
        ),
        (
            {
                "message_tree_id": "t",
                "prompt": {
                    "role": "prompter",
                    "text": TURNS[0],
                    "replies": [
                        {"role": "assistant", "text": "Ten.", "rank": 1, "replies": []},
                        {"role": "assistant", "text": TURNS[1], "rank": 0, "replies": []},
                    ],
                },
            },
            FIRST_TWO,
            "tree",
        ),
    ],
)
def test_a_less_usual_shape_gives_the_same_conversation(
    row: Any, wanted: list[tuple[str, str]], shape: str
) -> None:
    assert said(row) == wanted
    assert parse_row(row, "made").shape == shape


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"text": "A page about boats."}, "no messages and no known pair"),
        ({"text": "### Sails\nOf cloth."}, "no messages and no known pair"),
        ({"instruction": "Name two.", "response": ["one", "two"]}, "response is a list of several texts"),
        ({"messages": [{"who": "bob", "content": "hi"}]}, "a turn without a role, with who, content"),
        (
            {"messages": messages(roles=["bob", "ann", "bob", "ann"])},
            r"role 'bob', which data.roles=\{bob: user\}",
        ),
        ({"data": [1, 2]}, "no messages and no known pair"),
    ],
)
def test_what_cannot_be_read_is_refused_with_the_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(row, "made")


def node(name: str, parent: str | None, role: str, rank: int | None = None) -> dict[str, Any]:
    return {"message_id": name, "parent_id": parent, "role": role, "text": f"text {name}", "rank": rank}


def test_messages_of_trees_give_the_best_ranked_conversation_of_each() -> None:
    rows = [
        node("a", None, "prompter"),
        node("b", "a", "assistant", 1),
        node("c", "a", "assistant", 0),
        node("d", "c", "prompter"),
        node("e", "d", "assistant"),
        node("f", None, "prompter"),
        node("g", "f", "assistant"),
        node("h", "lost", "assistant"),
        node("i", None, "prompter"),
    ]
    found = clean(RawRow(f"made.jsonl:{i}", row) for i, row in enumerate(rows, 1))
    assert [[m.content for m in row.messages] for row in found.conversations] == [
        ["text a", "text c", "text d", "text e"],
        ["text f", "text g"],
    ]
    assert found.dropped == {"an answer of a tree that is not on its best-ranked path": 2, "no answer": 1}


def test_a_tree_that_leads_back_to_itself_ends() -> None:
    rows = [node("a", None, "prompter"), node("a", "a", "assistant")]
    found = clean(RawRow(f"made.jsonl:{i}", row) for i, row in enumerate(rows, 1))
    assert len(found.conversations) == 1


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_list_of_messages_is_one_row_and_a_list_of_rows_is_many(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("\n".join(json.dumps(messages()) for _ in range(3)))
    assert [said(row.value) for row in read_file(file, name)] == [ALL] * 3
    file.write_text(json.dumps([{"messages": messages()}] * 3))
    assert [said(row.value) for row in read_file(file, name)] == [ALL] * 3
