"""Rows as programs export them: logs of API calls, ChatGPT's conversations, the Hub's viewer."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from trainer.data.clean import clean
from trainer.data.parse import parse_row
from trainer.data.shapes import RowError
from trainer.data.sources import read_rows
from trainer.errors import DataError

ASKED = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "How tall is the mast?"}]
ANSWER = {"role": "assistant", "content": "Nine metres."}
CHAT = [(turn["role"], turn["content"]) for turn in (*ASKED, ANSWER)]
TOOL = {"type": "function", "function": {"name": "measure", "parameters": {"type": "object"}}}


def choice(**more: Any) -> dict[str, Any]:
    return {"index": 0, "message": ANSWER, "finish_reason": "stop", **more}


def said(row: Any, unread: Counter[str] | None = None) -> list[tuple[str, str]]:
    return [(message.role, message.content) for message in parse_row(row, "made", "", unread=unread).messages]


@pytest.mark.parametrize(
    ("row", "unread"),
    [
        (
            {"request": {"model": "m", "messages": ASKED}, "response": {"id": "x", "choices": [choice()]}},
            {"request.model", "response.id"},
        ),
        (
            {"body": {"messages": ASKED}, "response": {"status_code": 200, "body": {"choices": [choice()]}}},
            set(),
        ),
        ({"messages": ASKED, "choices": [choice()], "created": 1}, {"created"}),
    ],
)
def test_a_log_of_api_calls_is_the_chat_that_it_holds(row: dict[str, Any], unread: set[str]) -> None:
    left = Counter[str]()
    assert said(row, left) == CHAT
    assert set(left) == unread
    assert parse_row(row, "made").shape == "log of API calls"


def test_a_log_keeps_the_tools_of_its_request() -> None:
    row = {"request": {"messages": ASKED, "tools": [TOOL]}, "response": {"choices": [choice()]}}
    assert len(parse_row(row, "made").tools) == 1


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"custom_id": "a", "body": {"messages": ASKED}}, "a request of an API without its answer"),
        (
            {"custom_id": "a", "response": {"body": {"choices": [choice()]}}},
            "answers without their questions: join them with the requests by custom_id",
        ),
        ({"messages": ASKED, "choices": [choice(), choice()]}, "several choices of an API"),
        (
            {"messages": ASKED, "choices": [choice(finish_reason="length")]},
            "an answer of an API that was cut off",
        ),
    ],
)
def test_a_log_that_is_not_a_whole_chat_is_refused_with_the_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        said(row)


def node(parent: str | None, role: str, *parts: Any, kind: str = "text", **about: Any) -> dict[str, Any]:
    content = {"content_type": kind, "parts": list(parts)}
    return {"parent": parent, "message": {"author": {"role": role}, "content": content, "metadata": about}}


TREE = {
    "root": {"parent": None, "message": None},
    "empty": node("root", "system", ""),
    "hidden": node("empty", "user", "About me.", is_visually_hidden_from_conversation=True),
    "question": node("hidden", "user", "How tall is the mast?"),
    "first": node("question", "assistant", "I do not know."),
    "second": node("question", "assistant", "Nine metres."),
}


def test_a_conversation_of_chatgpt_is_the_path_that_was_shown() -> None:
    row = {"title": "Masts", "mapping": TREE, "current_node": "second"}
    left = Counter[str]()
    assert said(row, left) == CHAT[1:]
    assert set(left) == {"title"} and parse_row(row, "made").shape == "ChatGPT's export"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"second": node("gone", "assistant", "Nine.")}, "a tree of messages that is broken"),
        ({"question": node("second", "user", "How tall?")}, "a tree of messages that is broken"),
        (
            {"question": node("root", "user", {"asset": 1}, kind="multimodal_text")},
            "a message of type multimodal",
        ),
        ({"question": node("root", "assistant", kind="code")}, "a message of type code in ChatGPT's export"),
    ],
)
def test_a_conversation_of_chatgpt_that_is_no_text_or_broken_is_refused(
    change: dict[str, Any], reason: str
) -> None:
    with pytest.raises(RowError, match=reason):
        said({"mapping": {**TREE, **change}, "current_node": "second"})


@pytest.mark.parametrize(("cut", "rows"), [([], 2), (["output"], 1)])
def test_rows_of_the_hubs_viewer_are_read_unless_it_cut_their_cells(
    tmp_path: Path, cut: list[str], rows: int
) -> None:
    row = {"instruction": "a", "output": "b"}
    shown = [{"row_idx": i, "row": row, "truncated_cells": cut if i else []} for i in range(2)]
    (tmp_path / "rows.json").write_text(json.dumps({"features": [{"name": "a"}], "rows": shown}))
    found = [raw.value for raw in read_rows(str(tmp_path / "rows.json"))]
    assert len(found) == rows and (found[0] == row) == (rows == 2)


def test_a_choice_whose_answers_are_not_in_the_question_stops_the_run() -> None:
    with pytest.raises(DataError, match="'choices' holds the answers to choose from, without which"):
        said({"question": "Which?", "choices": ["one", "two"], "answer": "two"})


def test_a_chat_in_columns_of_different_lengths_is_refused() -> None:
    with pytest.raises(RowError, match="a chat in columns of different lengths"):
        said({"messages": {"role": ["user", "assistant"], "content": ["a"]}})


def test_files_of_a_folder_that_are_not_read_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "a.jsonl").write_text('{"instruction": "a", "output": "b"}\n')
    for name in (
        "b.zip",
        "book.xlsx",
        "README.md",
        "LICENSE",
        "load.py",
        ".gitattributes",
        "dataset_info.json",
    ):
        (folder / name).write_text("{}")
    assert len(list(read_rows(str(folder)))) == 1
    said = capsys.readouterr().out
    assert said.startswith("  set: not read, because they are none of .json, ") and said.count("\n") == 1
    assert said.endswith(": b.zip, book.xlsx\n")
    for number in range(9):
        (folder / f"c{number}.txt").write_text("")
    list(read_rows(str(folder)))
    assert capsys.readouterr().out.endswith(": b.zip, book.xlsx, c0.txt, c1.txt, c2.txt and 6 more\n")


def test_a_column_without_a_name_is_listed_as_one(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text(",question,answer\n0,a,b\n1,c,d\n")
    assert clean(read_rows(str(tmp_path / "a.csv"))).unread_columns() == "one without a name (2 rows)"
