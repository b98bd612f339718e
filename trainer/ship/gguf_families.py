"""The families of models that GGUF holds: one entry each, with what llama.cpp needs beside the usual shape.

llama.cpp has no setting for some things that a config.json may change. A model that changes one of them is
refused, because llama.cpp would compute another function without a word.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from gguf import MODEL_ARCH, GGUFWriter, RopeScalingType

from trainer.errors import ArtifactError

LARGE_GEMMA = {MODEL_ARCH.GEMMA2: 46, MODEL_ARCH.GEMMA3: 62}  # layers of the 27B ones, which scale otherwise


@dataclass(frozen=True, slots=True)
class Family:
    """An architecture of llama.cpp.

    interleaved: a rotary pair is at 2i and 2i + 1 of a head; otherwise at i and i + size / 2, as in
    transformers. norm_offset: what transformers adds to a norm's weight when it computes. shape: writes what
    only this family has. problem: returns what llama.cpp cannot do, or an empty text. scalings: of RoPE.
    """

    arch: MODEL_ARCH
    interleaved: bool = False
    norm_offset: float = 0.0
    activation: str = "silu"
    shape: Callable[[GGUFWriter, Any], None] = lambda writer, config: None
    problem: Callable[[Any], str] = lambda config: ""
    scalings: tuple[str, ...] = ("default", "linear", "yarn")


def family_of(config: Any) -> Family:
    """Return the family of a model's config. Raises: ArtifactError if GGUF cannot hold the model."""
    family = FAMILIES.get(config.model_type)
    if family is None:
        raise ArtifactError(
            f"the export to GGUF knows {', '.join(FAMILIES)}, and this model is of type {config.model_type!r}"
        )
    activation = getattr(config, "hidden_activation", None) or config.hidden_act
    rope = rope_of(config)
    if activation != family.activation:
        problem = f"llama.cpp has the activation {family.activation!r}, and this model has {activation!r}"
    elif rope["rope_type"] not in family.scalings:
        problem = f"GGUF knows RoPE of type {', '.join(family.scalings)}, and this is {rope['rope_type']!r}"
    else:
        problem = family.problem(config)
    if problem:
        raise ArtifactError(f"{config.model_type}: {problem}")
    return family


def rope_of(config: Any) -> dict[str, Any]:
    """Return the rotary settings, of the layers with full attention where layers differ."""
    found: dict[str, Any] = config.rope_parameters
    return found.get("full_attention") or found


def head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def add_shape(writer: GGUFWriter, family: Family, config: Any) -> None:
    """Write what llama.cpp must know of the model beside its weights."""
    rope, size = rope_of(config), head_size(config)
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(_context(family, config))
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(int(size * rope.get("partial_rotary_factor", 1.0)))
    writer.add_rope_freq_base(rope["rope_theta"])
    _add_scaling(writer, config, rope)
    family.shape(writer, config)


def _context(family: Family, config: Any) -> int:
    """Return how many tokens llama.cpp reads by default.

    Where it has no sliding attention they end at the window, and with LongRoPE at the original length: with
    a longer context it takes the factors for long texts, for short texts too. Up to there both are the same.
    """
    longest, window, rope = config.max_position_embeddings, _window(config), rope_of(config)
    if rope["rope_type"] == "longrope":
        longest = rope["original_max_position_embeddings"]
    slides = family.arch in (MODEL_ARCH.GEMMA2, MODEL_ARCH.GEMMA3)
    return int(min(longest, window) if window and not slides else longest)


def _window(config: Any) -> int:
    """Return the tokens that a layer with sliding attention sees, or 0 if all layers see everything."""
    kinds = getattr(config, "layer_types", None) or ["sliding_attention"]
    return int(getattr(config, "sliding_window", None) or 0) if "sliding_attention" in kinds else 0


