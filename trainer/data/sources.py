"""Read raw rows from the embedded data set, local files, or the Hub.

`formats` reads one file. The content of rows is not checked here.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from trainer.data.formats import RawRow, read_file
from trainer.errors import DataError
from trainer.files import COMPRESSED, DATA_SUFFIXES, data_files


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
        raise DataError(
            f"data.source {path}: no {wanted} file there (also as {' or '.join(COMPRESSED)}); "
            "give a file or a folder of them"
        )
    for file in files:
        yield from read_file(file)
