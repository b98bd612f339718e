"""The rows that people have: what each means is kept, what is not used is told, what would mislead stops."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from trainer.cli import main
from trainer.config_data import ColumnsConfig
from trainer.data.clean import clean
from trainer.data.conversation import BY_QUESTION
from trainer.data.formats import RawRow
from trainer.data.parse import Reading, parse_row
from trainer.data.shapes import RowError, mapping_for
from trainer.data.split import split
from trainer.data.tokenize import ChatTokenizer, answer_runs
from trainer.errors import DataError


def said(row: dict[str, Any], reading: Reading | None = None) -> str:
    conversation = parse_row(row, "s", "f:1", reading or Reading())
    return " ".join(f"{m.role}:{m.content}" for m in conversation.messages).replace("\n\n", "/")


def chat(*contents: Any, **more: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": content} for i, content in enumerate(contents)]
    return {"messages": messages, **more}


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (chat("q", "a", system="s"), "system:s user:q assistant:a"),
        (chat("q", "a", system=""), "user:q assistant:a"),
        (chat("q", "a", conversations=None), "user:q assistant:a"),
        (
            {"instruction": "q", "input": "i", "output": "a", "system": "s", "history": [["q0", "a0"]]},
            "system:s user:q0 assistant:a0 user:q/i assistant:a",
        ),
        ({"instruction": "q", "input": float("nan"), "output": "a"}, "user:q assistant:a"),
        ({"instruction": "q", "input": "nan", "output": "a"}, "user:q assistant:a"),
        ({"instruction": "q", "context": "c", "response": "a"}, "user:q/c assistant:a"),
        ({"prompt": "q", "completion": "a"}, "user:q assistant:a"),
        (
            {"prompt": chat("q")["messages"], "completion": [{"role": "assistant", "content": "a"}]},
            "user:q assistant:a",
        ),
        (chat([{"type": "text", "text": "q"}, {"type": "text", "text": "r"}], "a"), "user:qr assistant:a"),
        (chat(1, 2.5), "user:1 assistant:2.5"),
        (
            {"messages": [{"role": " User", "content": "q"}, {"role": "MODEL", "content": "a"}]},
            "user:q assistant:a",
        ),
        (
            {"messages": [{"from": None, "role": "user", "value": None, "content": "q"},
                          {"from": None, "role": "assistant", "value": None, "content": "a"}]},
            "user:q assistant:a",
        ),
        (
            {"messages": [{"role": "system", "content": " "}, *chat("q", "a")["messages"]]},
            "user:q assistant:a",
        ),
        (chat("q", "a", "r", ""), "user:q assistant:a"),
        (chat("q", "a", "", "b"), "user:q assistant:a"),
    ],
)  # fmt: skip
def test_a_row_means_what_its_columns_say(row: dict[str, Any], expected: str) -> None:
    assert said(row) == expected


@pytest.mark.parametrize(
    ("row", "names"),
    [
        (chat("q", "a", images=["a.jpg"]), "'images' holds pictures"),
        (chat("q", "a", weight=0.5), "'weight' holds how much"),
        (chat([{"type": "image_url", "image_url": {}}], "a"), "a part of type 'image_url'"),
    ],
)  # fmt: skip
def test_a_column_that_changes_the_meaning_stops_the_run(row: dict[str, Any], names: str) -> None:
    with pytest.raises(DataError, match=names):
        parse_row(row, "s", "f:1")


def test_such_a_column_can_be_left_out_and_harmless_values_do_not_stop() -> None:
    assert said(chat("q", "a", label=False), Reading(ignored=("label",))) == "user:q assistant:a"
    harmless: dict[str, Any]
    assert parse_row(chat("q", "a", group="lab"), "s", reading=Reading(ignored=("group",))).groups == ()
    for harmless in ({"label": "poetry"}, {"tools": []}, {"images": None}, {"weight": 1}, {"history": []}):
        assert said(chat("q", "a", **harmless)) == "user:q assistant:a"


def test_what_is_not_used_is_counted_by_its_name() -> None:
    unread: Counter[str] = Counter()
    rows = [chat("q", "a", category="x", id=1), chat("r", "a", category="y", other=None)]
    rows[0]["messages"][1]["annotations"] = "because"
    for row in rows:
        parse_row(row, "s", "f:1", unread=unread)
    assert unread == {"category": 2, "id": 1, "messages.annotations": 1}


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (chat("q", ""), "empty turn"),
        (chat("q", {"text": "a"}), "content is an object"),
        (chat("q", True), "content is True"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 0}]},
         "every answer has weight 0"),
        ({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a", "weight": 2}]},
         "weight 2 of a message"),
    ],
)  # fmt: skip
def test_a_row_is_dropped_for_its_true_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(row, "s")


def test_one_row_never_ends_the_run() -> None:
    rows: list[Any] = [
        json.loads(
            '{"messages": [{"role": "user", "content": "\\ud83d"}, {"role": "assistant", "content": "a"}]}'
        ),
        chat("q", "a", score=10**400, group=7),
        chat("r", "b", score="5", group=["x", 1]),
    ]
    cleaned = clean(RawRow(f"f:{i}", row) for i, row in enumerate(rows))
    assert cleaned.dropped == {"half a surrogate pair": 1}
    assert [(c.score, c.groups) for c in cleaned.conversations] == [(None, ("7",)), (5.0, ("x", "1"))]


def test_an_answer_of_weight_0_is_read_and_not_trained(tokenizer: PreTrainedTokenizerFast) -> None:
    row = chat("q", "wrong", "look again", "right")
    row["messages"][1]["weight"] = 0
    tokens = ChatTokenizer(tokenizer).row(parse_row(row, "s"))
    trained = [tokenizer.decode(tokens.input_ids[a:b]) for a, b in answer_runs(tokens.labels)]
    assert len(trained) == 1 and trained[0].startswith("right")
    assert "wrong" in tokenizer.decode(tokens.input_ids)


def test_columns_and_roles_can_be_mapped() -> None:
    columns = ColumnsConfig(prompt="ask", response="sql", system="task", context="schema")
    row = {"ask": "how many?", "schema": "CREATE TABLE t", "sql": "SELECT 1", "task": "Write SQL."}
    assert said(row, Reading(columns)) == "system:Write SQL. user:how many?/CREATE TABLE t assistant:SELECT 1"
    bots = {"messages": [{"role": "visitor", "content": "q"}, {"role": "bot", "content": "a"}]}
    assert said(bots, Reading(roles={"visitor": "user", "bot": "assistant"})) == "user:q assistant:a"
    with pytest.raises(RowError, match="no column sql"):
        said({"ask": "q"}, Reading(columns))


def test_the_mapping_that_would_probably_do_is_named() -> None:
    assert mapping_for(["id", "Question", "SQL"]) == "data.columns={prompt: Question, response: SQL}"
    assert mapping_for(["a", "b"]) == "data.columns={prompt: COLUMN, response: COLUMN}"


def test_the_same_question_stands_on_one_side() -> None:
    rows = [RawRow(f"f:{i}", chat(f"q{i // 3}", f"a{i}")) for i in range(300)]
    parts = split(clean(rows).conversations, 0.2, seed=1)
    sides = [{c.messages[0].content for c in side} for side in (parts.train, parts.validation, parts.test)]
    assert all(sides) and not sides[0] & sides[1] and not sides[0] & sides[2] and not sides[1] & sides[2]
    assert all(c.groups[0].startswith(BY_QUESTION) for c in parts.train)


@pytest.mark.parametrize("count", [3, 4, 10])
def test_a_few_rows_make_three_sides(count: int) -> None:
    rows = clean(RawRow(f"f:{i}", chat(f"q{i}", "a")) for i in range(count)).conversations
    parts = split(rows, 0.1, seed=7)
    assert len(parts.train) + len(parts.validation) + len(parts.test) == count
    assert parts.train and parts.validation and parts.test


def test_a_group_that_holds_every_row_is_named_as_the_reason() -> None:
    rows = clean(RawRow(f"f:{i}", chat(f"q{i}", "a", group="lab")) for i in range(9)).conversations
    with pytest.raises(DataError, match=r"9 usable rows make 1 group.*9 rows have the group 'lab'"):
        split(rows, 0.1, seed=7)


def test_the_console_and_the_report_name_what_was_not_used(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [chat(f"question {i}", f"answer {i}", category="x") for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"data.source={tmp_path / 'rows.jsonl'}", "data.general=null"]
    set_flags = [part for value in flags for part in ("--set", value)]
    artifacts = tmp_path / "artifacts"
    assert main(["prepare", "--config", str(config_file), "--artifacts", str(artifacts), *set_flags]) == 0
    assert "not used: category (40 rows)" in capsys.readouterr().out
    (report,) = artifacts.glob("data/*/report.json")
    assert json.loads(report.read_text())["unread"] == {"category": 40}
    assert "category" in report.with_suffix(".html").read_text()
