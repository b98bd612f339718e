"""The plain engine: transformers and PEFT unchanged, on CPU or CUDA, optionally in 4 bits or sharded.

The LM head runs on target positions only, because most of a prompt needs no logits.
"""

from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from trainer.base_model import attention_of, load_model
from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig
from trainer.engines.adapters import fill, peft_config
from trainer.engines.sharded import shard


def load(
    base: Path, settings: TrainConfig, lora: LoraConfig | None, rank: int | None, seed: int, device: str
) -> Any:
    """Return the base, frozen, with an adapter of `rank`.

    Its first weights are those of `lora.adapter`, or `seed` alone decides them. Without `lora` return the
    base in fp32, all of it to be trained: small updates would be lost in 16 bits.
    """
    if settings.quantization == "4bit":
        model = _load_in_4bit(base, settings.dtype, device)
    elif settings.shard_base:
        model = shard(load_model(base, settings.dtype, "cpu"), device)
    else:
        model = load_model(base, settings.dtype if lora else "float32", device)
    model.config.use_cache = False  # with a cache, packed rows would silently attend to each other
    torch.manual_seed(seed)
    if lora is None or rank is None:
        return model
    adapted = get_peft_model(model, peft_config(model, lora, rank))
    if lora.adapter:
        fill(adapted, lora.adapter)
    return adapted


def compute_loss(model: Any, inputs: dict[str, Any], target_tokens: Any) -> Any:
    """Return the sum of NLL over the targets of one packed row, divided by `target_tokens`.

    Targets that follow probabilities (`top_targets`) count with the divergence from them instead, whose sum
    is left in `inputs` as `divergence`, for the log.
    """
    kept = inputs["target_positions"]
    logits = model(
        inputs["input_ids"], position_ids=inputs["position_ids"], logits_to_keep=kept, use_cache=False
    ).logits[0]
    labels = inputs["labels"][0, kept + 1]
    if "top_targets" not in inputs:
        return functional.cross_entropy(logits.float(), labels, reduction="sum") / target_tokens
    followed = inputs["top_targets"]
    losses = functional.cross_entropy(logits.float(), labels, reduction="none")
    divergence = _divergence(logits[followed].float(), inputs["top_ids"], inputs["top_logprobs"])
    inputs["divergence"] = divergence.detach().sum()
    return losses.index_copy(0, followed, divergence).sum() / target_tokens


def _divergence(logits: Any, top_ids: Any, top_logprobs: Any) -> Any:
    """Return (n,): KL(p || softmax(logits)) in nats, with all tokens that p does not list taken as one.

    logits: (n, vocabulary). top_ids, top_logprobs: (n, listed), the tokens of p and their log-probabilities.
    """
    ours = functional.log_softmax(logits, -1).gather(1, top_ids)
    wanted = top_logprobs.exp()
    rest, our_rest = ((1 - x.sum(1)).clamp_min(1e-6) for x in (wanted, ours.exp()))
    return (wanted * (top_logprobs - ours)).sum(1) + rest * (rest / our_rest).log()


def _load_in_4bit(base: Path, dtype: str, device: str) -> Any:
    """Load in NF4 with quantised scales (QLoRA, arXiv:2305.14314); products and embeddings use `dtype`."""
    compute_dtype = getattr(torch, dtype)
    return AutoModelForCausalLM.from_pretrained(
        base,
        dtype=compute_dtype,
        quantization_config=BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype,
        ),
        device_map={"": device},
        local_files_only=True,
        attn_implementation=attention_of(AutoConfig.from_pretrained(base, local_files_only=True)),
    )
