"""Find what `base.path` means: in a Hub cache a snapshot, in a folder its one GGUF file, else itself.

An entry of a Hub cache is a `models--OWNER--NAME` folder, or `snapshots/<commit>` in it. Nothing is
downloaded here.
"""

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

from trainer.config import BaseModelConfig
from trainer.errors import BaseModelError
from trainer.files import read_json

MODELS, SNAPSHOTS = "models--", "snapshots"
GGUF = ".gguf"
INDEX = "model.safetensors.index.json"
_COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclasses.dataclass(frozen=True, slots=True)
class Place:
    """A model directory or a GGUF file. revision: its commit if it is in a Hub cache.

    in_cache: whether it is in one, so that `base.id` and the commit say what it is.
    """

    path: Path
    revision: str
    in_cache: bool = False


def place(base: BaseModelConfig, path: Path) -> Place:
    """Return what `base.path` means. Raises: BaseModelError if that is not one model."""
    found = _in_hub_cache(base, path) or Place(path, base.revision)
    return dataclasses.replace(found, path=_only_gguf(found.path) or found.path)


def _in_hub_cache(base: BaseModelConfig, path: Path) -> Place | None:
    """Return the snapshot if `path` is in a Hub cache. Raises: BaseModelError if it is of another model."""
    if path.name.startswith(MODELS) and (path / SNAPSHOTS).is_dir():
        entry, commit = path, _commit(path, base.revision)
    elif path.parent.name == SNAPSHOTS and path.parents[1].name.startswith(MODELS):
        entry, commit = path.parents[1], path.name
    else:
        return None
    repository = "/".join(entry.name.removeprefix(MODELS).split("--"))
    if repository != base.id:
        raise BaseModelError(
            f"base.path {path} holds {repository} of the Hub, and base.id is {base.id}: set base.id to "
            f"{repository}, and base.licence to its licence"
        )
    if _COMMIT.fullmatch(base.revision) and base.revision != commit:
        raise BaseModelError(f"base.path {path} is another commit than base.revision {base.revision}")
    return Place(entry / SNAPSHOTS / commit, commit, in_cache=True)


def _commit(entry: Path, revision: str) -> str:
    """Return the commit that a revision is in this cache. Raises: BaseModelError if it is not there."""
    reference = entry / "refs" / revision
    commit = reference.read_text().strip() if reference.is_file() else revision
    if (entry / SNAPSHOTS / commit).is_dir():
        return commit
    there = ", ".join(sorted(folder.name for folder in (entry / SNAPSHOTS).iterdir())) or "none"
    raise BaseModelError(
        f"base.path {entry} has no revision {revision}; its commits are {there}: set base.revision to one"
    )


def _only_gguf(folder: Path) -> Path | None:
    """Return the folder's GGUF, or None if it has none or holds safetensors. Raises: BaseModelError."""
    files = sorted(f for f in folder.iterdir() if f.suffix.lower() == GGUF) if folder.is_dir() else []
    if not files or any(folder.glob("*.safetensors*")):
        return None
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise BaseModelError(f"base.path {folder} holds {len(files)} GGUF files: give one of {names}")
    return files[0]


def missing_files(directory: Path) -> list[str]:
    """Return the files that a model directory names and lacks: links to nothing, and parts of its weights."""
    return sorted({*_broken_links(directory), *_missing_parts(directory)})


def _broken_links(directory: Path) -> Iterator[str]:
    for file in directory.rglob("*"):
        if file.is_symlink() and not file.exists():
            yield file.relative_to(directory).as_posix()


def _missing_parts(directory: Path) -> Iterator[str]:
    index = read_json(directory / INDEX)
    parts = index.get("weight_map") if isinstance(index, dict) else None
    if isinstance(parts, dict):
        yield from (str(part) for part in parts.values() if not (directory / str(part)).is_file())
