"""Projections with frozen weights in FP8, whose products an H100 computes at twice the rate of bf16.

Weights, activations and gradients are rounded to e4m3 with one scale a row. W and Wᵀ are two copies, because
the product for the gradient of x sums over the other dimension. The adapters stay in bf16, as do the weights
that validation, saving and merging read.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from trainer.engines.kernels import add_product
from trainer.engines.projections import Layout, Projection, adapter_gradients, gather

LARGEST = torch.finfo(torch.float8_e4m3fn).max
SMALLEST_ROW = 1e-30  # a row of zeros would have no scale


def quantise(layers: Sequence[Any]) -> Projection:
    """Return a projection with 8-bit copies of the layers' weights; the layers keep theirs."""
    layout, bases, adapters = gather(layers)
    weight = torch.cat([base.weight.data for base in bases])
    first = weight.new_zeros(layout.low, weight.shape[1])
    second = weight.new_zeros(layout.out, layout.low)
    frozen = (*rounded(weight), *rounded(weight.t().contiguous()), first, second)
    return Projection(layout, frozen, first, second, adapters)


def rounded(x: Tensor) -> tuple[Tensor, Tensor]:
    """Round x (rows, columns) to e4m3 and fp32 scales (rows, 1), whose product is nearly x."""
    scale = x.abs().amax(1, keepdim=True).float().clamp(min=SMALLEST_ROW) / LARGEST
    return (x / scale).to(torch.float8_e4m3fn), scale


def project(x: Tensor, residual: Tensor | None, layout: Layout, *tensors: Tensor) -> Tensor:
    """Project x (tokens, in) to (tokens, out) and add `residual`. tensors: a projection's, refreshed."""
    output: Tensor = _Project.apply(x, residual, layout, *tensors)
    return output


class _Project(torch.autograd.Function):
    """Takes the adapters' values as `first` and `second`; `adapters` only receive their gradients."""

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, residual: Tensor | None, layout: Layout, weight: Tensor, scale: Tensor,
        turned: Tensor, turned_scale: Tensor, first: Tensor, second: Tensor, *adapters: Tensor,
    ) -> Tensor:  # fmt: skip
        low = x @ first.t()
        ctx.layout = layout
        ctx.save_for_backward(x, low, turned, turned_scale, first, second)
        return _plus(_product(x, weight, scale), low, second.t(), residual)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Any, ...]:
        (gradient,) = gradients
        x, low, turned, turned_scale, first, second = ctx.saved_tensors
        by_low = gradient @ second
        by_x = _plus(_product(gradient, turned, turned_scale), by_low, first)
        found = adapter_gradients(ctx.layout, gradient, by_low, x, low)
        by_residual = gradient if ctx.needs_input_grad[1] else None
        return by_x, by_residual, *[None] * 7, *found


def _product(x: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
    """Multiply x (tokens, n) by weight (m, n), transposed. scale: (m, 1)."""
    x8, x_scale = rounded(x)
    return torch._scaled_mm(x8, weight.t(), x_scale, scale.t(), out_dtype=x.dtype, use_fast_accum=True)


def _plus(y: Tensor, a: Tensor, b: Tensor, residual: Tensor | None = None) -> Tensor:
    if y.is_cuda:
        return add_product(y, a, b, residual)
    return torch.addmm(y if residual is None else y + residual, a, b)
