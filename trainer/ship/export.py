"""The verb `export`: write a finished artifact in the formats of other servers, `exports/<id>/<format>/`.

Every export carries the artifact's card and licence files, and its manifest with an `export` entry that
describes how the export was made. The FP8 export is a model directory under contract 1, which the API can
serve. A finished export of the same artifact is kept if no file of it was altered.
"""

import datetime
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.base_model import LICENCE_FILES, load_tokenizer
from trainer.config import RunConfig
from trainer.files import only_writer, read_json, require_room, sha256_file, whole_directory
from trainer.progress import Stages
from trainer.ship.fp8 import write_fp8
from trainer.ship.gguf_file import Matrices, write_gguf
from trainer.ship.manifest import MANIFEST, write_manifest
from trainer.ship.merge import weight_bytes
from trainer.ship.modelfile import modelfile
from trainer.ship.stops import stop_tokens
from trainer.ship.store import first_altered, newest

METHODS = {
    "gguf-f16": "matrices in float16, vectors in float32",
    "gguf-q8_0": "matrices in Q8_0 (8 bits, one scale for 32 weights), vectors in float32",
    "fp8": "linear weights in float8_e4m3fn, one fixed scale an output channel; activations in float8, "
    "one scale a token, at run time; embeddings, norms and output as in the artifact; compressed-tensors",
}


def export(config: RunConfig, artifacts: Path, formats: Sequence[str]) -> None:
    """Write every format that does not exist yet. Raises: ArtifactError if no complete artifact exists."""
    found = newest(artifacts / "models", config)
    artifact, manifest = found.directory, found.manifest
    stages = Stages(tuple(formats))
    for name in formats:
        directory = artifacts / "exports" / artifact.name / name
        entry = {
            "format": name,
            "artifact": artifact.name,
            "artifact_manifest_sha256": sha256_file(artifact / MANIFEST),
            "method": METHODS[name],
        }
        with only_writer(directory):
            if _is_finished(directory, entry):
                stages.skipped(name, f"{directory} is finished")
                continue
            with stages.stage(name, f"write {directory}"):
                require_room(directory, weight_bytes(artifact, "bfloat16"), f"the {name} export")
                with whole_directory(directory) as scratch:
                    _write(artifact, manifest, name, scratch)
                    write_manifest(scratch, _export_manifest(manifest, entry))


def _is_finished(directory: Path, entry: dict[str, str]) -> bool:
    manifest = read_json(directory / MANIFEST)
    return bool(manifest and manifest["export"] == entry and not first_altered(directory, manifest))


def _write(artifact: Path, manifest: dict[str, Any], name: str, destination: Path) -> None:
    if name == "fp8":
        write_fp8(artifact, destination)
        return
    matrices: Matrices = "f16" if name == "gguf-f16" else "q8_0"
    licence = manifest["base_model"]["licence"]
    file = destination / f"{manifest['name']}-{matrices}.gguf"
    write_gguf(artifact, matrices, manifest["name"], licence, file)
    tokenizer = load_tokenizer(artifact)
    stops = stop_tokens(artifact, tokenizer)
    (destination / "Modelfile").write_text(modelfile(tokenizer, file.name, stops, licence))
    for pattern in ("README.md", *LICENCE_FILES):
        for path in artifact.glob(pattern):
            shutil.copy(path, destination)


def _export_manifest(manifest: dict[str, Any], entry: dict[str, str]) -> dict[str, Any]:
    """Return the artifact's manifest with its own id, which is the directory's name where it is served."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        **manifest,
        "id": f"{manifest['id']}-{entry['format']}",
        "created_at": now,
        "export": entry,
    }
