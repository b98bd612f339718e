"""Linear layers that read the same input, as one product, with their LoRA adapters inside it.

With W (out, in) the stacked frozen weights, A (R, in) the stacked adapters' first factors and B (out, R)
their second ones, in blocks and times the scaling, y = x Wᵀ + (x Aᵀ) Bᵀ = [x, x Aᵀ] [W, B]ᵀ: one product
that is R wider, where the plain way adds each adapter to an output that is already in memory. The same
holds for the gradient of x, [g, g B] [W; A]. So all of it is one matrix, `weight` (out + R, in + R):

    W B
    A 0

The frozen layers' own weights become views of it. The adapters' parameters stay where PEFT has them, in
fp32; `refresh` copies them in before each step.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn


class Block(NamedTuple):
    """One adapted layer: its rows of the output and its columns of the low-rank input."""

    start: int
    stop: int
    low_start: int
    low_stop: int
    scaling: float


@dataclass(frozen=True, slots=True)
class Layout:
    """What is the same in every decoder layer. out: width of the outputs side by side."""

    out: int
    blocks: tuple[Block, ...]


class Projection:
    """The frozen layers of one input and their adapters.

    adapters: A₁, B₁, A₂, B₂, ...; `weight` as in the module's docstring.
    """

    def __init__(self, layers: Sequence[Any]) -> None:
        """layers: `nn.Linear`s without bias, or PEFT's around them without dropout; changed to views."""
        self.adapters: list[Tensor] = []
        blocks, bases, out, rank = [], [], 0, 0
        for layer in layers:
            base = getattr(layer, "base_layer", layer)
            if base is not layer:
                (name,) = layer.lora_A
                first, second = layer.lora_A[name].weight, layer.lora_B[name].weight
                self.adapters += [first, second]
                blocks.append(
                    Block(out, out + len(second), rank, rank + len(first), float(layer.scaling[name]))
                )
                rank += len(first)
            bases.append(base)
            out += base.out_features
        self.layout = Layout(out, tuple(blocks))
        frozen = bases[0].weight
        self.weight = frozen.new_zeros(out + rank, frozen.shape[1] + rank)
        start = 0
        for base in bases:
            view = self.weight[start : start + base.out_features, : frozen.shape[1]]
            base.weight = nn.Parameter(view.copy_(base.weight.data), requires_grad=False)
            start += base.out_features

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.weight, *self.adapters)

    def copies(self) -> list[tuple[Tensor, Tensor, float]]:
        """Where each adapter parameter goes in `weight`: (view, parameter, factor)."""
        out = self.layout.out
        width = self.weight.shape[1] - (self.weight.shape[0] - out)
        found: list[tuple[Tensor, Tensor, float]] = []
        for i, block in enumerate(self.layout.blocks):
            low = slice(block.low_start, block.low_stop)
            first, second = self.adapters[2 * i : 2 * i + 2]
            found.append((self.weight[out:, :width][low], first, 1.0))
            found.append((self.weight[block.start : block.stop, width:][:, low], second, block.scaling))
        return found


@torch.no_grad()
def refresh(copies: Sequence[tuple[Tensor, Tensor, float]]) -> None:
    """Copy the adapters' parameters to where the products read them."""
    views, parameters, factors = zip(*copies, strict=True)
    torch._foreach_copy_(views, torch._foreach_mul(parameters, factors))


def project(x: Tensor, layout: Layout, weight: Tensor, *adapters: Tensor) -> Tensor:
    """x: (tokens, in), to (tokens, out). weight, adapters: a projection's `tensors`, refreshed."""
    output: Tensor = _Project.apply(x, layout, weight, *adapters)
    return output


class _Project(torch.autograd.Function):
    """The adapters' values come with `weight`; as arguments they only receive their gradients."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layout: Layout, weight: Tensor, *adapters: Tensor) -> Tensor:
        out = layout.out
        inputs = torch.cat([x, x @ weight[out:, : x.shape[1]].t()], 1) if adapters else x
        ctx.layout = layout
        ctx.save_for_backward(inputs, weight)
        return inputs @ weight[:out].t()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        inputs, weight = ctx.saved_tensors
        out = ctx.layout.out
        width = weight.shape[1] - (weight.shape[0] - out)
        x, low = inputs[:, :width], inputs[:, width:]
        by_low = gradient @ weight[:out, width:]
        by_x = torch.cat([gradient, by_low], 1) @ weight[:, :width] if ctx.needs_input_grad[0] else None
        by_first = (by_low.t() @ x).float()
        found: list[Tensor] = []
        for block in ctx.layout.blocks:
            ranks = slice(block.low_start, block.low_stop)
            by_second = gradient[:, block.start : block.stop].t() @ low[:, ranks]
            found += [by_first[ranks], by_second.float() * block.scaling]
        return by_x, None, None, *found
