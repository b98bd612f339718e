"""Find the splits that a data set has of its own, by its README or the names of its files, folders or splits.

The names are those that the Hub's loader knows: `train`, `validation` (`valid`, `val`, `dev`) and `test`
(`eval`), alone or as the first or last word of a name: `test-00000-of-00001.parquet`, `chat_train.jsonl`,
`train/data.jsonl`, `train_sft`.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from trainer.data_card import README, splits_of
from trainer.errors import DataError
from trainer.files import COMPRESSED, DATA_SUFFIXES, data_files
from trainer.progress import say

NAMED = 5  # files, where they are many
HELD_OUT = ("validation", "test")
SIDES = ("train", *HELD_OUT)
_WORDS: Mapping[str, str] = {
    "train": "train", "training": "train",
    "validation": "validation", "valid": "validation", "val": "validation", "dev": "validation",
    "test": "test", "testing": "test", "eval": "test", "evaluation": "test",
}  # fmt: skip
_SHARD = re.compile(r"[-_.]\d+-of-\d+.*$")


def side_of(*parts: str) -> str | None:
    """Return the side that a name of several parts belongs to, or None. The parts: folders, then the name.

    A part that is such a word counts before one that begins or ends with it.
    """
    names = [_SHARD.sub("", part.lower()) for part in parts]
    for name in names:
        if name in _WORDS:
            return _WORDS[name]
    for name in reversed(names):
        words = re.split(r"[^a-z]+", name)
        for word in (words[0], words[-1]):
            if word in _WORDS:
                return _WORDS[word]
    return None


def file_sides(path: Path) -> dict[str, list[Path]]:
    """Return side → the data files at `path`, in the order in which they are read.

    A folder has the splits that its README describes, as on the Hub. Without such a README it has splits of
    its own if a file's name says validation or test and another's does not. Files that name no side then
    belong to train. Otherwise all files do.
    Raises: DataError if the README names what the folder does not hold, or leaves a choice.
    """
    files = data_files(path)
    if path.is_dir() and (splits := splits_of(path)) is not None:
        return _described(path, splits, files)
    sides: dict[str, list[Path]] = {}
    for file in files:
        folders = file.relative_to(path).parts[:-1] if path.is_dir() else ()
        sides.setdefault(side_of(*folders, _stem(file)) or "train", []).append(file)
    whole = not path.is_dir() or "train" not in sides
    return {"train": files} if whole else {side: sides[side] for side in SIDES if side in sides}


def _described(
    folder: Path, splits: Mapping[str, list[Path]], files: Iterable[Path]
) -> dict[str, list[Path]]:
    """Return side → its files by the README's splits, and print which are not read. Raises: DataError."""
    sides = split_sides(splits) if len(splits) > 1 else {"train": next(iter(splits))}
    if not sides:
        raise DataError(
            f"{folder / README} has the splits {', '.join(splits)}: give the files of the one to train on as "
            "data.source"
        )
    found = {side: splits[split] for side, split in sides.items()}
    read = {file for those in found.values() for file in those}
    if left := [file.relative_to(folder).as_posix() for file in files if file not in read]:
        say(f"  {folder.name}: its {README} takes no side from {some_of(left)}, which are not read")
    return found


def some_of(names: Sequence[str]) -> str:
    """Return names in a sentence: `a, b and 12 more`."""
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more


def split_sides(names: Iterable[str]) -> dict[str, str]:
    """Return side → the split of the Hub that it is; empty if the names do not say it for train.

    Exact names come first: `train` beside `train_small`. Two that only begin or end with a word say nothing.
    """
    names = list(names)
    sides = {}
    for side in SIDES:
        found = (
            [name for name in names if name == side]
            or [name for name in names if _WORDS.get(name.lower()) == side]
            or [name for name in names if side_of(name) == side]
        )
        if len(found) == 1:
            sides[side] = found[0]
    return sides if "train" in sides else {}


def short_names(files: Iterable[Path]) -> dict[Path, str]:
    """Return each file's last parts, as few as tell it from the others: `a.jsonl`, or `train/data.jsonl`."""
    distinct = list(dict.fromkeys(files))
    names: dict[Path, str] = {}
    count, left = 1, distinct
    while left:
        by_name: dict[str, list[Path]] = {}
        for file in left:
            # A name on the disk may be no text, and reports must hold it.
            name = "/".join(file.parts[-count:]).encode(errors="backslashreplace").decode()
            by_name.setdefault(name, []).append(file)
        left = []
        for name, those in by_name.items():
            if len(those) == 1:
                names[those[0]] = name
            else:
                left += those
        count += 1
    return names


def _stem(file: Path) -> str:
    """Return a data file's name without what says its format and compression."""
    while file.suffix.lower() in (*DATA_SUFFIXES, *COMPRESSED):
        file = file.with_suffix("")
    return file.name
