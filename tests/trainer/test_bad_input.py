"""Broken data as people bring it: one clear line, or the bad rows dropped and counted."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet
from transformers import PreTrainedTokenizerFast

from tests.support.trainer import rows
from trainer.cli import main
from trainer.data.chat_template import Text
from trainer.data.conversation import Conversation, Message
from trainer.data.tokenize import ChatTokenizer

LINES = [json.dumps(row).encode() + b"\n" for row in rows(80)]


def prepare(config_file: Path, tmp_path: Path, source: Path, *overrides: str) -> int:
    settings = [f"data.source={source}", "data.general=null", *overrides]
    flags = [part for value in settings for part in ("--set", value)]
    return main(["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "artifacts"), *flags])


def report(tmp_path: Path) -> Any:
    (file,) = tmp_path.glob("artifacts/data/*/report.json")
    return json.loads(file.read_text())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.jsonl", b"", "no usable row"),
        (
            "other.jsonl",
            b'{"Problem": "p", "SQL": "s", "context": "c"}\n' * 9,
            "Rows have the columns Problem, SQL, context. To read them, set "
            "data.columns={prompt: Problem, response: SQL, context: context}. The first: {'Problem': 'p',",
        ),
        (
            "plain.jsonl",
            b'{"text": "Once upon a time.", "meta": "m"}\n' * 9,
            "`text` holds plain text, and answers to questions are trained here.",
        ),
        (
            "tokens.jsonl",
            b'{"input_ids": [1, 2], "labels": [1, 2]}\n' * 9,
            "They are tokens of another tokenizer",
        ),
        ("pieces.jsonl", b'{"segments": [{"label": true, "text": "a"}]}\n' * 9, "pieces of a formatted text"),
        ("rows.zip", b"PK", "Unpack an archive, and save a spreadsheet as CSV"),
        ("binary.jsonl", bytes(range(256)) * 40, "not UTF-8"),
        ("cut.json", b"[" + LINES[0] + b", {", "was it cut off"),
        ("greek.json", '[{"instruction": "καφές"}]'.encode("iso-8859-7"), "is not UTF-8"),
        ("few.jsonl", b"".join(LINES[:2]), "2 usable rows make 2 groups"),
        ("rows.txt", b"a,b", "give a file or a folder"),
        ("rows.csv", b"a,b", "no usable row"),
    ],
)
def test_a_source_without_rows_is_refused_in_one_line(
    config_file: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    name: str,
    content: bytes,
    message: str,
) -> None:
    (tmp_path / name).write_bytes(content)
    assert prepare(config_file, tmp_path, tmp_path / name) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_folder_without_data_is_refused_in_one_line(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder" / "deep.json").mkdir(parents=True)
    assert prepare(config_file, tmp_path, tmp_path / "folder") == 1
    assert "no .json, .jsonl, .ndjson, .csv, .tsv, .parquet, .arrow file there" in capsys.readouterr().err


def test_parquet_with_other_columns_is_refused_with_the_columns_wanted(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parquet.write_table(pyarrow.table({"prompt": ["q"] * 9}), tmp_path / "rows.parquet")
    assert prepare(config_file, tmp_path, tmp_path / "rows.parquet") == 1
    error = capsys.readouterr().err
    assert "9 no messages and no known pair of question and answer" in error
    assert (
        "Rows have the columns prompt. To read them, set data.columns={prompt: prompt, response: COLUMN}"
        in error
    )


def test_filters_that_leave_nothing_report_what_they_dropped(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "all.jsonl").write_bytes(b"".join(LINES))
    assert prepare(config_file, tmp_path, tmp_path / "all.jsonl", "data.filters={min_score: 4}") == 1
    assert "80 no score" in capsys.readouterr().err


def test_bad_lines_among_good_ones_are_dropped_and_counted(config_file: Path, tmp_path: Path) -> None:
    bad = [b"\xff\xfe\n", b"[" * 100_000 + b"\n", b"9" * 5000 + b"\n", b'{"instruction": "cut o']
    alpaca = [b'{"instruction": "another shape", "output": "yes"}\n']
    (tmp_path / "mixed.jsonl").write_bytes(b"".join([b"\xef\xbb\xbf", *LINES, *alpaca, *bad]))
    assert prepare(config_file, tmp_path, tmp_path / "mixed.jsonl") == 0
    found = report(tmp_path)
    assert found["dropped"] == {
        "not JSON": 1, "nested too deeply": 1, "a number of thousands of digits": 1, "not UTF-8": 1
    }  # fmt: skip
    assert sum(found["usable_rows_by_source"].values()) == 81


def test_a_gigantic_row_is_dropped_without_being_encoded(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    huge = json.dumps({"instruction": "q", "output": "word " * 100_000}).encode() + b"\n"
    (tmp_path / "huge.jsonl").write_bytes(huge + b"".join(LINES))
    encoded: list[int] = []
    encode = ChatTokenizer._encode

    def watched(self: ChatTokenizer, texts: list[Text]) -> Any:
        encoded.extend(len(text.text) for text in texts)
        return encode(self, texts)

    monkeypatch.setattr(ChatTokenizer, "_encode", watched)
    assert prepare(config_file, tmp_path, tmp_path / "huge.jsonl") == 0
    assert report(tmp_path)["dropped"] == {"longer than 96 tokens": 1}
    assert encoded and max(encoded) < 1000


def test_no_row_that_fits_is_taken_for_gigantic(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatTokenizer(tokenizer)
    for text in ("plain", "naïve 😀", "x" * 500):
        made = Conversation((Message("user", text), Message("assistant", text)), "s")
        assert chat.may_fit(made, len(chat.row(made).input_ids))
