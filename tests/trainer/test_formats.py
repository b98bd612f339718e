"""The files that people have: the same three rows come out of each, with places that name the file."""

import dataclasses
import gzip
import json
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from trainer.data.clean import clean
from trainer.data.sources import read_rows
from trainer.errors import DataError

ROWS = [
    {"instruction": f"Name {word}.", "input": "", "output": f"{word}, é"} for word in ("red", "blue", "green")
]
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
PRETTY = "\n".join(json.dumps(row, indent=2) for row in ROWS)


def table(separator: str) -> str:
    lines = [ROWS[0], *(row.values() for row in ROWS)]
    return "".join(separator.join(f'"{cell}"' for cell in line) + "\n" for line in lines)


TABLE = table(",")


def zstandard(text: str) -> bytes:
    return bytes(pyarrow.compress(text.encode(), codec="zstd", asbytes=True))


FILES: dict[str, bytes] = {
    "lines.jsonl": LINES.encode(),
    "lines.ndjson": LINES.encode(),
    "LINES.JSONL": LINES.encode(),
    "mark.jsonl": LINES.encode("utf-8-sig"),
    "wide.jsonl": LINES.encode("utf-16"),
    "wide-without-mark.jsonl": LINES.encode("utf-16-le"),
    "lines.jsonl.gz": gzip.compress(LINES.encode()),
    "lines.jsonl.zst": zstandard(LINES),
    "list.json": json.dumps(ROWS).encode(),
    "list.jsonl": json.dumps(ROWS, indent=1).encode(),
    "list-wide.json": json.dumps(ROWS).encode("utf-16"),
    "around.json": json.dumps({"version": "1", "data": ROWS}).encode(),
    "around-pretty.json": json.dumps({"data": ROWS}, indent=2).encode(),
    "pretty.json": PRETTY.encode(),
    "pretty.json.gz": gzip.compress(PRETTY.encode()),
    "table.csv": TABLE.encode(),
    "table-mark.csv": TABLE.encode("utf-8-sig"),
    "semicolons.csv": table(";").encode(),
    "table.tsv": table("\t").encode(),
    "table.CSV.GZ": gzip.compress(TABLE.encode()),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_every_layout_gives_the_same_rows(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(FILES[name])
    found = list(read_rows(str(tmp_path / name)))
    assert [row.value for row in found] == ROWS and not any(row.problem for row in found)
    assert {c.source for c in clean(found).conversations} == {name}


def test_a_folder_of_save_to_disk_is_read_without_its_descriptions(tmp_path: Path) -> None:
    datasets.Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert [row.value for row in read_rows(str(tmp_path / "saved"))] == ROWS


def test_hidden_files_and_descriptions_of_a_data_set_are_not_rows(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(LINES)
    for name in ("dataset_infos.json", "._train.jsonl", ".cache/old.jsonl", "cache-0a1b.arrow"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text('{"default": {}}')
    assert [row.value for row in read_rows(str(tmp_path))] == ROWS


def test_a_file_without_rows_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "rows.jsonl").write_text(LINES)
    (tmp_path / "empty.jsonl").write_text("\n")
    assert [row.value for row in read_rows(str(tmp_path))] == ROWS
    assert capsys.readouterr().out == "  empty.jsonl has no rows\n"


def test_utf_16_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wide.jsonl").write_bytes(LINES.encode("utf-16"))
    list(read_rows(str(tmp_path / "wide.jsonl")))
    assert "wide.jsonl is UTF-16" in capsys.readouterr().out


GERMAN = [{"prompt": "Was heißt „Grüße“?", "completion": "Das sind Wünsche für später – schöne."}]
CYRILLIC = "prompt,completion\nПривет мир,Как дела сегодня\n"
CHINESE = [{"prompt": "你好吗朋友", "completion": "我很好谢谢你"}]
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.jsonl", "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in [{"a": "b"}, *GERMAN])),
        ("a.json", json.dumps(GERMAN, ensure_ascii=False)),
        ("a.csv", "prompt,completion\n" + ",".join(GERMAN[0].values()) + "\n"),
    ],
)
def test_windows_1252_is_read_and_told_with_an_example(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, text: str
) -> None:
    (tmp_path / name).write_bytes(text.encode("cp1252"))
    assert [row.value for row in read_rows(str(tmp_path / name))][-1] == GERMAN[0]
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and f"{name} is not UTF-8, and is read as Windows-1252: '" in said
    assert "heißt" in said


