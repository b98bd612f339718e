"""Write the manifest of an artifact: what made it, how it was measured, and the hash of every file."""

import datetime
import importlib.metadata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.adapter_file import WEIGHTS
from trainer.base_model import BaseModel
from trainer.config import RunConfig
from trainer.config_data import describe_sources
from trainer.config_lora import LoraConfig
from trainer.data.chat_template import DATE
from trainer.data.prepare import Prepared
from trainer.device import describe_hardware
from trainer.engines.adapters import reach, skeleton
from trainer.files import sha256_file, write_json
from trainer.fit.arm import Run, Setting
from trainer.fit.choose.intervals import score_interval
from trainer.identity import config_hash, made_by, uses_stdlib_docs

MANIFEST = "manifest.json"
SCHEMA_VERSION = 1
TRAINING = ("steps", "best_step", "train_seconds", "tokens_per_second")
PACKAGES = ("torch", "transformers", "trl", "peft", "accelerate", "datasets", "tokenizers")


def build_manifest(
    identifier: str,
    config: RunConfig,
    base: BaseModel,
    prepared: Prepared,
    winner: Run,
    selection: dict[str, Any],
    merge_check: dict[str, Any],
    evaluation: dict[str, Any],
    examples: Sequence[str],
) -> dict[str, Any]:
    """Return the manifest without `files`, which `write_manifest` adds once the directory is complete.

    examples: prompts for a page to offer, where the configuration has none.
    """
    return {
        "schema_version": SCHEMA_VERSION,
        "id": identifier,
        "name": config.name,
        "description": config.description,
        "examples": list(config.examples or examples),
        "created_at": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "base_model": {
            "id": config.base.id,
            "revision": base.revision,
            "licence": config.base.licence,
            "weights_sha256": base.weights_sha256,
        },
        "adapter": _adapter(config.lora, base.directory, winner.arm.setting) if config.lora else None,
        "training": _training(config, winner),
        "data": _data(config, prepared),
        "chat_template_date": DATE,
        "config_hash": config_hash(config),
        "seed": config.seed,
        "packages": {**{name: importlib.metadata.version(name) for name in PACKAGES}, **made_by()},
        "hardware": describe_hardware(),
        "selection": {key: value for key, value in selection.items() if key != "arms"},
        "merge_check": merge_check,
        "evaluation": evaluation,
    }


def _adapter(lora: LoraConfig, base: Path, setting: Setting) -> dict[str, Any]:
    rank = setting.size
    found = reach(skeleton(base), lora, rank)
    return {
        "rank": rank,
        "alpha": lora.alpha_at(rank),
        "scaling": lora.scaling_at(rank),
        "rslora": lora.rslora,
        "dora": lora.dora,
        "target_modules": found.names,
        "modules_to_save": list(lora.modules_to_save),
        "without_adapter": dict(found.without),
        "learning_rate": setting.learning_rate,
        **({"started_from": _started_from(lora.adapter)} if lora.adapter else {}),
    }


def _started_from(adapter: Path) -> dict[str, str]:
    return {"name": adapter.name, "weights_sha256": sha256_file(adapter / WEIGHTS)}


def _training(config: RunConfig, winner: Run) -> dict[str, Any]:
    return {
        **{key: winner.record[key] for key in TRAINING},
        "learning_rate": winner.arm.setting.learning_rate,
        "seed": winner.arm.seed,
        "engine": config.train.engine,
        "dtype": config.train.dtype,
        "quantization": config.train.quantization,
        "validation_loss": score_interval(winner.validation).as_dict(),
    }


def _data(config: RunConfig, prepared: Prepared) -> dict[str, Any]:
    report = prepared.report
    data = {
        "source": describe_sources(config.data, public=True, commits=report.get("commits")),
        "fingerprint": report["fingerprint"],
        "rows": report["rows"],
    }
    if uses_stdlib_docs(config.data):
        data["python_version"] = report["python_version"]
    return data


def write_manifest(directory: Path, manifest: dict[str, Any]) -> dict[str, Any]:
    """Write manifest.json with the size and hash of every other file of the directory, and return it.

    Make all files readable to everyone: safetensors writes files that only their owner may read, and a
    service in a container runs as another user.
    """
    for file in directory.rglob("*"):
        if file.is_file():
            file.chmod(0o644)
    files = {
        str(file.relative_to(directory)): {"sha256": sha256_file(file), "bytes": file.stat().st_size}
        for file in sorted(directory.rglob("*"))
        if file.is_file() and file.name != MANIFEST
    }
    whole = {**manifest, "files": files}
    write_json(directory / MANIFEST, whole)
    return whole
