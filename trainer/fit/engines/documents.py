"""Attention within the documents of one packed row: FlashAttention by lengths on a GPU, no mask anywhere."""

import itertools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

PLACES = 512  # documents in a row; a row of more takes the next multiple, which compiles once more


@dataclass(frozen=True, slots=True)
class Documents:
    """positions: (length,). borders: int32, where each document starts, then the length to the end."""

    positions: Tensor
    borders: Tensor


def documents(positions: Tensor, length: int) -> Documents:
    """positions: (tokens,), from 0 in each document. What is missing to `length` is one more document."""
    missing = length - len(positions)
    if missing:
        filling = torch.arange(missing, device=positions.device, dtype=positions.dtype)
        positions = torch.cat([positions, filling])
    starts = (positions == 0).nonzero()[:, 0].int()
    places = PLACES * (len(starts) // PLACES + 1)
    borders = torch.full((places,), length, dtype=torch.int32, device=positions.device)
    borders[: len(starts)] = starts
    return Documents(positions, borders)


def attend(query: Tensor, key: Tensor, value: Tensor, borders: Tensor) -> Tensor:
    """Causal attention. query: (length, heads, width); key, value: (length, key heads, width)."""
    length, groups = len(query), query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    if query.is_cuda:
        found: Tensor = varlen_attn(query, key, value, borders, borders, length, length, window_size=(-1, 0))
        return found
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