def _add_scaling(writer: GGUFWriter, config: Any, rope: dict[str, Any]) -> None:
    kind = rope["rope_type"]
    if kind in ("linear", "yarn"):
        writer.add_rope_scaling_type(RopeScalingType(kind))
        writer.add_rope_scaling_factor(rope["factor"])
    if kind == "yarn":
        original = rope.get("original_max_position_embeddings") or config.max_position_embeddings
        writer.add_rope_scaling_orig_ctx_len(original)
    if kind == "longrope":
        original = rope["original_max_position_embeddings"]
        stretch = config.max_position_embeddings / original
        usual = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        writer.add_rope_scaling_orig_ctx_len(original)
        writer.add_rope_scaling_attn_factors(rope.get("attention_factor") or usual)


def _smollm3_problem(config: Any) -> str:
    wanted = [int((i + 1) % 4 != 0) for i in range(config.num_hidden_layers)]
    return (
        "" if list(config.no_rope_layers) == wanted else "llama.cpp leaves RoPE out of each fourth layer only"
    )


def _gemma_problem(arch: MODEL_ARCH, period: int) -> Callable[[Any], str]:
    def problem(config: Any) -> str:
        layers = config.num_hidden_layers
        kinds = ["full_attention" if (i + 1) % period == 0 else "sliding_attention" for i in range(layers)]
        large = layers == LARGE_GEMMA[arch]
        scale = config.hidden_size // config.num_attention_heads if large else head_size(config)
        if list(config.layer_types) != kinds:
            return f"llama.cpp has full attention in each layer of {period} only"
        if getattr(config, "use_bidirectional_attention", None):
            return "llama.cpp computes it with causal attention only"
        if config.query_pre_attn_scalar != scale:
            found = config.query_pre_attn_scalar
            return f"llama.cpp scales queries by {scale}, and query_pre_attn_scalar is {found}"
        if arch == MODEL_ARCH.GEMMA3 and config.attn_logit_softcapping:
            return "llama.cpp does not cap its attention"
        return ""

    return problem


def _add_gemma2(writer: GGUFWriter, config: Any) -> None:
    writer.add_attn_logit_softcapping(config.attn_logit_softcapping or 0.0)
    writer.add_final_logit_softcapping(config.final_logit_softcapping or 0.0)
    writer.add_sliding_window(config.sliding_window)


def _add_gemma3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(config.sliding_window)
    writer.add_rope_freq_base_swa(config.rope_parameters["sliding_attention"]["rope_theta"])
    if config.final_logit_softcapping:
        writer.add_final_logit_softcapping(config.final_logit_softcapping)


def _add_phi3(writer: GGUFWriter, config: Any) -> None:
    writer.add_sliding_window(0)  # llama.cpp would choose one by the number of layers


def _add_granite(writer: GGUFWriter, config: Any) -> None:
    writer.add_attention_scale(config.attention_multiplier)
    writer.add_embedding_scale(config.embedding_multiplier)
    writer.add_residual_scale(config.residual_multiplier)
    writer.add_logit_scale(config.logits_scaling)


_LLAMA = Family(MODEL_ARCH.LLAMA, interleaved=True, scalings=("default", "linear", "yarn", "llama3"))
_GEMMA = partial(Family, norm_offset=1.0, activation="gelu_pytorch_tanh", scalings=("default", "linear"))
FAMILIES = {
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "smollm3": Family(MODEL_ARCH.SMOLLM3, interleaved=True, problem=_smollm3_problem),
    "granite": Family(MODEL_ARCH.GRANITE, interleaved=True, shape=_add_granite),
    "qwen2": Family(MODEL_ARCH.QWEN2),
    "qwen3": Family(MODEL_ARCH.QWEN3),
    "gemma2": _GEMMA(MODEL_ARCH.GEMMA2, shape=_add_gemma2, problem=_gemma_problem(MODEL_ARCH.GEMMA2, 2)),
    "gemma3_text": _GEMMA(MODEL_ARCH.GEMMA3, shape=_add_gemma3, problem=_gemma_problem(MODEL_ARCH.GEMMA3, 6)),
    "phi3": Family(MODEL_ARCH.PHI3, shape=_add_phi3, scalings=("default", "longrope")),
}
