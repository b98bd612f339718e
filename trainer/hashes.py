"""Hash large files once: what has kept its size, its times and its place on the disk is not read again.

The hashes are kept in `hashes.json` of the artifacts, for the arms' processes and for later runs. Files whose
content is checked against a manifest are always read (`files.sha256_file`).
"""

import contextlib
import time
from pathlib import Path

from trainer.files import read_json, sha256_file, write_json

RECORD = "hashes.json"
REMEMBERED_BYTES = 2**20  # reading less costs nothing
SETTLED_NS = 20_000_000  # two steps of the slowest clock by which a kernel dates changes
_known: dict[str, list[int | str]] = {}  # device and inode → size, mtime and ctime in ns, SHA-256
_records: list[Path] = []


def keep_in(artifacts: Path) -> None:
    """Use the record of this directory from now on, and add to it if the directory exists."""
    _records[:] = [artifacts / RECORD]
    _known.update(_kept(_records[0]))


def known_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, which is read unless its hash is known."""
    status = path.stat()
    place = f"{status.st_dev}:{status.st_ino}"
    state: list[int | str] = [status.st_size, status.st_mtime_ns, status.st_ctime_ns]
    if isinstance(known := _known.get(place), list) and known[:-1] == state:
        return str(known[-1])
    settled = time.time_ns() - max(status.st_mtime_ns, status.st_ctime_ns) > SETTLED_NS
    digest = sha256_file(path)
    if settled and status.st_size >= REMEMBERED_BYTES:
        _known[place] = [*state, digest]
        _write()
    return digest


def _write() -> None:
    """Add what is known to the record. A hash that two processes' writing loses is found again."""
    for record in _records:
        if record.parent.is_dir():
            with contextlib.suppress(OSError):  # artifacts that may only be read
                write_json(record, {**_kept(record), **_known})


def _kept(record: Path) -> dict[str, list[int | str]]:
    content = read_json(record)
    return content if isinstance(content, dict) else {}
