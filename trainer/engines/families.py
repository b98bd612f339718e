"""Which families of models the compiled engine trains, and how their layers differ from a Llama's.

A family is an entry of FAMILIES. `layers` reads the rest from the layers themselves: biases of q, k and v,
norms of their heads, sliding windows, the scale of scores, layers without rotary positions.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from torch.nn import functional

# What config.json must say whatever the family: this engine has no dropout.
ALWAYS: Mapping[str, Any] = {"attention_dropout": 0.0}


def gelu_tanh(x: Tensor) -> Tensor:
    return functional.gelu(x, approximate="tanh")


ACTIVATIONS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "silu": functional.silu,
    "gelu_pytorch_tanh": gelu_tanh,
}


@dataclass(frozen=True, slots=True)
class Family:
    """How the layers of a family differ from a Llama's.

    requires: values of config.json without which the layers compute something else.
    attention, mlp: the linear layers that read the input of the attention and of the MLP, by name.
    norms: the norms before and after the attention, before and after the MLP, by name.
    norm_offset: what is added to the weights of norms.
    rotates_by_kind: whether the rotary positions depend on the kind of layer (`layer_types`).
    """

    requires: Mapping[str, Any] = field(default_factory=dict)
    attention: tuple[str, ...] = ("q_proj", "k_proj", "v_proj")
    mlp: tuple[str, ...] = ("gate_proj", "up_proj")
    activation: str = "silu"
    norms: tuple[str | None, ...] = ("input_layernorm", None, "post_attention_layernorm", None)
    norm_offset: float = 0.0
    rotates_by_kind: bool = False


LLAMA = Family({"attention_bias": False, "mlp_bias": False})
FAMILIES: Mapping[str, Family] = {
    "llama": LLAMA,
    "mistral": Family(),
    "qwen2": Family(),
    "qwen3": Family({"attention_bias": False}),
    "smollm3": LLAMA,
    "granite": LLAMA,  # its four factors are in config.json
    "phi3": Family({"resid_pdrop": 0.0}, attention=("qkv_proj",), mlp=("gate_up_proj",)),
    "gemma3_text": Family(
        {
            "attention_bias": False,
            "use_bidirectional_attention": False,
            "attn_logit_softcapping": None,
            "final_logit_softcapping": None,
        },
        activation="gelu_pytorch_tanh",
        norms=(
            "input_layernorm",
            "post_attention_layernorm",
            "pre_feedforward_layernorm",
            "post_feedforward_layernorm",
        ),
        norm_offset=1.0,
        rotates_by_kind=True,
    ),
}
ADAPTED = {"o_proj", "down_proj"}.union(*((*family.attention, *family.mlp) for family in FAMILIES.values()))


def unknown_shape(config: Any) -> str | None:
    """Return why the compiled engine cannot run a base, by its config.json, or None."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        return f"knows {', '.join(FAMILIES)}, and the base is {config.model_type}"
    activation = "hidden_activation" if hasattr(config, "hidden_activation") else "hidden_act"
    for name, value in {activation: family.activation, **ALWAYS, **family.requires}.items():
        if (found := getattr(config, name, value)) != value:
            return f"knows {config.model_type} with {name} {value}, and the base has {found}"
    return None
