"""Linear layers that read the same input, seen as one: their frozen weights stacked, their adapters beside.

With W (out, in) the stacked frozen weights, A (R, in) the stacked adapters' first factors and B (out, R)
their second ones, in blocks and times the scaling: y = x Wᵀ + (x Aᵀ) Bᵀ. The adapters' parameters stay
where PEFT has them, in fp32; `refresh` copies them to A and B before each step. How y is computed is the
matter of `fused` and `fp8`.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Block(NamedTuple):
    """One adapted layer: its rows of the output and its columns of the low-rank input."""

    start: int
    stop: int
    low_start: int
    low_stop: int
    scaling: float


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same in every decoder layer. out: width of the outputs side by side. low: of x Aᵀ."""

    out: int
    low: int
    blocks: tuple[Block, ...]


@dataclass(frozen=True, slots=True)
class Projection:
    """frozen: what `project` reads. first, second: A (R, in) and B (out, R) among it, or views of it.

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
        """Where each adapter parameter goes: (view, parameter, factor)."""
        found: list[tuple[Tensor, Tensor, float]] = []
        for i, block in enumerate(self.layout.blocks):
            first, second = self.adapters[2 * i : 2 * i + 2]
            low = slice(block.low_start, block.low_stop)
            found.append((self.first[low], first, 1.0))
            found.append((self.second[block.start : block.stop, low], second, block.scaling))
        return found


def gather(layers: Sequence[Any]) -> tuple[Layout, list[Any], tuple[Tensor, ...]]:
    """layers: `nn.Linear`s without bias, or PEFT's around them without dropout.

    Returns: their layout, the linear layers themselves, and the adapters' parameters.
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
    """Copy the adapters' parameters to where the products read them."""
    views, parameters, factors = zip(*copies, strict=True)
    torch._foreach_copy_(views, torch._foreach_mul(parameters, factors))


def adapter_gradients(
    layout: Layout, gradient: Tensor, by_low: Tensor, x: Tensor, low: Tensor
) -> list[Tensor]:
    """Of A₁, B₁, A₂, B₂, ... in fp32, from the gradients of y (tokens, out) and of low = x Aᵀ (tokens, R)."""
    by_first = (by_low.t() @ x).float()
    found: list[Tensor] = []
    for block in layout.blocks:
        ranks = slice(block.low_start, block.low_stop)
        by_second = gradient[:, block.start : block.stop].t() @ low[:, ranks]
        found += [by_first[ranks], by_second.float() * block.scaling]
    return found
