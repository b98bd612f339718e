"""Read contract 1: `$ARTIFACTS_DIR/models/current` and the directory that it names.

The trainer writes it; the two sides share docs/artifact.schema.json and nothing else. This module models the
parts of the manifest that decide whether the directory may be served, and accepts any content in the rest.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import (
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    StringConstraints,
    ValidationError,
    field_validator,
    model_validator,
)

from api.errors import ArtifactError

MANIFEST = "manifest.json"
_PIECE_BYTES = 64 * 2**20
# Llama 3's chat template prints a date. Training rows were rendered with this one, the template's own
# default, so the same conversation always has the same tokens.
TEMPLATE_DATE = "26 Jul 2024"
NEXT_COMMAND = "make one with `make up` or `python -m trainer run`"

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Report = dict[str, Any]
REQUIRED_FILES = ("config.json", "tokenizer.json", "README.md")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Base(_Part):
    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    licence: str
    weights_sha256: str | None = None


class FileRecord(_Part):
    sha256: Sha256
    bytes: int = Field(ge=0)


class MergeCheck(_Part):
    positions: int = Field(ge=1)
    fp32: Report | None  # None after full fine-tuning, which merges nothing
    shipped: Report
    passed: Literal[True]


class Gate(_Part):
    name: str
    passed: bool
    detail: str


class Evaluation(_Part):
    passed: bool
    override: Literal["--ship-despite-failed-gates"] | None = None
    metrics: list[Report] = Field(min_length=1)
    gates: list[Gate]

    @model_validator(mode="after")
    def _failed_only_by_override(self) -> "Evaluation":
        if self.passed != all(gate.passed for gate in self.gates):
            raise ValueError("`passed` contradicts the gates")
        if self.passed == (self.override is not None):
            raise ValueError("`override` must be set if the gates failed, and only then")
        return self


class Manifest(_Part):
    schema_version: Literal[1]
    id: Name
    name: Name
    description: str = Field(min_length=1)
    examples: list[str] = []  # older artifacts have none
    created_at: AwareDatetime
    base_model: Base
    adapter: Report | None  # None after full fine-tuning
    training: Report
    data: Report
    chat_template_date: str = Field("26 Jul 2024", min_length=1)  # older artifacts do not state it
    config_hash: Sha256
    seed: int
    packages: dict[str, str]
    hardware: Report
    selection: Report
    merge_check: MergeCheck
    evaluation: Evaluation
    export: Report | None = None
    files: dict[str, FileRecord]

    @field_validator("files")
    @classmethod
    def _complete_and_inside(cls, files: dict[str, FileRecord]) -> dict[str, FileRecord]:
        for name in REQUIRED_FILES:
            if name not in files:
                raise ValueError(f"{name} is not listed")
        for name in files:
            path = PurePosixPath(name)
            if name != str(path) or path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{name!r} is not a plain path inside the directory")
        return files


@dataclass(frozen=True, slots=True)
class Artifact:
    directory: Path
    manifest: Manifest
    max_positions: int | None
    """The longest context of the model's config.json, in tokens; None where it states none."""
    vocab_size: int

    @property
    def name(self) -> str:
        return self.manifest.name

    def context_tokens(self, limit: int) -> int:
        """Return how many tokens prompt and answer may have together, at most `limit`."""
        return min(limit, self.max_positions or limit)

    @property
    def failed_gates(self) -> list[str]:
        """Return the names of the gates that a person overrode to ship this model."""
        return [gate.name for gate in self.manifest.evaluation.gates if not gate.passed]

    def verify(self) -> None:
        """Compare every file with its size and SHA-256 in the manifest. This reads all files.

        Raises: ArtifactError naming the first file that is missing, altered, a link or unlisted.
        """
        listed = {MANIFEST, *self.manifest.files}
        with _reading(self.directory):
            for name, record in self.manifest.files.items():
                self._verify_file(name, record)
            for path in sorted(self.directory.rglob("*")):
                name = path.relative_to(self.directory).as_posix()
                if (path.is_symlink() or not path.is_dir()) and name not in listed:
                    raise self._broken(f"{name} is not listed in {MANIFEST}")

    def _verify_file(self, name: str, record: FileRecord) -> None:
        path = self.directory / name
        if path.resolve() != path:
            raise self._broken(f"{name} is a symbolic link")
        if not path.is_file():
            raise self._broken(f"{name} is missing")
        size = path.stat().st_size
        if size != record.bytes:
            raise self._broken(f"{name} has {size} bytes, {MANIFEST} says {record.bytes}")
        digest = _sha256(path)
        if digest != record.sha256:
            raise self._broken(f"{name} has SHA-256 {digest[:12]}…, {MANIFEST} says {record.sha256[:12]}…")

    def _broken(self, what: str) -> ArtifactError:
        return ArtifactError(f"artifact {self.directory}: {what}; {NEXT_COMMAND}")


