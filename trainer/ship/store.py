"""Contract 1: the only writer of `artifacts/models/`.

A model directory appears whole, under its final name, after everything in it was verified; `current`
is switched last, atomically. Schema: docs/artifact.schema.json.
"""

import datetime
import importlib.metadata
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.base_model import BaseModel
from trainer.config import RunConfig, public_source
from trainer.data.prepare import Prepared
from trainer.data.tokenize import DATE
from trainer.device import describe_hardware
from trainer.files import read_json, sha256_file, write_json
from trainer.fit.choose.intervals import score_interval
from trainer.fit.run.arm import Run
from trainer.identity import config_hash, made_by
from trainer.objective import Objective
from trainer.ship.card import write_card

SCHEMA_VERSION = 1
TRAINING = ("steps", "best_step", "train_seconds", "tokens_per_second")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def find_finished(models: Path, identifier: str) -> Path | None:
    """The artifact's directory if it is of this schema and every file is there with its recorded SHA-256."""
    directory = models / identifier
    manifest = read_json(directory / "manifest.json")
    expected = {"id": identifier, "schema_version": SCHEMA_VERSION}
    if not manifest or any(manifest.get(key) != value for key, value in expected.items()):
        return None
    return None if first_altered(directory, manifest) else directory


def first_altered(directory: Path, manifest: dict[str, Any]) -> str | None:
    """The first file of the manifest that is not there with its recorded SHA-256; None if all are."""
    for name, entry in manifest["files"].items():
        file = directory / name
        if not file.is_file() or sha256_file(file) != entry["sha256"]:
            return str(name)
    return None


def build_manifest(
    identifier: str,
    config: RunConfig,
    base: BaseModel,
    prepared: Prepared,
    winner: Run,
    selection: dict[str, Any],
    merge_check: dict[str, Any],
    evaluation: dict[str, Any],
) -> dict[str, Any]:
    """All of the manifest but `files`, which only the finished directory can tell."""
    report = prepared.report
    data = {
        "source": public_source(config.data.source),
        "fingerprint": report["fingerprint"],
        "rows": report["rows"],
    }
    if config.data.source == "stdlib-docs":
        data["python_version"] = report["python_version"]
    return {
        "schema_version": SCHEMA_VERSION,
        "id": identifier,
        "name": config.name,
        "description": config.description,
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_model": {
            "id": config.base.id,
            "revision": base.revision,
            "licence": config.base.licence,
            "weights_sha256": base.weights_sha256,
        },
        "adapter": {
            "rank": winner.arm.setting.rank,
            "alpha": config.lora.alpha_at(winner.arm.setting.rank),
            "target_modules": list(config.lora.target_modules),
            "learning_rate": winner.arm.setting.learning_rate,
        },
        "training": {
            **{key: winner.record[key] for key in TRAINING},
            "seed": winner.arm.seed,
            "engine": config.train.engine,
            "dtype": config.train.dtype,
            "quantization": config.train.quantization,
            "validation_loss": score_interval(winner.validation).as_dict(),
        },
        "data": data,
        "chat_template_date": DATE,
        "config_hash": config_hash(config),
        "seed": config.seed,
        "packages": {**{name: importlib.metadata.version(name) for name in PACKAGES}, **made_by()},
        "hardware": describe_hardware(),
        "selection": {key: value for key, value in selection.items() if key != "arms"},
        "merge_check": merge_check,
        "evaluation": evaluation,
    }


def publish(
    merged: Path,
    destination: Path,
    manifest: dict[str, Any],
    objective: Objective,
    licence_files: Sequence[Path],
) -> None:
    """Add card, licences and manifest to the verified directory and move it to its final name."""
    for file in licence_files:
        shutil.copy(file, merged / file.name)
    write_card(merged, manifest, objective)
    write_manifest(merged, manifest)
    destination.parent.mkdir(parents=True, exist_ok=True)
    if destination.exists():
        shutil.rmtree(destination)  # find_finished has said that it is broken
    merged.rename(destination)


def write_manifest(directory: Path, manifest: dict[str, Any]) -> None:
    """Write manifest.json with the size and hash of every other file that is in the directory.

    All become readable to everyone: safetensors writes files that only their owner may read, and a
    service in a container runs as another user.
    """
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    files = {
        str(file.relative_to(directory)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != "manifest.json"
    }
    write_json(directory / "manifest.json", {**manifest, "files": files})


def make_current(models: Path, identifier: str) -> None:
    """Point `models/current` at the artifact, atomically and by a relative link."""
    scratch = models / f".current.{os.getpid()}"
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(identifier)
    scratch.replace(models / "current")
