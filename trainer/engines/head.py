"""Compute the LM head and its loss in chunks of target positions, so that not all logits exist at once.

The forward pass computes the gradient of a chunk's hidden states while it has the chunk's logits, so the
backward pass needs none. The head is frozen.
"""

from typing import Any

import torch
from torch import Tensor

from trainer.engines.kernels import cross_entropy

CHUNK = 2048  # positions; half a gigabyte of bf16 logits at a vocabulary of 128,256


def head_loss(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
    """Return the sum of NLL in fp32. hidden: (n, width). weight: (vocabulary, width). targets: (n,)."""
    loss: Tensor = _HeadLoss.apply(hidden, weight, targets)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        total = torch.zeros((), device=hidden.device)
        gradient = torch.empty_like(hidden)
        for start in range(0, len(targets), CHUNK):
            part = slice(start, start + CHUNK)
            logits = hidden[part] @ weight.t()  # then the gradient in its place
            total += (cross_entropy if hidden.is_cuda else _cross_entropy)(logits, targets[part]).sum()
            torch.mm(logits, weight, out=gradient[part])
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (of_hidden,) = ctx.saved_tensors
        return of_hidden * gradients[0].to(of_hidden.dtype), None, None


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Do what `kernels.cross_entropy` does, on a CPU."""
    wide = logits.float()
    log_sum = wide.logsumexp(1, keepdim=True)
    losses = (log_sum - wide.gather(1, targets[:, None]))[:, 0]
    by_logits = (wide - log_sum).exp()
    by_logits.scatter_add_(1, targets[:, None], by_logits.new_full((len(targets), 1), -1.0))
    logits.copy_(by_logits)
    return losses
