"""Make an artifact with random weights in the shape of Llama 3.2 3B, to measure speed without a model.

    python bench/random_model.py --tokenizer DIRECTORY --artifacts /tmp/random

DIRECTORY holds a tokenizer with its chat template. Random text is only as long as a model's if every id of
the vocabulary is one of the tokenizer's tokens. The manifest and the card say that the weights are random,
as a failed gate. The program needs torch and transformers; on a GPU it takes half a minute.
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
    """Make the artifact and point `models/current` to it; return its directory. shape: changes to SHAPE."""
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
    """Return a manifest with the smallest figures that contract 1 allows; nothing was measured."""
    interval = {"value": 0.0, "low": 0.0, "high": 0.0}
    agreement = {"dtype": "bfloat16", "max_logit_difference": 0.0, "top1_agreement": 0.0}
    metric = {"name": "none", "split": "none", "unit": "none", "n": 1}
    none = "0" * 64
    return {
        "schema_version": 1, "id": ID, "name": ID, "description": WHAT,
        "created_at": datetime.now(UTC).isoformat(), "config_hash": none, "seed": 0,
        "base_model": {"id": "random", "revision": "none", "licence": "none", "weights_sha256": none},
        "adapter": {"rank": 1, "alpha": 1, "target_modules": ["none"], "learning_rate": 1.0},
        "training": {
            "steps": 1, "best_step": 1, "seed": 0, "engine": "none", "dtype": "bfloat16",
            "quantization": "none", "train_seconds": 0.0, "tokens_per_second": None,
            "validation_loss": interval,
        },
        "data": {"source": "none", "fingerprint": none, "rows": {}},
        "packages": {name: importlib.metadata.version(name) for name in ("torch", "transformers")},
        "hardware": {"processor": platform.machine(), "cores": 1, "memory_gib": 0, "accelerator": None},
        "selection": {
            "metric": "none", "winner": "none", "separable": False, "reason": WHAT, "settings": [{}],
        },
        "merge_check": {"positions": 1, "fp32": agreement, "shipped": agreement, "passed": True},
        "evaluation": {
            "passed": False, "override": "--ship-despite-failed-gates",
            "metrics": [metric | dict.fromkeys(("base", "tuned", "difference"), interval)],
            "gates": [{"name": "random weights", "passed": False, "detail": WHAT}],
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
