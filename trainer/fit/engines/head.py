"""The LM head and its loss, in chunks of target positions: their logits never exist all at once.

The gradient of a chunk's hidden states is found while its logits are there, so the backward pass needs
no logits. The head is frozen.
"""

import functools
from typing import Any

import torch
from torch import Tensor

CHUNK = 2048  # positions; half a gigabyte of bf16 logits at a vocabulary of 128,256


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Sum of NLL, in fp32. hidden: (n, width). weight: (vocabulary, width), frozen. targets: (n,)."""
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        of_chunk = _compiled() if hidden.is_cuda else _chunk
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            loss, by_logits = of_chunk(hidden[part] @ weight.t(), targets[part])
            total += loss
            torch.mm(by_logits, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradients[0].to(of_hidden.dtype), None, None


def _chunk(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Loss, and its gradient by the logits, in their dtype."""
    wide = logits.float()
    log_sum = wide.logsumexp(1, keepdim=True)
    loss = (log_sum[:, 0] - wide.gather(1, targets[:, None])[:, 0]).sum()
    hit = torch.arange(wide.shape[1], device=wide.device) == targets[:, None]
    return loss, ((wide - log_sum).exp() - hit.float()).to(logits.dtype)


@functools.cache
def _compiled() -> Any:
    return torch.compile(_chunk, dynamic=True)
