"""Read what the README of a data set's repository says of its files, as the Hub reads it.

The README begins with YAML between two lines of three dashes. Its `configs` are subsets. Each has
`data_files`: a pattern, a list of patterns, or splits with patterns of their own.
"""

import glob
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from trainer.errors import DataError
from trainer.files import data_files

README = "README.md"
DASHES = "---"


def configs_of(folder: Path) -> list[Mapping[str, Any]]:
    """Return the subsets that the README of a folder describes; none if it has no such header."""
    try:
        lines = (folder / README).read_text(encoding="utf-8").splitlines()
        end = lines.index(DASHES, 1) if lines[:1] == [DASHES] else 0
        header = yaml.safe_load("\n".join(lines[1:end]))
    except (OSError, ValueError, RecursionError, yaml.YAMLError):
        return []
    found = header.get("configs") if isinstance(header, dict) else None
    return [config for config in found if isinstance(config, dict)] if isinstance(found, list) else []


def splits_of(folder: Path) -> dict[str, list[Path]] | None:
    """Return split → its files, of the subset that the Hub would take; None if the README names no files.

    Raises: DataError if it names several subsets and none is the default, or files that are not there.
    """
    configs = [config for config in configs_of(folder) if config.get("data_files")]
    if not configs:
        return None
    chosen = [c for c in configs if len(configs) == 1 or c.get("default") is True] or [
        c for c in configs if c.get("config_name") == "default"
    ]
    if not chosen:
        subsets = ", ".join(f"{c.get('config_name')} ({', '.join(_patterns(c))})" for c in configs)
        raise DataError(
            f"{folder / README} has several subsets: give data.source the files of one: {subsets}"
        )
    readable = {*data_files(folder)}
    splits: dict[str, list[Path]] = {}
    for split, pattern in _named(chosen[0]["data_files"]):
        files = [file for file in _matching(folder, chosen[0], pattern) if file in readable]
        if not files:
            raise DataError(
                f"{folder / README} names {pattern}, and the folder has no such file that can be read"
            )
        splits.setdefault(split, []).extend(file for file in files if file not in splits.get(split, ()))
    return splits


def _named(value: Any) -> Iterator[tuple[str, str]]:
    """Yield each split and a pattern of its files; what names no split is train."""
    if isinstance(value, Mapping):
        value = [{"split": split, "path": path} for split, path in value.items()]
    for item in value if isinstance(value, list) else [value]:
        split, path = (item.get("split"), item.get("path")) if isinstance(item, Mapping) else ("train", item)
        for pattern in path if isinstance(path, list) else [path]:
            yield str(split or "train"), str(pattern)


def _patterns(config: Mapping[str, Any]) -> Iterator[str]:
    yield from (pattern for _, pattern in _named(config["data_files"]))


def _matching(folder: Path, config: Mapping[str, Any], pattern: str) -> list[Path]:
    below = folder / str(config.get("data_dir") or "")
    return sorted(below / name for name in glob.glob(pattern, root_dir=below, recursive=True))
