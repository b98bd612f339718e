"""Make PEFT's settings of an adapter, and find out which layers of a base it reaches.

PEFT goes by the ends of names, and it rewrites some of them (fused experts). So what has an adapter is read
from the model that PEFT makes, here of a base without weights.
"""

import warnings
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig as PeftConfig
from peft import get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from peft.utils import ModulesToSaveWrapper
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM

from trainer.adapter_file import WEIGHTS, Shapes
from trainer.config_lora import ALL_LINEAR, LoraConfig

# Mamba's kernels read this layer's weights without calling it, so an adapter on it would do nothing.
READ_BY_KERNELS = "out_proj"
TIED = ("embed_tokens", "lm_head")  # the names under which PEFT keeps a tie
# A layer that is several of other families' in one, as in Phi 3, and those.
JOINED = {"qkv_proj": ("q_proj", "k_proj", "v_proj"), "gate_up_proj": ("gate_proj", "up_proj")}


@dataclass(frozen=True, slots=True)
class Reach:
    """limits: each adapted layer with its smaller dimension.

    without: the matrices that are neither adapted nor trained whole, counted by the last two parts of their
    names. Routers and fused experts are among them, embeddings and convolutions are not.
    """

    limits: dict[str, int]
    without: Counter[str]

    @property
    def names(self) -> list[str]:
        """Return the last parts of the adapted layers' names."""
        return sorted({last(name) for name in self.limits})


def peft_config(model: Any, lora: LoraConfig, rank: int) -> PeftConfig:
    """Return PEFT's settings for an adapter of `rank` on this model."""
    everything = lora.target_modules == (ALL_LINEAR,)
    return PeftConfig(
        task_type="CAUSAL_LM",
        r=rank,
        lora_alpha=lora.alpha_at(rank),
        lora_dropout=lora.dropout,
        target_modules=ALL_LINEAR if everything else target_names(model, lora),
        exclude_modules=[READ_BY_KERNELS] if everything and has_kernels(model) else None,
        bias="none",
        use_rslora=lora.rslora,
        use_dora=lora.dora,
        modules_to_save=list(lora.modules_to_save) or None,
        ensure_weight_tying=trains_tied(model, lora),
    )


def target_names(model: Any, lora: LoraConfig) -> list[str]:
    """Return lora.target_modules by the names of this base, where q, k and v may be one layer."""
    there = {last(name) for name, _ in model.named_modules()}
    wanted = list(lora.target_modules)
    for joined, parts in JOINED.items():
        if joined in there and not {*parts} & there and {*parts} <= {*wanted}:
            wanted = [joined if name == parts[0] else name for name in wanted if name not in parts[1:]]
    return wanted


def skeleton(base: Path) -> Any:
    """Return the base without weights, by its config.json alone."""
    config = AutoConfig.from_pretrained(base, local_files_only=True)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)


def reach(model: Any, lora: LoraConfig, rank: int) -> Reach:
    """Return what an adapter reaches. model: a `skeleton`, which gets the adapter.

    Raises: ValueError, from PEFT, if the model cannot have it.
    """
    matrices = {id(p): name for name, p in model.named_parameters() if p.dim() > 1}
    skipped = (torch.nn.Embedding, torch.nn.modules.conv._ConvNd)
    for module in model.modules():
        if isinstance(module, skipped):
            matrices.pop(id(module.weight), None)
    with warnings.catch_warnings(action="ignore"):  # of patterns that PEFT writes for fused experts
        adapted = get_peft_model(model, peft_config(model, lora, rank))
    limits: dict[str, int] = {}
    for name, module in adapted.get_base_model().named_modules():
        if isinstance(module, LoraLayer):
            own = getattr(module, "parameter_name", "weight")  # of fused experts, several to a module
            weight = getattr(module.get_base_layer(), own)
            place = name.replace(".base_layer", "")
            limits[place if own == "weight" else f"{place}.{own}"] = min(weight.shape[-2:])
            matrices.pop(id(weight), None)
        elif isinstance(module, ModulesToSaveWrapper):
            for parameter in module.original_module.parameters():
                matrices.pop(id(parameter), None)
    return Reach(limits, Counter(map(_kind, matrices.values())))


def expected_tensors(model: Any, lora: LoraConfig, rank: int) -> Shapes:
    """Return the tensors of an adapter of this model, as PEFT saves them. model: a `skeleton`."""
    state = get_peft_model_state_dict(
        get_peft_model(model, peft_config(model, lora, rank)), save_embedding_layers=False
    )
    return {name: tuple(tensor.shape) for name, tensor in state.items()}


def fill(adapted: Any, adapter: Path) -> None:
    """Give a new adapter the weights of one that `check_adapter` has accepted."""
    set_peft_model_state_dict(adapted, load_file(adapter / WEIGHTS))


def describe(counts: Counter[str]) -> str:
    """Return `self_attn.q_proj ×30, mlp.gate ×2`."""
    return ", ".join(f"{name} ×{count}" for name, count in counts.items())


def trains_tied(model: Any, lora: LoraConfig) -> bool:
    """Return whether the embeddings are trained whole and are the output too; PEFT then keeps them one."""
    return bool(model.config.tie_word_embeddings and {last(name) for name in lora.modules_to_save} & {*TIED})


def has_kernels(model: Any) -> bool:
    """Return whether layers of the model are Mamba's."""
    return hasattr(model.config, "mamba_d_state")


def last(name: str) -> str:
    return name.rpartition(".")[2]


def _kind(name: str) -> str:
    """`model.layers.3.mlp.gate.weight` → `mlp.gate`"""
    parts = [part for part in name.removesuffix(".weight").split(".") if not part.isdecimal()]
    return ".".join(parts[-2:])
