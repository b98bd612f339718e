"""Which families the compiled engine trains, and what they add to a Llama's layers.

A family is a line of FAMILIES: what its config.json must say, so that its layers are Llama's with at most
these additions: biases of q, k and v, norms of their heads, and layers without rotary positions.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

FAMILIES: Mapping[str, Mapping[str, Any]] = {
    "llama": {"attention_bias": False, "mlp_bias": False},
    "mistral": {"sliding_window": None},
    "qwen2": {"use_sliding_window": False},
    "qwen3": {"use_sliding_window": False, "attention_bias": False},
    "smollm3": {"use_sliding_window": False, "attention_bias": False, "mlp_bias": False},
}


class Small(NamedTuple):
    """A layer's weights that are no matrices.

    Norms: (width,), those of heads (head width,). bias: (all heads' widths,), of q, k and v.
    """

    attention_norm: Any
    mlp_norm: Any
    bias: Any = None
    query_norm: Any = None
    key_norm: Any = None


def unknown_shape(config: Any) -> str | None:
    """Return why the compiled engine cannot run a base, by its config.json, or None."""
    wanted = FAMILIES.get(config.model_type)
    if wanted is None:
        return f"knows {', '.join(FAMILIES)}, and the base is {config.model_type}"
    if config.hidden_act != "silu":
        return f"knows layers with SiLU, and the base has {config.hidden_act}"
    for name, value in wanted.items():
        if (found := getattr(config, name, value)) != value:
            return f"knows {config.model_type} with {name} {value}, and the base has {found}"
    return None


def small_weights(layer: Any) -> Small:
    """Return the norms and biases of a decoder layer."""
    attention = layer.self_attn
    biases = [getattr(attention, name).bias for name in ("q_proj", "k_proj", "v_proj")]
    heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    return Small(
        layer.input_layernorm.weight,
        layer.post_attention_layernorm.weight,
        None if biases[0] is None else torch.cat(biases).detach(),
        *(None if norm is None else norm.weight for norm in heads),
    )


def rotates(layer: Any) -> bool:
    """Return whether a layer's attention reads positions."""
    return bool(getattr(layer.self_attn, "use_rope", True))
