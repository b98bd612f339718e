"""Attend within the documents of one packed row: FlashAttention by lengths on a GPU, without any mask."""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

# FlashAttention launches blocks for the given maximum of documents and length, and empty blocks cost time.
# A row with more or longer documents takes the next multiple, which is compiled separately.
PLACES, LONGEST = 64, 2048

GROUPED: dict[str, Any] = {}
if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # new in torch 2.13
    GROUPED["enable_gqa"] = True


@dataclass(frozen=True, slots=True)
class Documents:
    """positions: (length,), 0 in what fills the row. borders: int32, the documents' starts, then the length.

    longest: no document has more tokens.
    """

    positions: Tensor
    borders: Tensor
    longest: int


def documents(lengths: Sequence[int], length: int, device: torch.device) -> Documents:
    """Return documents of `lengths` in sequence, and more of them to fill the row up to `length`."""
    used = sum(lengths)
    whole, rest = divmod(length - used, LONGEST)
    lengths = [*lengths, *[LONGEST] * whole, *[rest] * (rest > 0)]
    starts = [0, *itertools.accumulate(lengths)]
    places = starts + [length] * (-len(starts) % PLACES)
    borders = torch.tensor(places, dtype=torch.int32).to(device, non_blocking=True)
    starting = torch.repeat_interleave(
        borders[: len(lengths)], borders.diff()[: len(lengths)], output_size=length
    )
    positions = torch.arange(length, device=device) - starting
    positions[used:] = 0  # some rotary positions depend on the largest
    return Documents(positions, borders, min(length, -(max(lengths) // -LONGEST) * LONGEST))


def attend(
    query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int, scale: float, window: int | None
) -> Tensor:
    """Compute causal attention within documents.

    query: (length, heads, width); key, value: (length, key heads, width). scale: factor of the scores.
    window: how many tokens a token sees, itself included; None for all before it.
    """
    if query.is_cuda:
        seen = (-1 if window is None else window - 1, 0)
        found: Tensor = varlen_attn(
            query, key, value, borders, borders, longest, longest, scale=scale, window_size=seen, **GROUPED
        )
        return found
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    edges = borders.unique_consecutive().tolist()
    masks = [_mask(end - start, window) for start, end in itertools.pairwise(edges)]
    parts = [
        functional.scaled_dot_product_attention(
            query[start:end].transpose(0, 1)[None],
            key[start:end].transpose(0, 1)[None],
            value[start:end].transpose(0, 1)[None],
            attn_mask=mask,
            is_causal=mask is None,
            scale=scale,
        )
        for (start, end), mask in zip(itertools.pairwise(edges), masks, strict=True)
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1)


def _mask(length: int, window: int | None) -> Tensor | None:
    """Return (length, length), whether a token of a document sees another; None for all before it."""
    if window is None or window >= length:
        return None
    distance = torch.arange(length)[:, None] - torch.arange(length)
    return (distance >= 0) & (distance < window)
