"""The unsloth engine: Unsloth's kernels and checkpointing, on CUDA; on a CPU for comparison only.

Unsloth patches transformers, TRL and PEFT when it is imported, so this module must be imported before
them. The command line does so for `arm`, which runs in its own process. The adapter is plain PEFT.
"""

import atexit
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

# Unsloth writes generated code; by default into the working directory.
os.environ["UNSLOTH_COMPILE_LOCATION"] = tempfile.mkdtemp(prefix="unsloth-")
os.environ["UNSLOTH_DISABLE_STATISTICS"] = "1"
os.environ["HF_HUB_OFFLINE"] = "1"  # the base is a local directory by now

import torch
from unsloth import FastLanguageModel

from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig
from trainer.engines.adapters import fill, reach, skeleton
from trainer.errors import ArmError

atexit.register(shutil.rmtree, os.environ["UNSLOTH_COMPILE_LOCATION"], ignore_errors=True)


def load(base: Path, settings: TrainConfig, lora: LoraConfig, rank: int, seed: int, device: str) -> Any:
    """Return the base, frozen, with a new adapter of `rank`, whose first weights `seed` alone decides.

    Raises: ArmError if Unsloth took another device or precision than the configuration says.
    """
    quantize = settings.quantization == "4bit"
    checkpointing = "unsloth" if settings.gradient_checkpointing else False
    model, _ = FastLanguageModel.from_pretrained(
        str(base),
        max_seq_length=settings.row_tokens,
        dtype=getattr(torch, settings.dtype),
        load_in_4bit=quantize,
        use_gradient_checkpointing=checkpointing,
        local_files_only=True,
    )
    _check(model, device, quantize)
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=rank,
        lora_alpha=lora.alpha_at(rank),
        lora_dropout=lora.dropout,
        target_modules=reach(skeleton(base), lora, rank).names,
        bias="none",
        use_rslora=lora.rslora,
        use_gradient_checkpointing=checkpointing,
        random_state=seed,
    )
    if lora.adapter:
        fill(adapted, lora.adapter)
    if settings.dtype == "float32":
        # On a GPU Unsloth would autocast to bfloat16 by itself; this value is its name for no autocast.
        os.environ["UNSLOTH_MIXED_PRECISION"] = "bfloat16"
    return adapted


def compute_loss(model: Any, inputs: dict[str, Any], target_tokens: Any) -> Any:
    """Return the sum of NLL over the targets of one packed row, divided by `target_tokens`.

    Unsloth's forward ignores a tensor of positions to keep; given labels, it computes the loss in chunks
    that fit the free memory and never holds all logits.
    """
    row = {name: inputs[name] for name in ("input_ids", "labels", "position_ids")}
    return model(**row, num_items_in_batch=target_tokens, use_cache=False).loss


def _check(model: Any, device: str, quantize: bool) -> None:
    """Refuse what Unsloth chose by itself: it only prints that, and a run must be as configured."""
    if model.device.type != device:
        raise ArmError(
            f"unsloth trains on {model.device.type} on this machine and train.device asks for {device}; "
            "set train.engine to plain"
        )
    if quantize and not getattr(model, "is_loaded_in_4bit", False):
        raise ArmError(
            "unsloth could not load the base in 4 bits on this machine; set train.engine to plain, or "
            "train.quantization to none"
        )
