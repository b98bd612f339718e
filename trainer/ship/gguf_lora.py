"""Write a LoRA adapter as GGUF, which llama.cpp adds to a base model in any of its formats.

llama.cpp adds alpha / rank times B·A to a weight. Matrices are in float32: they are small, and B's are near
zero.
"""

from pathlib import Path
from typing import Any

import gguf
import numpy as np
from transformers import AutoConfig

from trainer.adapter_file import CONFIG
from trainer.errors import ArtifactError
from trainer.files import read_json
from trainer.ship.adapter import pairs, scale_of
from trainer.ship.gguf_families import family_of
from trainer.ship.gguf_file import arranged, gguf_name


def write_gguf_lora(
    adapter: Path, model: Path, name: str, base: str, licence: str, destination: Path
) -> None:
    """Write `destination`. model: a directory with the config of the base. Raises: ArtifactError."""
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    family, settings = family_of(config), read_json(adapter / CONFIG)
    _require_plain(settings)
    writer = gguf.GGUFWriter(destination, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_type(gguf.GGUFType.ADAPTER)
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_base_model_count(1)
    writer.add_base_model_name(0, base)
    writer.add_base_model_repo_url(0, f"https://huggingface.co/{base}")
    writer.add_file_type(gguf.LlamaFileType.ALL_F32)
    writer.add_string(gguf.Keys.Adapter.TYPE, "lora")
    writer.add_float32(gguf.Keys.Adapter.LORA_ALPHA, scale_of(settings) * settings["r"])
    for weight, a, b, _ in pairs(adapter):
        _require_place(config, weight)
        wanted = gguf_name(family, config, weight)
        writer.add_tensor(f"{wanted}.lora_a", np.ascontiguousarray(a.numpy()))
        writer.add_tensor(f"{wanted}.lora_b", arranged(family, config, weight, b.numpy()))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _require_plain(settings: dict[str, Any]) -> None:
    """Raise ArtifactError for an adapter that does more than add B·A."""
    known = ("use_dora", "modules_to_save", "rank_pattern", "alpha_pattern", "target_parameters")
    more = [key for key in known if settings.get(key)]
    if settings.get("bias", "none") != "none":
        more.append("bias")
    if more:
        raise ArtifactError(f"llama.cpp adds LoRA alone, and the adapter has {', '.join(more)}")


def _require_place(config: Any, weight: str) -> None:
    """Raise ArtifactError for an adapter on embeddings, or on an output that is tied to them."""
    if "embed_tokens" in weight or ("lm_head" in weight and config.tie_word_embeddings):
        raise ArtifactError(f"llama.cpp adds no adapter to {weight}")
