"""The verb `export`: write a finished artifact in the formats of other servers, `exports/<id>/<format>/`.

Every export carries a card, the artifact's licence files, and its manifest with an `export` entry that
describes how the export was made. The FP8 export is a model directory under contract 1, which the API can
serve. A finished export of the same artifact is kept if no file of it was altered.
"""

import datetime
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.base_model import LICENCE_FILES, load_tokenizer
from trainer.config import EXPORT_FORMATS, RunConfig
from trainer.errors import ArtifactError
from trainer.files import only_writer, read_json, require_room, sha256_file, whole_directory
from trainer.progress import Stages, say
from trainer.ship.adapter import USE_GGUF, adapter_of, write_adapter, write_adapter_card
from trainer.ship.fp8 import write_fp8
from trainer.ship.gguf_check import check_gguf
from trainer.ship.gguf_file import Matrices, write_gguf
from trainer.ship.gguf_lora import write_gguf_lora
from trainer.ship.manifest import MANIFEST, write_manifest
from trainer.ship.merge import weight_bytes
from trainer.ship.modelfile import modelfile
from trainer.ship.stops import stop_tokens
from trainer.ship.store import Artifact, first_altered, newest

METHODS = {
    "gguf-f16": "matrices in float16, vectors in float32",
    "gguf-q8_0": "matrices in Q8_0 (8 bits, one scale for 32 weights), vectors in float32",
    "gguf-q4_k_m": "llama.cpp's mix Q4_K_M: matrices in Q4_K, the output and half of the value and last "
    "projections in Q6_K (Q5_0 and Q8_0 where rows do not fill blocks of 256), vectors in float32",
    "gguf-lora": "the adapter alone, in float32",
    "adapter": "the adapter alone, as PEFT wrote it",
    "fp8": "linear weights in float8_e4m3fn, one fixed scale an output channel; activations in float8, "
    "one scale a token, at run time; embeddings, norms and output as in the artifact; compressed-tensors",
}
MATRICES: dict[str, Matrices] = {"gguf-f16": "f16", "gguf-q8_0": "q8_0", "gguf-q4_k_m": "q4_k_m"}


def export(config: RunConfig, artifacts: Path, formats: Sequence[str] = (), check: bool = False) -> None:
    """Write every format that does not exist yet. formats: none for all that this model can have.

    check: compare what llama.cpp answers from each GGUF with the artifact.

    Raises: ArtifactError if no complete artifact exists, or if it cannot have a format that was asked for.
    """
    found = newest(artifacts / "models", config)
    stages = Stages(tuple(formats or EXPORT_FORMATS))
    refused = {}
    for name in formats or EXPORT_FORMATS:
        try:
            _export(config, artifacts, found, name, stages)
        except ArtifactError as error:
            if formats:
                raise
            refused[name] = str(error)
            continue
        if check and name.startswith("gguf"):
            _check(config, artifacts, found, name)
    for name, reason in refused.items():
        say(f"  not written: {name}: {reason}")


def directory_of(artifacts: Path, artifact: Path, name: str) -> Path:
    return artifacts / "exports" / artifact.name / name


def exported(artifacts: Path, artifact: Artifact, name: str) -> Artifact:
    """Return a finished export of an artifact. Raises: ArtifactError if there is none that is whole."""
    directory = directory_of(artifacts, artifact.directory, name)
    manifest = read_json(directory / MANIFEST)
    if not manifest or not _is_finished(directory, entry_of(artifact.directory, name)):
        raise ArtifactError(
            f"{directory} is not a finished export of {artifact.directory.name}: make it with "
            f"`export --format {name}`"
        )
    return Artifact(directory, manifest)


def entry_of(artifact: Path, name: str) -> dict[str, str]:
    return {
        "format": name,
        "artifact": artifact.name,
        "artifact_manifest_sha256": sha256_file(artifact / MANIFEST),
        "method": METHODS[name],
    }


