"""Read the decoder layers of a base, as its family names their parts."""

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from trainer.engines.families import Family

TURNED, UNTURNED = "turned", "unturned"  # kinds of layers where the family's own have one rotation


class Small(NamedTuple):
    """A layer's weights that are no matrices.

    Norms: (width,), those of heads (head width,). bias: (all heads' widths,), of q, k and v.
    """

    attention_norm: Any
    attended_norm: Any
    mlp_norm: Any
    mlp_output_norm: Any
    bias: Any = None
    query_norm: Any = None
    key_norm: Any = None


def linear_groups(layer: Any, family: Family) -> tuple[tuple[Any, ...], ...]:
    """Return the layer's linear layers, grouped by their input."""
    attention, mlp = layer.self_attn, layer.mlp
    return (
        tuple(getattr(attention, name) for name in family.attention),
        (attention.o_proj,),
        tuple(getattr(mlp, name) for name in family.mlp),
        (mlp.down_proj,),
    )


def small_weights(layer: Any, family: Family) -> Small:
    """Return the norms and biases of a decoder layer."""
    attention = layer.self_attn
    norms = [getattr(layer, name) if name else None for name in family.norms]
    heads = [getattr(attention, name, None) for name in ("q_norm", "k_norm")]
    biases = [getattr(attention, name).bias for name in family.attention]
    bias = None if biases[0] is None else torch.cat(biases).detach()
    before, after, before_mlp, after_mlp, query, key = (_weight(x, family) for x in (*norms, *heads))
    return Small(before, after, before_mlp, after_mlp, bias, query, key)


def _weight(norm: Any, family: Family) -> Any:
    """Return a norm's weight. One with an offset is in fp32, and so is the product with it."""
    if norm is None or not family.norm_offset:
        return getattr(norm, "weight", None)
    return norm.weight.detach().float() + family.norm_offset


def window_of(config: Any, index: int) -> int | None:
    """Return how many tokens a token of this layer sees, itself included; None for all before it."""
    kinds = getattr(config, "layer_types", None)
    if kinds and kinds[index] != "sliding_attention":
        return None
    window: int | None = getattr(config, "sliding_window", None)
    return window


def rotation_of(layer: Any, config: Any, family: Family, index: int) -> str:
    """Return which of `rotations` a layer uses."""
    if family.rotates_by_kind:
        return str(config.layer_types[index])
    return TURNED if getattr(layer.self_attn, "use_rope", True) else UNTURNED


def rotations(
    model: Any, family: Family, hidden: Tensor, positions: Tensor
) -> Mapping[str, tuple[Tensor, Tensor]]:
    """Return cos and sin, each (length, rotated width), by kind of layer. hidden gives their dtype."""
    if family.rotates_by_kind:
        kinds = sorted(set(model.config.layer_types))
        return {kind: _turn(model.rotary_emb(hidden[None], positions[None], kind)) for kind in kinds}
    cos, sin = _turn(model.rotary_emb(hidden[None], positions[None]))
    return {TURNED: (cos, sin), UNTURNED: (torch.ones_like(cos), torch.zeros_like(sin))}


def _turn(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    return batch[0][0], batch[1][0]
