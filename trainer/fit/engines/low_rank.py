"""y += a b for a narrow a, in place: what cuBLAS does by way of a copy of y.

The product is bound by reading and writing y, so the copy would double its time.
"""

from typing import Any

import torch
from torch import Tensor

if torch.cuda.is_available():  # Triton comes with torch for CUDA only
    import triton
    import triton.language as tl

    @triton.jit
    def _add_product(
        y, a, b, rows, columns, ranks, a_row, a_rank, b_rank, b_column,
        ROWS: tl.constexpr, COLUMNS: tl.constexpr, RANKS: tl.constexpr,
    ):  # fmt: skip
        row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
        column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)[None, :]
        inside = (row < rows) & (column < columns)
        places = y + row.to(tl.int64) * columns + column
        total = tl.load(places, mask=inside).to(tl.float32)
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
        tl.store(places, total.to(y.dtype.element_ty), mask=inside)


def add_product(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """y (rows, columns), contiguous, plus a (rows, ranks) times b (ranks, columns); y itself on a GPU."""
    if not y.is_cuda:
        return torch.addmm(y, a, b)
    rows, columns = y.shape

    def blocks(meta: dict[str, Any]) -> tuple[int, int]:
        return triton.cdiv(rows, meta["ROWS"]), triton.cdiv(columns, meta["COLUMNS"])

    _add_product[blocks](
        y, a, b, rows, columns, a.shape[1], *a.stride(), *b.stride(),
        ROWS=128, COLUMNS=128, RANKS=32, num_warps=8,
    )  # fmt: skip
    return y
