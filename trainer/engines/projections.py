"""Treat linear layers that read the same input as one, with stacked weights and stacked adapters.

y = x Wᵀ + (x Aᵀ) Bᵀ, where W (out, in) holds the stacked frozen weights, A (R, in) the adapters' first
factors and B (out, R) their second factors, in blocks and multiplied by the scaling. The adapters' parameters
stay in PEFT's modules, in fp32; `refresh` copies them to A and B before each step. `fused` and `fp8` are two
ways to compute y.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """The place of one adapted layer: its rows of the output, its columns of the low-rank input."""

    start: int
    stop: int
    low_start: int
    low_stop: int
    scaling: float


@dataclass(frozen=True, slots=True)
class Layout:
    """The layout shared by every decoder layer. out: width of all outputs. low: width of x Aᵀ."""

    out: int
    low: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Projection:
    """frozen: the tensors that `project` reads. first, second: A (R, in) and B (out, R), or views of them.

    adapters: the parameters A₁, B₁, A₂, B₂, ...
    """

    layout: Layout
    frozen: tuple[Tensor, ...]
    first: Tensor
    second: Tensor
    adapters: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (*self.frozen, *self.adapters)

    def copies(self) -> list[tuple[Tensor, Tensor, float]]:
        """Return where `refresh` copies each adapter parameter: (view, parameter, factor)."""
        found: list[tuple[Tensor, Tensor, float]] = []
        for i, block in enumerate(self.layout.blocks):
            first, second = self.adapters[2 * i : 2 * i + 2]
            low = slice(block.low_start, block.low_stop)
            found.append((self.first[low], first, 1.0))
            found.append((self.second[block.start : block.stop, low], second, block.scaling))
        return found


def gather(layers: Sequence[Any]) -> tuple[Layout, list[Any], tuple[Tensor, ...]]:
    """Return the layers' layout, the linear layers themselves, and the adapters' parameters.

    layers: `nn.Linear`s without bias, or PEFT's wrappers of them without dropout.
    """
    blocks, bases, adapters, out, low = [], [], [], 0, 0
    for layer in layers:
        base = getattr(layer, "base_layer", layer)
        if base is not layer:
            (name,) = layer.lora_A
            first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
            adapters += [first, second]
            scaling = float(layer.scaling[name])
            blocks.append(Block(out, out + len(second), low, low + len(first), scaling))
            low += len(first)
        bases.append(base)
        out += base.out_features
    return Layout(out, low, tuple(blocks)), bases, tuple(adapters)


@torch.no_grad()
def refresh(copies: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    """Copy the adapters' parameters to the tensors that the products read."""
    views, parameters, factors = zip(*copies, strict=True)
    torch._foreach_copy_(views, torch._foreach_mul(parameters, factors))


def adapter_gradients(
    layout: Layout, gradient: Tensor, by_low: Tensor, x: Tensor, low: Tensor
) -> list[Tensor]:
    """Return the fp32 gradients of A₁, B₁, ..., from those of y (tokens, out) and x Aᵀ (tokens, R)."""
    by_first = (by_low.t() @ x).float()
    found: list[Tensor] = []
    for block in layout.blocks:
        ranks = slice(block.low_start, block.low_stop)
        by_second = gradient[:, block.start : block.stop].t() @ low[:, ranks]
        found += [by_first[ranks], by_second.float() * block.scaling]
    return found
