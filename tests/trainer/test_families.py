"""Random models of many families: their losses are those of transformers, and packed rows stay apart."""

import functools
import math
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import AutoModelForCausalLM

from trainer.base_model import load_model
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import plain
from trainer.fit.run.apart import rows_stay_apart
from trainer.objective import sft

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
    "Gemma2": {"final_logit_softcapping": 0.5, "query_pre_attn_scalar": 8, **HEADS},
    "Gemma3Text": {"query_pre_attn_scalar": 8, **HEADS},
    "Granite": {"logits_scaling": 0.25},
    "Mistral": {},
    "Olmo2": {},
    "Phi": {},  # its LM head has a bias
    "Phi3": {},
    "Qwen2": {},
    "Qwen3": HEADS,
    "SmolLM3": {},
}
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
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="sdpa")
    for name, parameter in model.named_parameters():
        if parameter.dim() > 1:
            parameter.data.mul_(4)
        elif name.endswith("lm_head.bias"):
            parameter.data.normal_()
    return model.eval()


def rows() -> list[TokenRow]:
    """Rows of several lengths, each with two answers."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (20, 13, 31):
        ids = torch.randint(3, WORDS, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [IGNORED] * 5 + ids[5:9] + [IGNORED] * 2 + ids[11:], "q"))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_loss_that_transformers_computes(family: str) -> None:
    model = model_of(family)
    for row, score in zip(rows(), sft.scores(model, rows(), pad_id=0), strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            wanted = model(input_ids=ids, labels=labels).loss.item()
        assert score.total / score.weight == pytest.approx(wanted, abs=1e-5)
        assert abs(wanted - math.log(WORDS)) > 1e-4  # the logits say something


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_that_would_see_each_other_are_found(family: str) -> None:
    assert rows_stay_apart(plain, sft, model_of(family)) == (family in APART)


def test_a_family_without_sdpa_is_loaded_with_its_own_attention(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(**TINY, **HEADS, num_local_experts=4, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    model = load_model(tmp_path, "float32", "cpu")
    assert model.config._attn_implementation == "eager"
    assert not rows_stay_apart(plain, sft, model)  # its attention does not read positions
