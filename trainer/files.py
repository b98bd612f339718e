"""Write directories and files that are whole or do not exist, even after a kill -9, and hash them."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.errors import MissingError
from trainer.progress import say

DATA_SUFFIXES = (".json", ".jsonl", ".ndjson", ".csv", ".tsv", ".parquet", ".arrow")
COMPRESSED = (".gz", ".zst")
# What `datasets` and the Hub write next to the rows.
DESCRIPTIONS = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")
CACHED = "cache-*.arrow"  # what `datasets` computed of the rows, next to them
BESIDE = (*DESCRIPTIONS, CACHED, "*.md", "*.py", "LICEN[CS]E*")


def data_suffix(file: Path) -> str | None:
    """Return the suffix that names a data file's format, in lower case and without .gz or .zst, or None."""
    suffixes = [suffix.lower() for suffix in file.suffixes]
    if suffixes[-1:] and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes and suffixes[-1] in DATA_SUFFIXES else None


def data_files(path: Path) -> list[Path]:
    """Return the data files at `path`, which is one or a folder, in the order in which they are read.

    Hidden files and folders, and descriptions and caches of a data set, are left out of a folder.
    """
    if not path.is_dir():
        return [path] if path.is_file() and data_suffix(path) else []
    return [
        file
        for file in sorted(path.rglob("*"))
        if file.is_file()
        and data_suffix(file)
        and file.name not in DESCRIPTIONS
        and not file.match(CACHED)
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


def unknown_files(path: Path) -> list[str]:
    """Return the files of a folder that are neither data, nor hidden, nor a description of the data."""
    known = {*data_files(path), *(file for name in BESIDE for file in path.rglob(name))}
    return [
        file.relative_to(path).as_posix()
        for file in sorted(path.rglob("*") if path.is_dir() else ())
        if file.is_file()
        and file not in known
        and not any(part.startswith(".") for part in file.relative_to(path).parts)
    ]


@contextlib.contextmanager
def whole_directory(path: Path) -> Iterator[Path]:
    """Yield a scratch directory that becomes `path` when the block ends well.

    A scratch directory that a killed process left behind is removed first. The caller is the
    only writer of `path`.
    """
    scratch = path.with_name(f".{path.name}.partial")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    try:
        yield scratch
    except BaseException:
        shutil.rmtree(scratch, ignore_errors=True)
        raise
    sync_files(scratch)
    shutil.rmtree(path, ignore_errors=True)
    scratch.rename(path)


def sync_files(directory: Path) -> dict[Path, int]:
    """Wait until every file below a directory is on the disk, and return their sizes in bytes."""
    sizes = {}
    for file in directory.rglob("*"):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
                sizes[file] = os.fstat(opened.fileno()).st_size
    return sizes


def write_json(path: Path, value: Any) -> None:
    """Write JSON so that readers see the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f".{path.name}.partial")
    with scratch.open("w", encoding="utf-8") as file:
        json.dump(value, file, indent=2)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())
    scratch.replace(path)


def read_json(path: Path) -> Any:
    """Return the value of a JSON file, or None if it does not exist or is broken."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def sha256_file(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def only_writer(path: Path) -> Iterator[None]:
    """Hold the lock on making `path`. Wait while another process holds it; then check again if `path` exists.

    The lock goes with the process, however that ends.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"  waiting for another run that is making {path}")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def require_room(path: Path, needed_bytes: int, what: str) -> None:
    """Raise MissingError, with both sizes, if the disk of `path` has less room than `needed_bytes`."""
    place = next(p for p in (path, *path.absolute().parents) if p.is_dir())
    free_bytes = shutil.disk_usage(place).free
    if free_bytes < needed_bytes:
        raise MissingError(
            f"{what} needs {needed_bytes / 2**30:.2f} GiB on the disk of {place}, and "
            f"{free_bytes / 2**30:.2f} GiB are free: free some, or set ARTIFACTS_DIR to a larger disk"
        )
