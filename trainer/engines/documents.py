"""Attention within the documents of one packed row: FlashAttention by lengths on a GPU, no mask anywhere."""

import inspect
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

# FlashAttention starts blocks for as many documents, each as long, as it is told there may be; where there
# are none, they cost time. A row with more, or longer ones, takes the next multiple and is compiled for.
PLACES, LONGEST = 64, 2048

CAUSAL: dict[str, Any] = {"window_size": (-1, 0)}
if "enable_gqa" in inspect.signature(varlen_attn).parameters:  # before torch 2.13 it does not ask
    CAUSAL["enable_gqa"] = True


@dataclass(frozen=True, slots=True)
class Documents:
    """positions: (length,). borders: int32, where each document starts, then the length to the end.

    longest: no document has more tokens.
    """

    positions: Tensor
    borders: Tensor
    longest: int


def documents(lengths: Sequence[int], length: int, device: torch.device) -> Documents:
    """Of these lengths, one after the other; what is missing to `length` is filled with documents."""
    whole, rest = divmod(length - sum(lengths), LONGEST)
    lengths = [*lengths, *[LONGEST] * whole, *[rest] * (rest > 0)]
    starts = [0, *itertools.accumulate(lengths)]
    places = starts + [length] * (-len(starts) % PLACES)
    borders = torch.tensor(places, dtype=torch.int32).to(device, non_blocking=True)
    starting = torch.repeat_interleave(
        borders[: len(lengths)], borders.diff()[: len(lengths)], output_size=length
    )
    positions = torch.arange(length, device=device) - starting
    return Documents(positions, borders, min(length, -(max(lengths) // -LONGEST) * LONGEST))


def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor, longest: int) -> Tensor:
    """Causal attention. query: (length, heads, width); key, value: (length, key heads, width)."""
    if query.is_cuda:
        found: Tensor = varlen_attn(query, key, value, borders, borders, longest, longest, **CAUSAL)
        return found
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    edges = borders.unique_consecutive().tolist()
    parts = [
        functional.scaled_dot_product_attention(
            query[start:end].transpose(0, 1)[None],
            key[start:end].transpose(0, 1)[None],
            value[start:end].transpose(0, 1)[None],
            is_causal=True,
        )
        for start, end in itertools.pairwise(edges)
    ]
    return torch.cat(parts, 2)[0].transpose(0, 1)
