"""Whatever a file holds: its rows, or a DataError in one line that names it."""

import gzip
import json
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from pyarrow import parquet

from trainer.data.clean import clean
from trainer.data.contamination import file_grams
from trainer.data.prompts import read_prompts
from trainer.data.sources import read_rows
from trainer.errors import DataError

GOOD = [{"instruction": f"q{i}", "output": f"a{i}"} for i in range(5)]
LINES = "".join(json.dumps(row) + "\n" for row in GOOD).encode()
TABLE = pyarrow.Table.from_pylist(GOOD)


def arrow(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue().to_pybytes())


def as_parquet(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    parquet.write_table(table, sink)
    return bytes(sink.getvalue().to_pybytes())


def flipped(content: bytes, step: int) -> list[bytes]:
    """The content with one byte inverted, at every `step`th place."""
    return [content[:i] + bytes([content[i] ^ 0xFF]) + content[i + 1 :] for i in range(0, len(content), step)]


def cut(content: bytes) -> list[bytes]:
    return [content[: len(content) * i // 7] for i in range(7)]


GZIP = gzip.compress(os.urandom(500) + LINES * 200)
ZSTD = bytes(pyarrow.compress(LINES * 200, codec="zstd", asbytes=True))
DAMAGED = {
    ".jsonl.gz": [*cut(GZIP), *flipped(GZIP, 13), LINES],
    ".jsonl.zst": [*cut(ZSTD), *flipped(ZSTD, 3), LINES],
    ".csv.zst": cut(ZSTD),
    ".parquet": [*cut(as_parquet(TABLE)), *flipped(as_parquet(TABLE), 5), LINES],
    ".arrow": [*cut(arrow(TABLE)), *flipped(arrow(TABLE), 5), LINES],
    ".jsonl": [b"\0", b"\0" * 999, b"\xef\xbb\xbf", b"\xff\xfe", b"{\0", b"\xff", LINES + b"\0\n" + LINES],
    ".json": [b"", b"{", b"[" * 10_000, b"5", b"null", b"[NaN, 1, [], {}]", b'{"a": [{}]}', LINES[:-9]],
    ".csv": [
        b'a,"b',
        b"\n\n",
        b"instruction,output",
        b'instruction,output\nq,"a',
        b"\0,\0\n\0",
        b'"',
        b",\n,,",
    ],
}


@pytest.mark.parametrize("suffix", DAMAGED)
def test_a_damaged_file_gives_rows_or_one_line(tmp_path: Path, suffix: str) -> None:
    draw = random.Random(4)
    contents = [*DAMAGED[suffix], *(draw.randbytes(n) for n in (1, 2, 3, 9, 99, 999))]
    for number, content in enumerate(contents):
        file = tmp_path / f"f{number}{suffix}"
        file.write_bytes(content)
        try:
            found = clean(read_rows(str(file)))
        except DataError as error:
            assert str(file) in str(error) and "\n" not in str(error)
        else:
            (found.summary() + found.unread_columns()).encode()


def dropped(file: Path) -> dict[str, int]:
    return dict(clean(read_rows(str(file))).dropped)


def test_a_value_that_cannot_be_read_costs_its_row_and_not_the_file(tmp_path: Path) -> None:
    offsets = b"".join(n.to_bytes(4, "little") for n in (0, 2, 4, 6))
    no_text = pyarrow.Array.from_buffers(
        pyarrow.string(), 3, [None, pyarrow.py_buffer(offsets), pyarrow.py_buffer(b"ab\xff\xfecd")]
    )
    file = tmp_path / "rows.arrow"
    file.write_bytes(arrow(pyarrow.table({"instruction": no_text, "output": ["a", "b", "c"]})))
    assert dropped(file) == {"a value that cannot be read (ArrowInvalid)": 1}
    late = pyarrow.array([0, 2**62, 0], pyarrow.timestamp("us"))
    (tmp_path / "late.parquet").write_bytes(
        as_parquet(pyarrow.table({"instruction": ["x", "y", "z"], "output": ["a", "b", "c"], "at": late}))
    )
    assert dropped(tmp_path / "late.parquet") == {"a value that cannot be read (OverflowError)": 1}


def test_tables_with_quotes_that_do_not_match_lose_no_row_in_silence(tmp_path: Path) -> None:
    """The rest of the file would be one cell of the row with the open quote."""
    file = tmp_path / "rows.csv"
    file.write_text('instruction,output\nq1,a1\n"q2,a2\nq3,a3\n')
    assert dropped(file) == {"no line of a table (unexpected end of data)": 1}
    file.write_text(
        'instruction,output\nq1,a "quoted" word\nq2,"a 5"" screen"\nq3,"' + "x" * 10_000_000 + '"\n'
    )
    assert dropped(file) == {}
    file.write_text("\n\ninstruction,output\nq1,a1\n")
    (row,) = read_rows(str(file))
    assert row.where == "rows.csv:4" and row.value == {"instruction": "q1", "output": "a1"}


@pytest.mark.parametrize("name", ["rows.csv", "rows.arrow", "rows.parquet"])
def test_a_column_that_hides_another_is_refused(tmp_path: Path, name: str) -> None:
    columns = [pyarrow.array([value]) for value in ("q", "a", "b")]
    table = pyarrow.Table.from_arrays(columns, names=["instruction", "output", "output"])
    content = {"rows.csv": b"instruction,output,output\nq,a,b\n", "rows.arrow": arrow(table)}
    (tmp_path / name).write_bytes(content.get(name) or as_parquet(table))
    with pytest.raises(DataError, match=r"has two columns 'output'"):
        list(read_rows(str(tmp_path / name)))


def no_files(tmp_path: Path) -> dict[str, Callable[[Path], None]]:
    return {
        "folder.jsonl": lambda path: path.mkdir(),
        "dangling.jsonl": lambda path: path.symlink_to(tmp_path / "nowhere"),
        "loop.jsonl": lambda path: path.symlink_to(path),
        "pipe.jsonl": lambda path: os.mkfifo(path),
        "absent.jsonl": lambda path: None,
    }


def test_what_is_no_file_is_refused_and_nothing_waits_for_it(tmp_path: Path) -> None:
    for name, make in no_files(tmp_path).items():
        make(tmp_path / name)
        with pytest.raises(DataError, match=r"no \.json, .* file there"):
            list(read_rows(str(tmp_path / name)))
        with pytest.raises(DataError, match=r"prompts "):
            read_prompts(tmp_path / name, "prompts")


def test_a_file_that_may_not_be_read_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "rows.jsonl").write_bytes(LINES)

    def forbidden(*given: Any, **more: Any) -> Any:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", forbidden)  # root may read everything
    with pytest.raises(DataError, match=r"rows\.jsonl cannot be read: .*Permission denied"):
        list(read_rows(str(tmp_path / "rows.jsonl")))


def test_a_file_name_that_is_no_text_is_written_out(tmp_path: Path) -> None:
    with open(os.fsencode(tmp_path) + b"/\xff\xfe.jsonl", "wb") as file:
        file.write(LINES)
    found = clean(read_rows(str(tmp_path)))
    assert [row.where for row in found.conversations][:1] == ["\\udcff\\udcfe.jsonl:1"]


def test_an_exam_of_deep_objects_is_read(tmp_path: Path) -> None:
    depth = sys.getrecursionlimit() - 150
    words = " ".join(f"word{i}" for i in range(13))
    (tmp_path / "exam.jsonl").write_text('{"a":' * depth + f'"{words}"' + "}" * depth + "\n")
    assert len(file_grams(tmp_path / "exam.jsonl")) == 1
