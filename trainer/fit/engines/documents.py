"""Attention within the documents of one packed row: FlashAttention by lengths on a GPU, no mask anywhere."""

import inspect
import itertools
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


def documents(positions: Tensor, length: int) -> Documents:
    """positions: (tokens,), from 0 in each document. What is missing to `length` is filled with documents."""
    filling = torch.arange(length - len(positions), device=positions.device) % LONGEST
    positions = torch.cat([positions, filling])
    starts = (positions == 0).nonzero()[:, 0].tolist()
    longest = max(end - start for start, end in itertools.pairwise([*starts, length]))
    places = [length] * (-(len(starts) + 1) // PLACES * -PLACES)
    places[: len(starts)] = starts
    borders = torch.tensor(places, dtype=torch.int32, device=positions.device)
    return Documents(positions, borders, min(length, -(longest // -LONGEST) * LONGEST))


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
