"""An artifact of random weights in the shape of Llama 3.2 3B, to measure speed where no model is.

    python bench/random_model.py --tokenizer DIRECTORY --artifacts /tmp/random

DIRECTORY: a tokenizer with its chat template; random text is only as long as a model's if every id of
the vocabulary is a token of it. Manifest and card say what it is, as a gate that failed. Runs where torch and
transformers are; on a GPU in half a minute.
"""

import argparse
import hashlib
import importlib.metadata
import json
import platform
import shutil
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ID = "random-llama-3b"
WHAT = "Random weights in the shape of Llama 3.2 3B: for measuring speed, says nothing."
SHAPE = {
    "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 28, "num_attention_heads": 24,
    "num_key_value_heads": 8, "head_dim": 128, "vocab_size": 128_256, "max_position_embeddings": 131_072,
    "tie_word_embeddings": True,
}  # fmt: skip
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write(tokenizer: Path, artifacts: Path, **shape: int) -> Path:
    """The artifact's directory, which `models/current` then names. shape: what differs from SHAPE."""
    directory = artifacts / "models" / ID
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    for name in TOKENIZER_FILES:
        shutil.copyfile(tokenizer / name, directory / name)
    _write_weights(directory, {**SHAPE, **shape})
    (directory / "README.md").write_text(f"# {ID}\n{WHAT}\n")
    (directory / "manifest.json").write_text(json.dumps(_manifest(directory), indent=1) + "\n")
    current = directory.parent / "current"
    current.unlink(missing_ok=True)
    current.symlink_to(ID)
    return directory


def _write_weights(directory: Path, shape: dict[str, Any]) -> None:
    import torch
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    config = LlamaConfig(**shape, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        LlamaForCausalLM(config).save_pretrained(directory)
    torch.set_default_dtype(torch.float32)


def _manifest(directory: Path) -> dict[str, Any]:
    gate = {"name": "random weights", "passed": False, "detail": WHAT}
    nothing: dict[str, Any] = {}
    return {
        "schema_version": 1, "id": ID, "name": ID, "description": WHAT,
        "created_at": datetime.now(UTC).isoformat(), "config_hash": "0" * 64, "seed": 0,
        "base_model": nothing, "adapter": nothing, "training": nothing, "data": nothing, "selection": nothing,
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "hardware": {"machine": platform.machine()},
        "merge_check": {"positions": 1, "fp32": nothing, "shipped": nothing, "passed": True},
        "evaluation": {
            "passed": False, "override": "--ship-despite-failed-gates", "metrics": [nothing], "gates": [gate],
        },
        "files": {path.name: _record(path) for path in sorted(directory.iterdir())},
    }  # fmt: skip


def _record(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"sha256": hashlib.file_digest(file, "sha256").hexdigest(), "bytes": path.stat().st_size}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--artifacts", type=Path, required=True)
    options = parser.parse_args()
    print(write(options.tokenizer, options.artifacts))
