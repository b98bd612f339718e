"""The compiled engine: a decoder of Llama's kind as fused projections, each layer compiled once on a GPU.

It computes the same losses and gradients as `plain`, in another way. A layer's projections of one input are
one product that includes their adapters (`fused`). Documents attend through varlen kernels instead of a
mask. The LM head and its loss run on target positions in chunks (`head`). The backward pass recomputes only
as many layers as the GPU's memory requires. PEFT keeps the adapter, so it is saved, resumed and merged as any
other. On a CPU the same code runs uncompiled. `families` says which models it knows, `layers` reads them.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from trainer.config import TrainConfig
from trainer.config_lora import ALL_LINEAR, LoraConfig
from trainer.engines import fp8, fused, plain
from trainer.engines.documents import attend, documents
from trainer.engines.families import ACTIVATIONS, ADAPTED, FAMILIES, unknown_shape
from trainer.engines.head import head_loss
from trainer.engines.layers import Small, linear_groups, rotation_of, rotations, small_weights, window_of
from trainer.engines.projections import Layout, Projection, refresh
from trainer.errors import ArmError

# The share of the GPU's free memory for the layers' kept activations, after what a chunk of the head needs.
FREE_SHARE, HEAD_BYTES = 0.85, 3 * 2**30
COMPILATIONS = 32  # of a layer; beyond that torch runs it uncompiled. Its own limit is 8.
KEPT_WIDTHS = 6  # hidden-wide tensors that a layer keeps, besides q, k, v, gate, up and their product


class Shape(NamedTuple):
    """The shape that all decoder layers share.

    scale: factor of attention's scores. residual: factor of what a layer adds to the hidden states.
    layouts: q-k-v, out, gate-up and down, for `project`.
    """

    heads: int
    key_heads: int
    head_width: int
    scale: float
    epsilon: float
    residual: float
    activation: Callable[..., Any]
    project: Callable[..., Any]
    layouts: tuple[Layout, ...]


class Layer(NamedTuple):
    """One decoder layer. copies: for `refresh`. weights: the last two arguments of `decoder_layer`.

    rotation: which of `rotations` it uses. window: how many tokens a token sees, or None for all.
    """

    copies: list[Any]
    weights: tuple[Any, ...]
    rotation: str
    window: int | None


def load(base: Path, settings: TrainConfig, lora: LoraConfig, rank: int, seed: int, device: str) -> PeftModel:
    """Return the base, frozen, with a new adapter of `rank`, whose first weights `seed` alone decides.

    Raises: ArmError if this engine cannot train the configuration; the message names the engine that can.
    """
    if reason := refusal(settings, lora, device):
        raise ArmError(f"the compiled engine {reason}; set train.engine to plain")
    model = plain.load(base, settings, lora, rank, seed, device)
    config = model.get_base_model().config
    if reason := unknown_shape(config):
        raise ArmError(f"the compiled engine {reason}; set train.engine to plain")
    model.decoder = Decoder(model.get_base_model(), settings, device)
    _without_walks(model)
    return model


def compute_loss(model: Any, inputs: dict[str, Any], target_tokens: Any) -> Any:
    """Return the sum of NLL over the targets of one packed row, divided by `target_tokens`."""
    kept = inputs["target_positions"]
    hidden = model.decoder(inputs["input_ids"][0], inputs["seq_lengths"])
    labels = inputs["labels"][0, kept + 1]
    return head_loss(hidden[kept], model.get_output_embeddings().weight, labels) / target_tokens


class Decoder:
    """Runs a decoder with its adapters on one packed row."""

    def __init__(self, base: Any, settings: TrainConfig, device: str) -> None:
        self._model, config = base.model, base.config
        self._family = family = FAMILIES[config.model_type]
        in_fp8 = settings.quantization == "fp8"
        stack: Callable[..., Projection] = fp8.quantise if in_fp8 else fused.fuse
        self._layers, layouts = [], list[tuple[Layout, ...]]()
        for i, layer in enumerate(base.model.layers):
            projections = [stack(group) for group in linear_groups(layer, family)]
            layouts.append(tuple(projection.layout for projection in projections))
            copies = [copy for projection in projections for copy in projection.copies()]
            weights = small_weights(layer, family), tuple(projection.tensors for projection in projections)
            rotation = rotation_of(layer, config, family, i)
            self._layers.append(Layer(copies, weights, rotation, window_of(config, i)))
        attention = base.model.layers[0].self_attn
        self._shape = Shape(
            config.num_attention_heads,
            config.num_key_value_heads,
            attention.head_dim,
            attention.scaling,
            config.rms_norm_eps,
            getattr(config, "residual_multiplier", 1.0),
            ACTIVATIONS[family.activation],
            fp8.project if in_fp8 else fused.project,
            layouts[0],
        )
        self._embedding_factor = getattr(config, "embedding_multiplier", 1.0)
        self._logits_divisor = getattr(config, "logits_scaling", 1.0)
        # On a GPU every row is padded to one length, so that one compilation serves them all.
        self._length = settings.row_tokens if device == "cuda" else None
        self._run = _compile(decoder_layer) if device == "cuda" else decoder_layer
        # The first row settles how many layers to recompute: later the memory is in use already.
        self._recomputed = None if settings.gradient_checkpointing else 0

    def __call__(self, input_ids: Any, lengths: Sequence[int]) -> Any:
        """Return what the LM head reads, (length, width).

        input_ids: (length,), documents of `lengths`.
        """
        length = len(input_ids)
        row = documents(lengths, self._length or length, input_ids.device)
        input_ids = functional.pad(input_ids, (0, len(row.positions) - length))
        hidden = _times(self._model.embed_tokens(input_ids), self._embedding_factor)
        # The first layer's input needs no gradient, but with one its compilation serves all layers.
        hidden = hidden.requires_grad_(torch.is_grad_enabled())
        turns = rotations(self._model, self._family, hidden, row.positions)
        if self._recomputed is None:
            self._recomputed = self._layers_to_recompute(hidden)
        for i, layer in enumerate(self._layers):
            refresh(layer.copies)  # layer by layer, so that a GPU starts as soon as the first one is launched
            # A window over all documents is none, and needs no compilation of its own.
            window = layer.window if layer.window and layer.window < row.longest else None
            place = *turns[layer.rotation], row.borders, row.longest, window
            if i < self._recomputed:
                hidden = checkpoint(
                    self._run, hidden, *place, self._shape, *layer.weights, use_reentrant=False
                )
            else:
                hidden = self._run(hidden, *place, self._shape, *layer.weights)
        return _times(self._model.norm(hidden)[:length], 1 / self._logits_divisor)

    def _layers_to_recompute(self, hidden: Any) -> int:
        """Return how many layers to recompute so that what the others keep fits into the free memory."""
        if not hidden.is_cuda:
            return len(self._layers)
        attention, _, gate_up, down = self._shape.layouts
        output_norms = sum(name is not None for name in self._family.norms[1::2])  # each keeps its input
        kept = (KEPT_WIDTHS + output_norms) * down.out + 2 * attention.out + 3 * gate_up.out // 2
        bytes_a_layer = len(hidden) * kept * hidden.element_size()
        free, _ = torch.cuda.mem_get_info()
        fitting = int((FREE_SHARE * free - HEAD_BYTES) // bytes_a_layer)
        return min(len(self._layers), max(0, len(self._layers) - fitting))


def decoder_layer(
    hidden: Any, cos: Any, sin: Any, borders: Any, longest: int, window: int | None, shape: Shape,
    small: Small, projections: Any,
) -> Any:  # fmt: skip
    """Compute one layer as transformers' `LlamaDecoderLayer` does, with what `shape` and `small` add.

    hidden: (length, width).
    """
    to_qkv, to_out, to_gate_up, to_down = zip(shape.layouts, projections, strict=True)
    x = _rms_norm(hidden, small.attention_norm, shape.epsilon)
    qkv = shape.project(x, None, to_qkv[0], *to_qkv[1])
    query, key, value = _heads(qkv if small.bias is None else qkv + small.bias, shape)
    if small.query_norm is not None:
        query = _rms_norm(query, small.query_norm, shape.epsilon)
        key = _rms_norm(key, small.key_norm, shape.epsilon)
    query, key = _rotate(query, cos, sin), _rotate(key, cos, sin)
    attended = attend(query, key, value, borders, longest, shape.scale, window)
    hidden = _add(hidden, attended.flatten(1), to_out, small.attended_norm, shape)
    x = _rms_norm(hidden, small.mlp_norm, shape.epsilon)
    gate, up = shape.project(x, None, to_gate_up[0], *to_gate_up[1]).chunk(2, 1)
    return _add(hidden, shape.activation(gate) * up, to_down, small.mlp_output_norm, shape)


def _add(hidden: Any, x: Any, to: tuple[Layout, Any], norm: Any, shape: Shape) -> Any:
    """Return hidden plus x projected, after a norm and a factor where there are any."""
    layout, tensors = to
    if norm is None and shape.residual == 1:
        return shape.project(x, hidden, layout, *tensors)
    x = shape.project(x, None, layout, *tensors)
    return hidden + _times(x if norm is None else _rms_norm(x, norm, shape.epsilon), shape.residual)


def _times(x: Any, factor: float) -> Any:
    return x if factor == 1 else x * factor


def _rms_norm(x: Any, weight: Any, epsilon: float) -> Any:
    wide = x.float()
    wide = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + epsilon)
    return (weight * wide.to(weight.dtype)).to(x.dtype)


def _heads(qkv: Any, shape: Shape) -> tuple[Any, Any, Any]:
    """Split (length, all heads' widths) into three of (length, heads, width)."""
    parts = qkv.view(len(qkv), -1, shape.head_width)
    query, key, value = parts.split([shape.heads, shape.key_heads, shape.key_heads], 1)
    return query, key, value


def _rotate(x: Any, cos: Any, sin: Any) -> Any:
    """Apply rotary positions. x: (length, heads, width). cos, sin: (length, width, or less of each head)."""
    turned, rest = x[..., : cos.shape[-1]], x[..., cos.shape[-1] :]
    left, right = turned.chunk(2, -1)
    turned = turned * cos[:, None] + torch.cat([-right, left], -1) * sin[:, None]
    return torch.cat([turned, rest], -1) if rest.shape[-1] else turned


def _compile(function: Any) -> Any:
    """Compile for fixed shapes: once for each window, and again for rows with more or longer documents."""
    torch._dynamo.config.recompile_limit = COMPILATIONS
    return torch.compile(function, dynamic=False)


def _without_walks(model: Any) -> None:
    """Keep the Trainer from walking some 3,000 modules several times a step while a GPU waits.

    Without dropout no layer has a mode, and the list of parameters no longer changes.
    """
    model.train().train = lambda mode=True: model
    parameters = list(model.parameters())
    model.parameters = lambda recurse=True: iter(parameters)


def refusal(settings: TrainConfig, lora: LoraConfig, device: str) -> str | None:
    """Return what of a configuration this engine cannot train, or None."""
    if settings.quantization == "4bit":
        return "has no 4bit base"
    if settings.dtype == "float32" and device == "cuda":
        return "attends in 16 bits on a GPU"
    if lora.dropout:
        return "has no lora.dropout"
    if others := sorted({*lora.target_modules} - ADAPTED - {ALL_LINEAR}):
        return f"has no adapters on {', '.join(others)}"
    return None
