"""Read the rows of one file: JSON in its usual layouts, CSV, TSV, Parquet or Arrow, as it is, .gz or .zst.

Every row comes with its place. A row that cannot be read is yielded with its problem and not raised, so that
one broken row does not cost the rest.
"""

import csv
import io
import json
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.data.encoding import NOT_UTF_8, head_of, lines_of, require_content, text_of
from trainer.data.shapes import CHATS, printable
from trainer.errors import DataError
from trainer.files import data_suffix

SEPARATORS = (",", ";", "\t", "|")
BATCH_ROWS = 1024
UNREADABLE = (ArithmeticError, LookupError, MemoryError, OSError, SystemError, TypeError, ValueError)


@dataclass(frozen=True, slots=True)
class RawRow:
    """where: FILE:PLACE. value: the row, or None where `problem` says why it could not be read.

    twice: keys that an object of the row has more than once. The last value of each is in the row.
    """

    where: str
    value: Any
    problem: str | None = None
    twice: tuple[str, ...] = ()


class _Decoder:
    """A JSON decoder that notes the keys that an object has twice, of which Python keeps the last."""

    def __init__(self) -> None:
        self._twice: dict[int, list[str]] = {}  # id of an object → its keys that are there twice
        self._decoder = json.JSONDecoder(object_pairs_hook=self._object)
        self.raw_decode = self._decoder.raw_decode

    def decode(self, text: str) -> Any:
        self._twice.clear()
        return self._decoder.decode(text)

    def twice(self, value: Any) -> tuple[str, ...]:
        """Return the keys that an object within the value decoded last has twice."""
        return tuple(sorted(set(self._names(value)))) if self._twice else ()

    def _names(self, value: Any) -> Iterator[str]:
        if isinstance(value, dict):
            yield from self._twice.get(id(value), ())
        for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
            yield from self._names(item)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            counts = Counter(name for name, _ in pairs)
            self._twice[id(found)] = [printable(name) for name, count in counts.items() if count > 1]
        return found


def read_file(file: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of one file. name: what their places call it.

    Raises: DataError if it cannot be read as what its name says.
    """
    suffix = data_suffix(file)
    try:
        require_content(file)
        if suffix in (".parquet", ".arrow"):
            yield from _table(file, name, suffix)
        elif suffix in (".csv", ".tsv"):
            yield from _cells(file, name)
        elif _is_lines(file):
            yield from _lines(file, name)
        else:
            yield from _documents(file, name)
    except (EOFError, OSError, zlib.error) as error:  # of the decompressors, too
        raise DataError(f"{file} cannot be read: {error}; was it cut off?") from None


def _table(file: Path, name: str, suffix: str) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        if suffix == ".parquet":
            batches = parquet.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS)
        else:
            batches = _arrow_batches(file)
        number = 0
        for batch in batches:
            _require_distinct(file, batch.schema.names)
            for row, problem in _rows_of(batch):
                number += 1
                yield RawRow(f"{name}:{number}", row, problem)
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        kind = "a Parquet" if suffix == ".parquet" else "an Arrow"
        raise DataError(f"{file} is not {kind} file: {' '.join(str(error).split())[:200]}") from None


def _rows_of(batch: Any) -> list[tuple[Any, str | None]]:
    """Return each row of a batch, or None and what is wrong: a text may be no UTF-8, a date no date."""
    import pyarrow

    try:
        batch.validate(full=True)  # otherwise a damaged file may crash the process
        return [(without_nulls(row), None) for row in batch.to_pylist()]
    except (pyarrow.ArrowException, *UNREADABLE) as error:
        if batch.num_rows == 1:
            return [(None, f"a value that cannot be read ({type(error).__name__})")]
    return [row for i in range(batch.num_rows) for row in _rows_of(batch.slice(i, 1))]


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Return the row of a table without the nulls inside its columns.

    A table gives each object the fields of all rows' objects: a call would have every function's arguments.
    """
    return {name: _without_nulls(value) for name, value in row.items()}


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nulls(item) for name, item in value.items() if item is not None}
    if isinstance(value, list):
        return [_without_nulls(item) for item in value]
    return value


def _arrow_batches(file: Path) -> Iterator[Any]:
    """Yield the batches of a stream, as `save_to_disk` writes it, or of a file with an index."""
    import pyarrow

    with pyarrow.memory_map(str(file)) as mapped:
        try:
            yield from pyarrow.ipc.open_stream(mapped)
        except pyarrow.ArrowInvalid:
            mapped.seek(0)
            reader = pyarrow.ipc.open_file(mapped)
            for i in range(reader.num_record_batches):
                yield reader.get_batch(i)


