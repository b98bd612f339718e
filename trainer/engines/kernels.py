"""Two Triton kernels, for what cuBLAS and torch.compile do only with another pass through memory."""

import importlib.util
from typing import Any

import torch
from torch import Tensor

if importlib.util.find_spec("triton"):  # it comes with torch for CUDA
    import triton
    import triton.language as tl

    @triton.jit
    def _add_product(  # type: ignore[no-untyped-def]
        y, residual, a, b, rows, columns, ranks, a_row, a_rank, b_rank, b_column,
        RESIDUAL: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (column < columns)
        places = row.to(tl.int64) * columns + column
        total = tl.load(y + places, mask=inside).to(tl.float32)
        if RESIDUAL:
            total += tl.load(residual + places, mask=inside).to(tl.float32)
        for start in range(0, ranks, RANKS):
            rank = start + tl.arange(0, RANKS)
            left = tl.load(
                a + row * a_row + rank[None, :] * a_rank, mask=(row < rows) & (rank < ranks)[None, :], other=0
            )
            right = tl.load(
                b + rank[:, None] * b_rank + column * b_column,
                mask=(rank < ranks)[:, None] & (column < columns), other=0,
            )  # fmt: skip
            total = tl.dot(left, right, total)
        tl.store(y + places, total.to(y.dtype.element_ty), mask=inside)

    @triton.jit
    def _cross_entropy(logits, targets, losses, columns, BLOCK: tl.constexpr):  # type: ignore[no-untyped-def]
        row = tl.program_id(0).to(tl.int64)
        logits += row * columns
        target = tl.load(targets + row)
        at_target = tl.load(logits + target).to(tl.float32)
        largest, total = float("-inf"), 0.0
        for start in range(0, columns, BLOCK):
            place = start + tl.arange(0, BLOCK)
            x = tl.load(logits + place, mask=place < columns, other=float("-inf")).to(tl.float32)
            larger = tl.maximum(largest, tl.max(x, 0))
            total = total * tl.exp(largest - larger) + tl.sum(tl.exp(x - larger), 0)
            largest = larger
        log_sum = largest + tl.log(total)
        tl.store(losses + row, log_sum - at_target)
        for start in range(0, columns, BLOCK):
            place = start + tl.arange(0, BLOCK)
            x = tl.load(logits + place, mask=place < columns).to(tl.float32)
            gradient = tl.exp(x - log_sum) - tl.where(place == target, 1.0, 0.0)
            tl.store(logits + place, gradient.to(logits.dtype.element_ty), mask=place < columns)


def add_product(y: Tensor, a: Tensor, b: Tensor, residual: Tensor | None = None) -> Tensor:
    """Write y + a b + residual in place of y, for a narrow a, and return y.

    y, residual: (rows, columns), contiguous. a: (rows, ranks). b: (ranks, columns). The product is bound by
    reading and writing y, and cuBLAS would copy y first.
    """
    rows, columns = y.shape

    def blocks(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["ROWS"]), triton.cdiv(columns, meta["COLUMNS"])

    _add_product[blocks](
        y, a if residual is None else residual, a, b, rows, columns, a.shape[1], *a.stride(), *b.stride(),
        RESIDUAL=residual is not None, ROWS=128, COLUMNS=128, RANKS=32, num_warps=8,
    )  # fmt: skip
    return y


def cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the NLL of every row in fp32, and leave the gradient of their sum in place of the logits.

    logits: (rows, columns), contiguous. targets: (rows,). A row is read from memory once; the second pass
    finds it in the cache.
    """
    losses = torch.empty(len(logits), device=logits.device)
    _cross_entropy[(len(logits),)](logits, targets, losses, logits.shape[1], BLOCK=4096, num_warps=8)
    return losses