@pytest.mark.parametrize("encoding", ["cp1251", "gbk", "shift_jis", "utf-8"])
def test_lines_in_another_encoding_are_dropped_and_never_guessed(tmp_path: Path, encoding: str) -> None:
    text = "Привет мир" if encoding == "cp1251" else "今日はとても良い日"
    good = '{"prompt": "déjà", "completion": "b"}\n'.encode() if encoding == "utf-8" else b'{"prompt": "a"}\n'
    damaged = json.dumps({"prompt": text}, ensure_ascii=False).encode(encoding)
    damaged = damaged.replace(text.encode(encoding)[:1], b"\xe9 ", 1)
    (tmp_path / "a.jsonl").write_bytes(good + damaged + b"\n")
    assert [row.problem for row in read_rows(str(tmp_path / "a.jsonl"))] == [None, "not UTF-8"]


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        (
            "a.jsonl",
            '{"prompt": "a", "prompt": "b", "completion": "c"}\n{"prompt": "d", "completion": "e"}\n',
            [("b", ("prompt",)), ("d", ())],
        ),
        (
            "a.json",
            '[{"prompt": "a", "completion": "c"},\n{"prompt": "d", "x": {"k": 1, "k": 2}, "completion": ""}]',
            [("a", ()), ("d", ("k",))],
        ),
    ],
)
def test_a_key_that_is_there_twice_is_told_and_the_last_one_counts(
    tmp_path: Path, name: str, content: str, found: list[tuple[str, tuple[str, ...]]]
) -> None:
    (tmp_path / name).write_text(content)
    rows = list(read_rows(str(tmp_path / name)))
    assert [(row.value["prompt"], row.twice) for row in rows] == found
    named = [key for _, keys in found for key in keys]
    unread = clean([dataclasses.replace(row, value={**row.value, "completion": "e"}) for row in rows]).unread
    assert unread[f"an earlier `{named[0]}` of the same object"] == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("cut.jsonl.gz", gzip.compress(LINES.encode() * 99)[:60], "was it cut off"),
        ("cut.jsonl.zst", zstandard(LINES * 99)[:20], "was it cut off"),
        ("not.arrow", b"hello", "not an Arrow file"),
        ("cyrillic.csv", CYRILLIC.encode("cp1251"), "not UTF-8"),
        ("chinese.json", json.dumps(CHINESE, ensure_ascii=False).encode("gbk"), "not UTF-8"),
        ("pointer.parquet", POINTER, "is a pointer of Git LFS and not the file: run `git lfs pull`"),
        ("pointer.jsonl", POINTER, "is a pointer of Git LFS"),
        ("cut.json", b'{"data": [{"a":\n 1}, {"a":', "was it cut off"),
    ],
)
def test_a_file_that_is_not_what_it_says_is_refused_in_one_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / name)))


@pytest.mark.parametrize(
    ("name", "content", "problems"),
    [
        ("first.jsonl", '{"instruction": "a", "outp\n' + LINES, ["not JSON", None, None, None]),
        ("only.jsonl", '{"instruction": "a", "outp', ["not JSON"]),
        ("late.json", PRETTY + '\n{\n"a": ,}', [None, None, None, "not JSON, nor what follows it"]),
        ("wider.csv", TABLE + '"a","b","c","d"\n', [None, None, None, "a line with more cells than columns"]),
    ],
)
def test_a_broken_row_costs_only_itself(
    tmp_path: Path, name: str, content: str, problems: list[str | None]
) -> None:
    (tmp_path / name).write_text(content)
    assert [row.problem for row in read_rows(str(tmp_path / name))] == problems


def test_one_conversation_over_several_lines_is_one_row(tmp_path: Path) -> None:
    row: dict[str, Any] = {
        "messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
    }
    (tmp_path / "one.json").write_text(json.dumps(row, indent=2))
    assert [found.value for found in read_rows(str(tmp_path / "one.json"))] == [row]


def test_a_call_in_a_table_has_its_own_arguments_and_not_those_of_other_rows(tmp_path: Path) -> None:
    def row(name: str, argument: str, value: Any) -> dict[str, Any]:
        parameters = {"type": "object", "properties": {argument: {"type": "string"}}}
        call = {"function": {"name": name, "arguments": {argument: value}}}
        asked, called = {"role": "user", "content": name}, {"role": "assistant", "tool_calls": [call]}
        return {"messages": [asked, called], "tools": [{"name": name, "parameters": parameters}]}

    rows = [row("rain", "city", "Oslo"), row("timer", "minutes", 3)]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "rows.parquet")
    found = clean(read_rows(str(tmp_path / "rows.parquet"))).conversations
    assert [c.messages[-1].calls[0].arguments for c in found] == ['{"city": "Oslo"}', '{"minutes": 3}']
    assert ["minutes" in c.tools[0] for c in found] == [False, True]
