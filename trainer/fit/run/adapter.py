"""Check before training that a base model can carry an adapter of the configured ranks."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.errors import ConfigError


def check_adapter(base: Path, ranks: Sequence[int], target_modules: Sequence[str]) -> None:
    """Check ranks and target modules against the layers of the base, by its config.json alone.

    Raises: ConfigError if a rank exceeds a layer's smaller dimension, where a full update costs less,
    or if a target module does not exist, or is an output that shares its weights with the embeddings.
    """
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config)
    layers = [(name, m) for name, m in model.named_modules() if isinstance(m, torch.nn.Linear)]
    for target in target_modules:
        found = [(name, m) for name, m in layers if name.split(".")[-1] == target]
        if not found:
            there = ", ".join(sorted({name.split(".")[-1] for name, _ in layers}))
            raise ConfigError(f"lora.target_modules: the base has no layer {target!r}; it has {there}")
        if config.tie_word_embeddings and any(m is model.get_output_embeddings() for _, m in found):
            raise ConfigError(
                f"lora.target_modules: {target!r} shares its weights with the embeddings of this base, "
                "and a merge would change both; leave it out"
            )
        name, layer = min(found, key=lambda pair: min(pair[1].weight.shape))
        limit = min(layer.weight.shape)
        if max(ranks) > limit:
            raise ConfigError(
                f"rank {max(ranks)} is over the smaller dimension of {name}, "
                f"{layer.in_features} × {layer.out_features}: use ranks up to {limit}"
            )
