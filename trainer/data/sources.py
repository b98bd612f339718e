"""Read raw rows from the embedded data set, local files, or the Hub, by the splits that they have.

`formats` reads one file, `hub` a data set of the Hub, and `layout` knows the names of splits. The content of
rows is not checked here.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from trainer.data import hub
from trainer.data.formats import RawRow, read_file, without_nulls
from trainer.data.layout import file_sides, short_names, some_of, split_sides
from trainer.errors import DataError
from trainer.files import COMPRESSED, DATA_SUFFIXES, data_files, unknown_files
from trainer.progress import say
from trainer.source_name import HUB, HubName, is_local

Rows = Iterable[RawRow]


def read_rows(source: str) -> Iterator[RawRow]:
    """Yield all rows of a source, whatever its splits. Raises: DataError if it cannot be read."""
    return chain.from_iterable(read_sides(source).values())


def read_sides(
    source: str, names: Mapping[Path, str] | None = None, commits: dict[str, str] | None = None
) -> dict[str, Rows]:
    """Return side → its rows: `train` alone, unless the source has splits of its own.

    names: what to call each file; None: as `short_names` does among the files of this source. commits:
    receives the commit that a data set of the Hub has.
    Raises: DataError if the source itself cannot be read.
    """
    if source == "stdlib-docs":
        return {"train": _stdlib_docs()}
    if source.startswith(HUB):
        name = HubName.parse(source)
        splits = hub.load(name)
        if commits is not None and (commit := hub.commit_of(splits)):
            commits[source] = commit
        return _hub(name, splits)
    return _local(Path(source), names)


def names_of(sources: Iterable[str]) -> dict[Path, str]:
    """Return what to call each local file of several sources, so that no two have the same name."""
    return short_names(file for source in sources if is_local(source) for file in data_files(Path(source)))


def _stdlib_docs() -> Iterator[RawRow]:
    """Yield the rows that `stdlib_docs` makes in a process of its own, which imports the whole library."""
    command = [sys.executable, "-m", "trainer.data.stdlib_docs"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise DataError(f"stdlib-docs could not be built (exit {done.returncode}): {last}")
    for number, line in enumerate(done.stdout.splitlines(), 1):
        yield RawRow(f"stdlib-docs:{number}", json.loads(line))


def _hub(name: HubName, splits: Mapping[str, Any]) -> dict[str, Rows]:
    """Return the sides of a data set of the Hub. Splits that are of no side are named, with their rows."""
    if len(splits) == 1:
        ((split, rows),) = splits.items()
        label = f"{name}#{split}" if name.split else str(name)
        return {"train": _numbered(label, rows)}
    sides = split_sides(splits)
    if not sides:
        raise DataError(
            f"data set {name} has the splits {', '.join(splits)}: name the one to train on, as in "
            f"{HUB}{name}#{next(iter(splits))}"
        )
    left = [f"{split} ({len(rows):,} rows)" for split, rows in splits.items() if split not in sides.values()]
    if left:
        say(f"  {name}: not read are the splits {', '.join(left)}")
    return {side: _numbered(f"{name}#{split}", splits[split]) for side, split in sides.items()}


def _numbered(label: str, rows: Iterable[dict[str, Any]]) -> Iterator[RawRow]:
    for number, row in enumerate(rows):
        yield RawRow(f"{label}:{number}", without_nulls(row))


def _local(path: Path, names: Mapping[Path, str] | None) -> dict[str, Rows]:
    sides = file_sides(path)
    wanted = ", ".join(DATA_SUFFIXES)
    if not any(sides.values()):
        raise DataError(
            f"data.source {path}: no {wanted} file there (also as {' or '.join(COMPRESSED)}); "
            "give a file or a folder of them. Unpack an archive, and save a spreadsheet as CSV"
        )
    if left := unknown_files(path):
        say(f"  {path.name}: not read, because they are none of {wanted}: {some_of(left)}")
    called = names or short_names(file for files in sides.values() for file in files)
    return {side: _files(files, called) for side, files in sides.items()}


def _files(files: Iterable[Path], names: Mapping[Path, str]) -> Iterator[RawRow]:
    for file in files:
        empty = True
        for row in read_file(file, names[file]):
            empty = False
            yield row
        if empty:
            say(f"  {names[file]} has no rows")
