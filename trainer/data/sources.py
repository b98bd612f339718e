"""Read raw rows from the embedded data set, local files, or the Hub.

Every row comes with its place. A line that is not JSON is yielded with its problem and not raised, so that
one broken row does not cost the rest. The content of rows is not checked here.
"""

import json
import subprocess
import sys
from codecs import BOM_UTF8
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.errors import DataError
from trainer.files import DATA_SUFFIXES, data_files


@dataclass(frozen=True, slots=True)
class RawRow:
    """value: the row, or None where `problem` says why it could not be read."""

    where: str
    value: Any
    problem: str | None = None


def read_rows(source: str) -> Iterator[RawRow]:
    """Yield the rows of `data.source`. Raises: DataError if the source itself cannot be read."""
    if source == "stdlib-docs":
        return _stdlib_docs()
    if source.startswith("hub:"):
        return _hub(source.removeprefix("hub:"))
    return _local(Path(source))


def _stdlib_docs() -> Iterator[RawRow]:
    """Yield the rows that `stdlib_docs` makes in a process of its own, which imports the whole library."""
    command = [sys.executable, "-m", "trainer.data.stdlib_docs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"stdlib-docs could not be built (exit {done.returncode}): {last}")
    for number, line in enumerate(done.stdout.splitlines(), 1):
        yield RawRow(f"stdlib-docs:{number}", json.loads(line))


def _hub(name: str) -> Iterator[RawRow]:
    from datasets import load_dataset

    repository, _, revision = name.partition("@")
    try:
        rows = load_dataset(repository, revision=revision or None, split="train")
    except Exception as error:  # datasets raises its own, the hub's and the network's errors
        raise DataError(
            f"data set {repository} cannot be loaded from the Hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0][:200]}); give a local file as data.source instead"
        ) from None
    for number, row in enumerate(rows):
        yield RawRow(f"{repository}:{number}", row)


def _local(path: Path) -> Iterator[RawRow]:
    files = data_files(path)
    if not files:
        wanted = ", ".join(DATA_SUFFIXES)
        raise DataError(f"data.source {path}: no {wanted} file there; give a file or a folder of them")
    for file in files:
        yield from _parquet(file) if file.suffix == ".parquet" else _json(file)


def _parquet(file: Path) -> Iterator[RawRow]:
    import pyarrow
    from pyarrow import parquet

    try:
        opened = parquet.ParquetFile(file)
    except pyarrow.ArrowException as error:
        raise DataError(f"{file} is not a Parquet file: {error}") from None
    number = 0
    for batch in opened.iter_batches(batch_size=1024):
        for row in batch.to_pylist():
            number += 1
            yield RawRow(f"{file.name}:{number}", row)


def _json(file: Path) -> Iterator[RawRow]:
    """Yield the rows of one JSON array, or of one object per line: the first character decides."""
    with file.open("rb") as lines:
        if lines.read(1024).removeprefix(BOM_UTF8).lstrip().startswith(b"["):
            yield from _array(file)
            return
        lines.seek(0)
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            where = f"{file.name}:{number}"
            try:
                yield RawRow(where, json.loads(line.decode("utf-8-sig")))
            except UnicodeDecodeError:
                yield RawRow(where, None, "not UTF-8")
            except (ValueError, RecursionError):  # a number of 5,000 digits is a ValueError of its own
                yield RawRow(where, None, "not JSON")


def _array(file: Path) -> Iterator[RawRow]:
    try:
        rows = json.loads(file.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise DataError(f"{file} is not UTF-8 (byte {error.start}); save it as UTF-8") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file} is not complete JSON: {error}; was it cut off?") from None
    for number, row in enumerate(rows, 1):
        yield RawRow(f"{file.name}[{number}]", row)
