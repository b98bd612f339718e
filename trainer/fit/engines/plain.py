"""The plain engine: transformers and PEFT as they come, on CPU or CUDA."""

from pathlib import Path
from typing import Any

from peft import LoraConfig, get_peft_model

from trainer.base_model import load_model
from trainer.config import LoraConfig as LoraSettings
from trainer.config import TrainConfig


def load(base: Path, settings: TrainConfig, lora: LoraSettings, rank: int, device: str) -> Any:
    """The base model with a fresh adapter of the given rank, ready for the Trainer."""
    model = load_model(base, settings.dtype, device)
    model.config.use_cache = False  # with a cache, packed rows would silently attend to each other
    return get_peft_model(
        model,
        LoraConfig(
            task_type="CAUSAL_LM",
            r=rank,
            lora_alpha=lora.alpha_at(rank),
            lora_dropout=lora.dropout,
            target_modules=list(lora.target_modules),
            bias="none",
        ),
    )
