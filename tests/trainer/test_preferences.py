"""Preference data: refused until `data.use` says what of it is trained; then only the better answers are."""

import json
from pathlib import Path
from typing import Any

import pytest

from trainer.cli import main
from trainer.config_data import ColumnsConfig
from trainer.data.clean import clean
from trainer.data.formats import RawRow
from trainer.data.parse import Reading, parse_row
from trainer.data.shapes import RowError
from trainer.errors import DataError

CHOSEN = Reading(use="chosen")
QUESTION = [{"role": "user", "content": "q"}]
GOOD, BAD = ([{"role": "assistant", "content": text}] for text in ("good", "bad"))
VOTE = {
    "id": "0123456789abcdef",
    "models": ["m", "n"],
    "prompts": [QUESTION, QUESTION],
    "answers": ["bad", "good"],
    "verdict": "right",
}
PAIRS: list[dict[str, Any]] = [
    {"prompt": "q", "chosen": "good", "rejected": "bad"},
    {"question": "q", "chosen": "good", "rejected": "bad"},
    {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"},
    {"prompt": QUESTION, "chosen": GOOD, "rejected": BAD},
    {"prompt": "q", "messages": QUESTION + GOOD, "chosen": QUESTION + GOOD, "rejected": QUESTION + BAD},
    {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
    {
        "conversations": [{"from": "human", "value": "q"}],
        "chosen": {"from": "gpt", "value": "good"},
        "rejected": {"from": "gpt", "value": "bad"},
    },
    {
        "conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "other"}],
        "prompt": QUESTION, "chosen": GOOD, "rejected": BAD,
    },
    {"input": {"messages": QUESTION}, "preferred_output": GOOD, "non_preferred_output": BAD},
    VOTE,
]  # fmt: skip
PRAISED: list[dict[str, Any]] = [
    {"prompt": "q", "completion": "good", "label": True},
    {"prompt": QUESTION, "completion": GOOD, "label": 1},
    {"messages": QUESTION + GOOD, "label": "True"},
    {"instruction": "q", "output": "good", "kto_tag": True},
]


def said(row: dict[str, Any], reading: Reading = CHOSEN) -> str:
    conversation = parse_row(row, "s", "f:1", reading)
    return " ".join(f"{m.role}:{m.content}" for m in conversation.messages)


@pytest.mark.parametrize("row", PAIRS + PRAISED, ids=ascii)
def test_the_better_answer_is_read_when_the_setting_asks_for_it(row: dict[str, Any]) -> None:
    assert said(row) == "user:q assistant:good"


@pytest.mark.parametrize("row", PAIRS + PRAISED, ids=ascii)
def test_without_the_setting_one_sentence_names_the_columns_and_both_settings(row: dict[str, Any]) -> None:
    with pytest.raises(
        DataError, match=r"f:1: '.*people prefer.*data\.use=chosen.*data\.ignore_columns=\["
    ) as error:
        parse_row(row, "s", "f:1")
    named = str(error.value).partition("[")[2].rstrip("]").split(", ")
    assert named and all(name in row and repr(name) in str(error.value) for name in named)


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"prompt": "q", "completion": "bad", "label": False}, "an answer that people rejected"),
        ({"prompt": "q", "completion": "bad", "label": -1}, "an answer that people rejected"),
        ({"messages": QUESTION + BAD, "kto_tag": False}, "an answer that people rejected"),
        ({"prompt": "q", "chosen": None, "rejected": "bad"}, "no chosen answer"),
        ({"prompt": "q", "chosen": [], "rejected": BAD}, "no chosen answer"),
        ({"prompt": "q", "chosen": "", "rejected": "bad"}, "empty turn"),
        ({"chosen": "good", "rejected": "bad"}, "no question before an answer"),
        (VOTE | {"verdict": "tie"}, "a vote that prefers neither answer"),
        (VOTE | {"answers": []}, "a vote without two answers"),
    ],
    ids=ascii,
)
def test_a_row_without_a_better_answer_is_dropped_with_the_reason(row: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=f"^{reason}$"):
        said(row)


def test_earlier_turns_and_the_columns_beside_stay() -> None:
    earlier = [*QUESTION, *BAD, {"role": "user", "content": "q2"}]
    row = {"messages": earlier, "chosen": GOOD, "rejected": BAD, "system": "s", "source": "x", "group": "g"}
    conversation = parse_row(row, "s", reading=CHOSEN)
    assert [m.content for m in conversation.messages] == ["s", "q", "bad", "q2", "good"]
    assert (conversation.source, conversation.groups) == ("x", ("g",))
    rows = [RawRow("f:1", PAIRS[0] | {"margin": 2}), RawRow("f:2", PAIRS[8])]
    assert clean(rows, reading=CHOSEN).unread == {"margin": 1, "rejected": 1, "non_preferred_output": 1}


def test_a_mapped_answer_is_the_answer_and_a_verdict_on_it_still_counts() -> None:
    columns = ColumnsConfig(prompt="ask", response="chosen")
    row = {"ask": "q", "chosen": "good", "rejected": "bad"}
    assert said(row, Reading(columns)) == "user:q assistant:good"
    with pytest.raises(DataError, match="'label' says"):
        said(row | {"label": True}, Reading(columns))
    assert said(row | {"label": True}, Reading(columns, use="chosen")) == "user:q assistant:good"
    labels = ColumnsConfig(prompt="text", response="label")
    assert said({"text": "fine film", "label": 1}, Reading(labels)) == "user:fine film assistant:1"


def test_prepare_trains_the_praised_rows_and_counts_the_others(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"prompt": f"Say word{i}.", "completion": f"word{i}" if i % 2 else "no", "label": bool(i % 2)}
        for i in range(60)
    ]
    (tmp_path / "kto.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = ["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "artifacts")]
    flags += ["--set", f"data.source={tmp_path / 'kto.jsonl'}", "--set", "data.general=null"]
    assert main(flags) == 1
    assert "data.use=chosen" in capsys.readouterr().err
    assert main([*flags, "--set", "data.use=chosen"]) == 0
    assert "30 an answer that people rejected (first kto.jsonl:1)" in capsys.readouterr().out