def _export(config: RunConfig, artifacts: Path, found: Artifact, name: str, stages: Stages) -> None:
    artifact = found.directory
    directory = directory_of(artifacts, artifact, name)
    entry = entry_of(artifact, name)
    with only_writer(directory):
        if _is_finished(directory, entry):
            stages.skipped(name, f"{directory} is finished")
            return
        with stages.stage(name, f"write {directory}"):
            if name not in ("adapter", "gguf-lora"):
                require_room(directory, weight_bytes(artifact, "bfloat16"), f"the {name} export")
            with whole_directory(directory) as scratch:
                _write(config, artifacts, found, name, scratch)
                write_manifest(scratch, _export_manifest(found.manifest, entry))


def _is_finished(directory: Path, entry: dict[str, str]) -> bool:
    manifest = read_json(directory / MANIFEST)
    return bool(manifest and manifest["export"] == entry and not first_altered(directory, manifest))


def _write(config: RunConfig, artifacts: Path, found: Artifact, name: str, destination: Path) -> None:
    artifact, manifest = found.directory, found.manifest
    if name == "fp8":
        write_fp8(artifact, destination)
        return
    licence = manifest["base_model"]["licence"]
    for pattern in LICENCE_FILES if name not in MATRICES else ("README.md", *LICENCE_FILES):
        for path in artifact.glob(pattern):
            shutil.copy(path, destination)
    if name in MATRICES:
        file = destination / f"{manifest['name']}-{MATRICES[name]}.gguf"
        write_gguf(artifact, MATRICES[name], manifest["name"], licence, file)
        _write_modelfile(artifact, file, licence)
        return
    adapter, base = adapter_of(config, artifacts, artifact, manifest)
    if name == "adapter":
        write_adapter(config, adapter, artifact, manifest, destination)
        return
    file = destination / f"{manifest['name']}-lora.gguf"
    write_gguf_lora(adapter, base, manifest["name"], manifest["base_model"]["id"], licence, file)
    write_adapter_card(config, artifact, manifest, USE_GGUF, destination)


def _write_modelfile(artifact: Path, gguf: Path, licence: str) -> None:
    """Write Ollama's Modelfile beside a GGUF, or print why there is none: llama.cpp does not need it."""
    tokenizer = load_tokenizer(artifact)
    try:
        text = modelfile(tokenizer, gguf.name, stop_tokens(artifact, tokenizer), licence)
    except ArtifactError as error:
        say(f"  no Modelfile for Ollama: {error}")
        return
    (gguf.parent / "Modelfile").write_text(text, encoding="utf-8")


def _check(config: RunConfig, artifacts: Path, found: Artifact, name: str) -> None:
    """Print how llama.cpp's answers from an export compare with the artifact's. Raises: GateError."""
    artifact = found.directory
    (file,) = directory_of(artifacts, artifact, name).glob("*.gguf")
    if name == "gguf-lora":
        _, base = adapter_of(config, artifacts, artifact, found.manifest)
        with tempfile.TemporaryDirectory() as folder:
            whole = Path(folder) / "base.gguf"
            write_gguf(base, "f16", "base", found.manifest["base_model"]["licence"], whole)
            compared = check_gguf(name, whole, artifact, file)
    else:
        compared = check_gguf(name, file, artifact)
    say(
        f"  {name} in llama.cpp: {compared.same} of the first {compared.count} tokens of {compared.prompts} "
        f"greedy answers are the artifact's in float32; where answers part, the artifact prefers its own "
        f"token by at most {compared.gap:.3f} nats"
    )


def _export_manifest(manifest: dict[str, Any], entry: dict[str, str]) -> dict[str, Any]:
    """Return the artifact's manifest with its own id, which is the directory's name where it is served."""
    now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
    return {
        **manifest,
        "id": f"{manifest['id']}-{entry['format']}",
        "created_at": now,
        "export": entry,
    }
