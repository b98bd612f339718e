"""Read the text of a file: as it is, .gz or .zst, in UTF-8, UTF-16 or Windows-1252.

A file is read as Windows-1252 (which holds Latin-1) if no letter of it is UTF-8 and its letters beyond ASCII
stand alone, as in European languages. Text in another encoding is refused, because it would become noise.
"""

import gzip
import io
import re
from codecs import BOM_UTF8, BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO, cast

from trainer.errors import DataError
from trainer.progress import say

HEAD_BYTES = 2**16
NOT_UTF_8 = "not UTF-8"
WESTERN = "cp1252"
EXAMPLE_CHARACTERS = 12  # on each side of a letter
MOST_ADJACENT = (
    1 / 3
)  # of the letters beyond ASCII; German has 1 in 20, Greek in one byte a letter nearly all
_UTF_8 = re.compile(rb"[\xc2-\xdf][\x80-\xbf]|[\xe0-\xef][\x80-\xbf]{2}|[\xf0-\xf4][\x80-\xbf]{3}")
_BEYOND = re.compile(rb"[\x80-\xff]+")
POINTER = b"version https://git-lfs.github.com/spec/"


def opened(file: Path) -> BinaryIO:
    """Open a file for reading, decompressed."""
    compression = file.suffix.lower()
    if compression == ".gz":
        return cast(BinaryIO, gzip.open(file))
    if compression == ".zst":
        import pyarrow

        return cast(BinaryIO, io.BufferedReader(pyarrow.input_stream(str(file), compression="zstd")))
    return file.open("rb")


def require_content(file: Path) -> None:
    """Check that a file is not what Git LFS leaves in its place. Raises: DataError."""
    with file.open("rb") as raw:
        if raw.read(len(POINTER)) == POINTER:
            raise DataError(
                f"{file} is a pointer of Git LFS and not the file: run `git lfs pull` in its folder"
            )


def head_of(file: Path) -> str:
    """Return the first characters of a file."""
    head = _head(file)
    return head.decode(_encoding(head), errors="ignore")


def text_of(file: Path) -> str:
    """Return the whole text of a file. Raises: DataError if its encoding is not known."""
    encoding = _encoding(_head(file))
    _tell(file, encoding)
    with opened(file) as source:
        raw = source.read()
    try:
        return raw.decode(encoding)
    except UnicodeDecodeError as error:
        if encoding == "utf-8-sig" and (example := _western(raw.splitlines())):
            _tell(file, WESTERN, example)
            return raw.decode(WESTERN)
        name = "UTF-8" if encoding == "utf-8-sig" else "UTF-16"
        raise DataError(f"{file} is not {name} (byte {error.start}); save it as UTF-8") from None


def lines_of(file: Path) -> Iterator[tuple[int, str | None]]:
    """Yield the number and the text of each line that is not blank; None if it is not in the encoding."""
    encoding = _encoding(_head(file))
    _tell(file, encoding)
    with opened(file) as source:
        lines: Iterable[bytes | str] = source
        if encoding != "utf-8-sig":
            lines = io.TextIOWrapper(source, encoding, errors="replace")
        western: bool | None = None
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            text = line if isinstance(line, str) else _decoded(line.removeprefix(BOM_UTF8))
            if text is None and western is None:
                western = _is_western(file)
            if text is None and western and isinstance(line, bytes):
                text = line.decode(WESTERN)
            if text is None or text.strip():
                yield number, text


def _decoded(line: bytes) -> str | None:
    try:
        return line.decode()
    except UnicodeDecodeError:
        return None


def _is_western(file: Path) -> bool:
    """Return whether a file that is not UTF-8 is to be read as Windows-1252, and say so."""
    with opened(file) as source:
        example = _western(source)
    if example:
        _tell(file, WESTERN, example)
    return bool(example)


def _western(lines: Iterable[bytes]) -> str:
    """Return where the first letter beyond ASCII stands if the lines are Windows-1252, or an empty text."""
    example, letters, adjacent = "", 0, 0
    for line in lines:
        if line.isascii():
            continue
        if _UTF_8.search(line):
            return ""
        try:
            text = line.decode(WESTERN)
        except UnicodeDecodeError:
            return ""
        runs = [match.end() - match.start() for match in _BEYOND.finditer(line)]
        letters += sum(runs)
        adjacent += sum(run for run in runs if run > 1)
        if not example:
            at = next(i for i, letter in enumerate(text) if not letter.isascii())
            example = text[max(0, at - EXAMPLE_CHARACTERS) : at + EXAMPLE_CHARACTERS].strip()
    return example if adjacent <= letters * MOST_ADJACENT else ""


def _head(file: Path) -> bytes:
    with opened(file) as source:
        return source.read(HEAD_BYTES)


def _encoding(head: bytes) -> str:
    """Return the encoding that a file's first bytes show: UTF-16 begins with a mark or with half a letter."""
    if head.startswith((BOM_UTF16_LE, BOM_UTF16_BE)):
        return "utf-16"
    if head[:1] == b"\0" and head[1:2].isascii() and head[1:2].decode().isprintable():
        return "utf-16-be"
    if head[1:2] == b"\0" and head[:1].isascii() and head[:1].decode().isprintable():
        return "utf-16-le"
    return "utf-8-sig"


def _tell(file: Path, encoding: str, example: str = "") -> None:
    if encoding.startswith("utf-16"):
        say(f"  {file.name} is UTF-16, and is read as such")
    if encoding == WESTERN:
        say(
            f"  {file.name} is not UTF-8, and is read as Windows-1252: {example!r}; if that is wrong, save "
            "it as UTF-8"
        )
