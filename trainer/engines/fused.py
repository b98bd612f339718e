"""Compute projections and their adapters as one product.

y = x Wᵀ + (x Aᵀ) Bᵀ = [x, x Aᵀ] [W, B]ᵀ is one product that is R wider; plain PEFT adds each adapter to an
output that is already in memory. The same holds for the gradient of x, [g, g B] [W; A]. So everything is
one matrix, `weight` (out + R, in + R), and the frozen layers' own weights become views of it:

    W B
    A 0
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from trainer.engines.projections import Layout, Projection, adapter_gradients, gather


def fuse(layers: Sequence[Any]) -> Projection:
    """Turn the layers' weights into views of the projection's one matrix."""
    layout, bases, adapters = gather(layers)
    frozen = bases[0].weight
    width = frozen.shape[1]
    weight = frozen.new_zeros(layout.out + layout.low, width + layout.low)
    start = 0
    for base in bases:
        view = weight[start : start + base.out_features, :width]
        base.weight = nn.Parameter(view.copy_(base.weight.data), requires_grad=False)
        start += base.out_features
    return Projection(layout, (weight,), weight[layout.out :, :width], weight[: layout.out, width:], adapters)


def project(x: Tensor, residual: Tensor | None, layout: Layout, weight: Tensor, *adapters: Tensor) -> Tensor:
    """Project x (tokens, in) to (tokens, out) and add `residual`.

    weight, adapters: a projection's `tensors`, refreshed.
    """
    output: Tensor = _Project.apply(x, layout, weight, *adapters)
    return output if residual is None else residual + output


class _Project(torch.autograd.Function):
    """Takes the adapters' values within `weight`; `adapters` only receive their gradients."""

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
        out, width = ctx.layout.out, weight.shape[1] - ctx.layout.low
        by_low = gradient @ weight[:out, width:]
        by_x = torch.cat([gradient, by_low], 1) @ weight[:, :width]
        found = adapter_gradients(ctx.layout, gradient, by_low, inputs[:, :width], inputs[:, width:])
        return by_x, None, None, *found