def _is_lines(file: Path) -> bool:
    """Return whether a JSON file has one row a line, by its first two lines.

    It has not if it begins with a list, if its first line breaks off where the second goes on, or if its only
    line is an object around a list of rows.
    """
    head = head_of(file)
    if head.lstrip().startswith("["):
        return False
    lines = [line for line in head.splitlines() if line.strip()]
    if not lines:
        return True
    try:
        first = json.loads(lines[0])
    except json.JSONDecodeError as error:
        breaks_off = error.pos >= len(lines[0].rstrip())
        return not (breaks_off and len(lines) > 1 and not lines[1].startswith("{"))
    except (ValueError, RecursionError):
        return True
    return len(lines) > 1 or _rows_within(first) is None


def _lines(file: Path, name: str) -> Iterator[RawRow]:
    decoder = _Decoder()
    for number, line in lines_of(file):
        where = f"{name}:{number}"
        if line is None:
            yield RawRow(where, None, NOT_UTF_8)
            continue
        try:
            value = decoder.decode(line)
            yield RawRow(where, value, None, decoder.twice(value))
        except json.JSONDecodeError:
            yield RawRow(where, None, "not JSON")
        except ValueError:  # Python reads no number of more digits (sys.set_int_max_str_digits)
            yield RawRow(where, None, "a number of thousands of digits")
        except RecursionError:
            yield RawRow(where, None, "nested too deeply")


def _documents(file: Path, name: str) -> Iterator[RawRow]:
    """Yield the rows of a JSON list, of an object around one, or of objects over several lines each."""
    text, decoder, place, number = text_of(file), _Decoder(), 0, 0
    while place := _next_value(text, place):
        try:
            value, place = decoder.raw_decode(text, place - 1)
        except (ValueError, RecursionError) as error:
            if not number:
                why = (
                    f"{error}; was it cut off?"
                    if isinstance(error, ValueError)
                    else "it is nested too deeply"
                )
                raise DataError(f"{file} is not complete JSON: {why}") from None
            yield RawRow(f"{name}:row {number + 1}", None, "not JSON, nor what follows it")
            return
        within = value if isinstance(value, list) and not _is_chat(value) else _rows_within(value)
        for row in [value] if within is None else within:
            number += 1
            yield RawRow(f"{name}:row {number}", row, None, decoder.twice(row))


def _next_value(text: str, place: int) -> int:
    """Return one more than the place of the next character that is no blank and no comma, or 0."""
    while place < len(text) and text[place] in " \t\r\n,":
        place += 1
    return place + 1 if place < len(text) else 0


def _is_chat(value: list[Any]) -> bool:
    """Return whether a list is the messages of one row, as objects or as pairs of role and text."""
    if all(isinstance(turn, list) for turn in value):
        return bool(value) and all(len(turn) == 2 and isinstance(turn[0], str) for turn in value)
    return all(isinstance(turn, dict) and {"role", "content"} <= set(turn) for turn in value)


def _rows_within(value: Any) -> list[Any] | None:
    """Return the rows that an object wraps, as in {"data": [...]}; None if it is a row itself."""
    if not isinstance(value, dict):
        return None
    if rows := _of_the_viewer(value.get("rows")):
        return rows
    lists = [v for v in value.values() if isinstance(v, list) and v and isinstance(v[0], dict)]
    return lists[0] if len(lists) == 1 and not any(name in value for name in CHATS) else None


def _of_the_viewer(rows: Any) -> list[Any]:
    """Return the rows as the Hub's viewer exports them; none if they are others, or if it has cut cells."""
    if not isinstance(rows, list):
        return []
    whole = all(isinstance(row, dict) and "row" in row and not row.get("truncated_cells") for row in rows)
    return [row["row"] for row in rows] if whole else []


def _cells(file: Path, name: str) -> Iterator[RawRow]:
    """Yield a row for each line of a table, by the names of its first line."""
    text = text_of(file)
    csv.field_size_limit(2**31 - 1)
    table = text.lstrip("\r\n")
    before = text[: len(text) - len(table)].count("\n")
    names, _, _ = table.partition("\n")
    separator = max(SEPARATORS, key=names.count)
    rows = csv.DictReader(io.StringIO(table, newline=""), delimiter=separator, strict=True)
    try:
        _require_distinct(file, rows.fieldnames or ())
    except csv.Error as error:
        raise DataError(f"{file} is not a table: its first line: {error}") from None
    while True:
        row, problem = None, None
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:  # such as a quote that is never closed
            problem = f"no line of a table ({error})"
        if row is not None and None in row:
            row, problem = None, "a line with more cells than columns"
        yield RawRow(f"{name}:{before + rows.line_num}", row, problem)


def _require_distinct(file: Path, names: Sequence[str]) -> None:
    """Check that no column hides another of its name. Raises: DataError."""
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise DataError(f"{file} has two columns {twice[0]!r}: rename one, or take it out")
