"""Find the adapter that an artifact was merged from, and write it as a PEFT directory for other people.

The sum proves that it is the one: base + adapter must be the artifact's weights, up to their rounding.
"""

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import ModelCard
from safetensors import safe_open

from trainer import base_model
from trainer.adapter_file import CONFIG, WEIGHTS
from trainer.config import RunConfig
from trainer.errors import ArtifactError
from trainer.files import read_json, write_json
from trainer.fit.arm import Arm, Setting, run_name
from trainer.objective import objective_of
from trainer.ship.card import card_data

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
PREFIX = "base_model.model."
EQUAL = 0.99  # of the weights in half precision; another adapter moves more of them
COMMIT = re.compile("[0-9a-f]{40}")

BODY = """# {name}: the adapter
{description}

This is the LoRA adapter (PEFT) that finechat trained on [{base}](https://huggingface.co/{base}) at
`{revision}`, weights `{weights}`. The results above are of the merged model.
{use}
## Licence
This adapter has the licence of its base model: `{licence}`.
"""
USE_PEFT = """
```python
from peft import AutoPeftModelForCausalLM
from transformers import AutoTokenizer

model = AutoPeftModelForCausalLM.from_pretrained("{name}")  # this directory, or OWNER/{name}
tokenizer = AutoTokenizer.from_pretrained("{name}")
```
"""
USE_GGUF = """
    llama-server --model BASE.gguf --lora {file}

BASE.gguf is the base model in GGUF, in any of llama.cpp's formats.
"""


def adapter_of(
    config: RunConfig, artifacts: Path, artifact: Path, manifest: dict[str, Any]
) -> tuple[Path, Path]:
    """Return the directories of the artifact's adapter and of its base.

    Raises: ArtifactError if the artifact has no adapter, or if adapter or base are no longer on this machine.
    """
    if not manifest["adapter"]:
        raise ArtifactError("the whole model was trained, so there is no adapter")
    base = base_model.local(config.base, artifacts)
    if base is None:
        raise ArtifactError(f"the base {config.base.id} is not on this machine; `prepare` gets it")
    of = manifest["adapter"]
    arm = Arm(Setting(of["rank"], of["learning_rate"]), manifest["training"]["seed"])
    pattern = f"{arm.name}-*/{run_name(config, None)}/adapter/{WEIGHTS}"
    found = sorted((artifacts / "runs").glob(pattern))
    for weights in found:
        if _is_sum(base.directory, weights.parent, artifact):
            return weights.parent, base.directory
    raise ArtifactError(
        f"{artifacts / 'runs'} does not hold the adapter of {manifest['id']} any more: {len(found)} adapters "
        f"of {arm.name} are there, and with none of them base + adapter is the artifact"
    )


def write_adapter(
    config: RunConfig, adapter: Path, artifact: Path, manifest: dict[str, Any], destination: Path
) -> None:
    """Write a PEFT directory that names its base, with the artifact's tokenizer and a card."""
    base = manifest["base_model"]
    settings = json.loads((adapter / CONFIG).read_text())
    settings["base_model_name_or_path"] = base["id"]
    settings["revision"] = base["revision"] if COMMIT.fullmatch(base["revision"]) else None
    write_json(destination / CONFIG, settings)
    shutil.copy(adapter / WEIGHTS, destination)
    for name in TOKENIZER_FILES:
        if (artifact / name).exists():
            shutil.copy(artifact / name, destination)
    write_adapter_card(config, artifact, manifest, USE_PEFT, destination)


def write_adapter_card(
    config: RunConfig, artifact: Path, manifest: dict[str, Any], use: str, destination: Path
) -> None:
    """Write README.md: the artifact's metadata as of an adapter, and how to use it."""
    licences = sorted(file.name for file in artifact.glob("LICENSE*"))
    front = card_data(manifest, objective_of(config), licences[0] if licences else None)
    front.library_name = "peft" if use == USE_PEFT else "gguf"
    front["base_model_relation"] = "adapter"
    base, name = manifest["base_model"], manifest["name"]
    file = next((file.name for file in destination.glob("*.gguf")), "")
    body = BODY.format(
        name=name,
        description=manifest["description"],
        base=base["id"],
        revision=base["revision"],
        weights=base["weights_sha256"][:16],
        licence=base["licence"],
        use=use.format(name=name, file=file),
    )
    ModelCard(f"---\n{front.to_yaml()}\n---\n{body}").save(destination / "README.md")


def scale_of(settings: dict[str, Any]) -> float:
    """Return by how much PEFT multiplies B·A."""
    rank = settings["r"]
    return float(settings["lora_alpha"] / (rank**0.5 if settings.get("use_rslora") else rank))


def pairs(adapter: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Yield each adapted weight's name, A (rank, in), B (out, rank), and DoRA's lengths (out,) or None."""
    with safe_open(adapter / WEIGHTS, "pt") as opened:
        names = set(opened.keys())
        for name in sorted(name for name in names if name.endswith(".lora_A.weight")):
            b, lengths = (
                name.replace(".lora_A.", f".{part}.") for part in ("lora_B", "lora_magnitude_vector")
            )
            lengths = lengths if lengths in names else lengths.removesuffix(".weight")
            yield (
                name.removeprefix(PREFIX).replace(".lora_A.", "."),
                opened.get_tensor(name).float(),
                opened.get_tensor(b).float(),
                opened.get_tensor(lengths).float() if lengths in names else None,
            )


def _is_sum(base: Path, adapter: Path, artifact: Path) -> bool:
    """Return whether the adapted weights of the artifact are the base's plus the adapter's."""
    settings = read_json(adapter / CONFIG)
    if settings is None:
        return False
    scale, before, after, compared = scale_of(settings), _Weights(base), _Weights(artifact), False
    for name, a, b, lengths in pairs(adapter):
        if name not in before.files or name not in after.files:
            continue  # a parameter of fused experts, which is no matrix
        shipped, merged = after[name], before[name].float() + scale * (b @ a)
        if merged.shape != shipped.shape:
            return False
        if lengths is not None:
            merged *= (lengths / merged.norm(dim=1))[:, None]
        if shipped.dtype == torch.float32:
            same = torch.isclose(merged, shipped, rtol=1e-4, atol=1e-6)
        else:
            same = merged.to(shipped.dtype) == shipped
        if same.float().mean() < EQUAL:
            return False
        compared = True
    return compared


class _Weights:
    """The tensors of a model directory by name."""

    def __init__(self, directory: Path) -> None:
        self.files: dict[str, Path] = {}
        for file in directory.glob("*.safetensors"):
            with safe_open(file, "pt") as opened:
                self.files.update(dict.fromkeys(opened.keys(), file))

    def __getitem__(self, name: str) -> Any:
        with safe_open(self.files[name], "pt") as opened:
            return opened.get_tensor(name)