def _sha256(path: Path) -> str:
    """Hash in large pieces, because each piece waits for the interpreter while another thread imports."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def read_artifact(artifacts_dir: Path) -> Artifact:
    """Return the artifact that `models/current` names. `verify` hashes its files later.

    Raises: ArtifactError saying what is wrong and which command makes a good one.
    """
    with _reading(artifacts_dir):
        return _read_artifact(_current(artifacts_dir.absolute() / "models"))


def _read_artifact(directory: Path) -> Artifact:
    manifest = _read_manifest(directory)
    if manifest.id != directory.name:
        raise ArtifactError(
            f"artifact {directory}: {MANIFEST} has id {manifest.id!r}, expected the directory's "
            f"name {directory.name!r}; {NEXT_COMMAND}"
        )
    if manifest.chat_template_date != TEMPLATE_DATE:
        raise ArtifactError(
            f"artifact {directory}: it was trained with the date {manifest.chat_template_date!r} in its chat "
            f"template, and this API renders {TEMPLATE_DATE!r}; {NEXT_COMMAND}, or serve it with the API "
            "that came with its trainer"
        )
    config = _read_json(directory / "config.json")
    vocab_size = config.get("vocab_size") if isinstance(config, dict) else None
    if not isinstance(vocab_size, int):
        raise ArtifactError(f"{directory / 'config.json'} states no vocab_size; {NEXT_COMMAND}")
    positions = config.get("max_position_embeddings")
    return Artifact(directory, manifest, positions if isinstance(positions, int) else None, vocab_size)


@contextlib.contextmanager
def _reading(directory: Path) -> Iterator[None]:
    """Report what the system says of a file in `directory` as an ArtifactError.

    A path that may not be read, is too long, contains a null byte or is a loop of links raises an OSError, a
    ValueError or a RuntimeError, and so does JSON that is nested too deep.
    """
    try:
        yield
    except (OSError, ValueError, RuntimeError) as error:
        raise ArtifactError(f"{directory} cannot be read ({error}); {NEXT_COMMAND}") from None


def current_id(artifacts_dir: Path) -> str | None:
    """Return the name that `models/current` points to, even if it does not exist; None without a link."""
    try:
        return (artifacts_dir / "models" / "current").readlink().name
    except OSError:
        return None


def _current(models: Path) -> Path:
    link = models / "current"
    if not link.exists():
        state = f"points to {link.readlink()}, which does not exist" if link.is_symlink() else "is missing"
        raise ArtifactError(f"{link} {state}; {NEXT_COMMAND}")
    directory = link.resolve()
    if not link.is_symlink() or directory.parent != models.resolve() or not directory.is_dir():
        raise ArtifactError(
            f"{link} must be a symbolic link to a directory next to it, and it resolves to {directory}; "
            f"{NEXT_COMMAND}"
        )
    return directory


def _read_manifest(directory: Path) -> Manifest:
    path = directory / MANIFEST
    try:
        return Manifest.model_validate(_read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(f"{path}: {where}: {first['msg']}; {NEXT_COMMAND}") from None


def _read_json(path: Path) -> Any:
    if not path.is_file():  # reading a pipe would wait for ever
        raise ArtifactError(f"{path} is missing; {NEXT_COMMAND}")
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise ArtifactError(f"{path} cannot be read ({error}); {NEXT_COMMAND}") from None
