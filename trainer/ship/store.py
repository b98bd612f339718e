"""Contract 1: find, verify and publish artifacts, and switch `current`. The only writer of `models/`.

A model directory appears whole, under its final name, after everything in it was verified; `current`
is switched last, atomically. Schema: docs/artifact.schema.json.
"""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import RunConfig
from trainer.errors import ArtifactError
from trainer.files import read_json, sha256_file
from trainer.identity import config_hash
from trainer.judge.gates import check_current
from trainer.objective import Objective
from trainer.ship.card import write_card
from trainer.ship.manifest import MANIFEST, SCHEMA_VERSION, write_manifest


@dataclass(frozen=True, slots=True)
class Artifact:
    """A directory of `models/` with a manifest of this schema."""

    directory: Path
    manifest: dict[str, Any]


def find(models: Path, identifier: str) -> Artifact | None:
    """Return an artifact, or None if it is missing, of another schema, or altered since it was made."""
    artifact = _read(models / identifier)
    return artifact if artifact and not first_altered(artifact.directory, artifact.manifest) else None


def newest(models: Path, config: RunConfig) -> Artifact:
    """Return the newest artifact of exactly this configuration, every file of it verified.

    Raises: ArtifactError if there is none, or if it was altered since it was made.
    """
    key = config_hash(config)
    artifacts = [artifact for path in models.glob(f"*/{MANIFEST}") if (artifact := _read(path.parent))]
    own = [artifact for artifact in artifacts if artifact.manifest["config_hash"] == key]
    if not own:
        raise ArtifactError(
            f"{models} has no finished artifact of {config.name} with configuration {key[:16]}: "
            "make one with `python -m trainer run`"
        )
    artifact = max(own, key=lambda artifact: str(artifact.manifest["created_at"]))
    if altered := first_altered(artifact.directory, artifact.manifest):
        raise ArtifactError(
            f"{artifact.directory / altered} is missing or altered since it was made; "
            "`python -m trainer run` makes the artifact again"
        )
    return artifact


def first_altered(directory: Path, manifest: dict[str, Any]) -> str | None:
    """Return the first file of the manifest that does not have its recorded SHA-256, or None."""
    for name, entry in manifest["files"].items():
        file = directory / name
        if not file.is_file() or sha256_file(file) != entry["sha256"]:
            return str(name)
    return None


def publish(
    merged: Path,
    destination: Path,
    manifest: dict[str, Any],
    objective: Objective,
    licence_files: Sequence[Path],
) -> Artifact:
    """Add card, licences and manifest to the verified directory and move it to its final name."""
    for file in licence_files:
        shutil.copy(file, merged / file.name)
    write_card(merged, manifest, objective)
    written = write_manifest(merged, manifest)
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        shutil.rmtree(destination)  # `find` did not accept it
    merged.rename(destination)
    return Artifact(destination, written)


def make_current(artifact: Artifact, ship_despite: bool) -> None:
    """Point `models/current` at a verified artifact, atomically and by a relative link.

    Raises: GateError if it failed its gates, is not current yet, and `ship_despite` is not set.
    """
    models, identifier = artifact.directory.parent, artifact.directory.name
    link = models / "current"
    check_current(artifact.manifest, ship_despite, link.resolve() == artifact.directory.resolve())
    scratch = models / f".current.{os.getpid()}"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(identifier)
    scratch.replace(link)


def _read(directory: Path) -> Artifact | None:
    """Return what may be an artifact: a manifest of this schema, in a directory with the manifest's id."""
    manifest = read_json(directory / MANIFEST)
    expected = {"id": directory.name, "schema_version": SCHEMA_VERSION}
    if not isinstance(manifest, dict) or any(manifest.get(key) != value for key, value in expected.items()):
        return None
    return Artifact(directory, manifest)
