"""Random models of many families, small enough for a test. APART keep packed rows apart, LEAKING do not."""

import functools
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM

from trainer.base_model import attention_of

WORDS = 97
TINY = {
    "vocab_size": WORDS, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64,
    "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
HEADS = {"head_dim": 8}
LINEAR = {
    "linear_num_key_heads": 2, "linear_num_value_heads": 2, "linear_key_head_dim": 8,
    "linear_value_head_dim": 8, "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
MAMBA = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8}
APART: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Cohere": {"logit_scale": 0.25},
    "Cohere2": {"logit_scale": 0.25, **HEADS},
    "Gemma2": {
        "final_logit_softcapping": 0.5, "attn_logit_softcapping": 0.5, "query_pre_attn_scalar": 8, **HEADS,
    },
    "Gemma3Text": {
        "query_pre_attn_scalar": 16, "sliding_window": 8,
        "layer_types": ["sliding_attention", "full_attention"], **HEADS,
    },
    "Granite": {"logits_scaling": 0.25},
    "Mistral": {"sliding_window": None},
    "Olmo2": {},
    "Phi": {},  # its LM head has a bias
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": HEADS,
    "SmolLM3": {},
}  # fmt: skip
LEAKING: dict[str, dict[str, Any]] = {
    "Falcon": {},
    "FalconH1": {"lm_head_multiplier": 4.0, "mamba_d_ssm": 32, **MAMBA, "mamba_n_heads": 4},
    "GraniteMoeHybrid": {
        "layer_types": ["mamba", "attention"], "mamba_expand": 2, "num_local_experts": 0,
        "shared_intermediate_size": 32, "logits_scaling": 0.25, **MAMBA,
    },
    "Lfm2": {"layer_types": ["conv", "full_attention"]},
    "OPT": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "Qwen3_5Text": {**LINEAR, **HEADS},
    "Qwen3Next": {
        **LINEAR, **HEADS, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 16,
    },
}  # fmt: skip
FAMILIES = {**APART, **LEAKING}


@functools.cache
def model_of(family: str) -> Any:
    """Return a random model whose logits differ enough for a wrong scale or a leak to show."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{family}Config")(**TINY, **FAMILIES[family])
    attention = attention_of(config)
    with torch.device("cpu"):  # all callers share it, also those that make others without weights
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation=attention)
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
        elif name.endswith("lm_head.bias"):
            parameter.data.normal_()
    return model.eval()
