"""Token-weighted loss and exactness of answers, kept per row for the bootstrap.

The loss is the sum of NLL over the sum of target tokens, and never the Trainer's `eval_loss` (a mean
of batch means, huggingface/transformers#39241). A row is exact if the model's own greedy answer is
the reference, token for token and ended: that is so if and only if the reference's every token is
the most likely one after those before it, so one forward pass tells, and nothing is generated.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from trainer.data.tokenize import IGNORED, TokenRow

BATCH_TOKENS = 2048
HEAD_ROWS = 256  # target positions through the LM head at once: bounds memory at large vocabularies


@dataclass(frozen=True, slots=True)
class RowLoss:
    """nll: summed over the row's target tokens, in nats. exact: greedy decoding gives the targets."""

    nll: float
    tokens: int
    exact: bool


def mean_loss(losses: Sequence[RowLoss]) -> float:
    """Nats a target token over all rows."""
    return sum(x.nll for x in losses) / sum(x.tokens for x in losses)


@torch.inference_mode()
def row_losses(model: Any, rows: Sequence[TokenRow], pad_id: int) -> list[RowLoss]:
    """Loss of every row under a causal LM (bare or with an adapter), in the rows' order."""
    losses: list[RowLoss | None] = [None] * len(rows)
    model.eval()
    for indices in batches(rows):
        for i, loss in zip(indices, _batch_losses(model, [rows[i] for i in indices], pad_id), strict=True):
            losses[i] = loss
    return [loss for loss in losses if loss is not None]


def target_hidden(model: Any, rows: Sequence[TokenRow], pad_id: int) -> tuple[Any, Any, Any]:
    """Hidden states that predict a target, their targets and their rows.

    Returns: (n, hidden) states, (n,) token ids, (n,) row indices.
    """
    width = max(len(row.input_ids) for row in rows)
    device = next(model.parameters()).device
    input_ids = torch.full((len(rows), width), pad_id)
    labels = torch.full((len(rows), width), IGNORED)
    mask = torch.zeros((len(rows), width), dtype=torch.long)
    for i, row in enumerate(rows):
        length = len(row.input_ids)
        input_ids[i, :length] = torch.tensor(row.input_ids)
        labels[i, :length] = torch.tensor(row.labels)
        mask[i, :length] = 1
    hidden = model.get_decoder()(
        input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False
    ).last_hidden_state
    targets = labels[:, 1:].to(device)
    chosen = targets != IGNORED
    return hidden[:, :-1][chosen], targets[chosen], chosen.nonzero()[:, 0]


def _batch_losses(model: Any, rows: Sequence[TokenRow], pad_id: int) -> list[RowLoss]:
    hidden, targets, owners = target_hidden(model, rows, pad_id)
    nll, wrong = [], []
    for h, t in zip(hidden.split(HEAD_ROWS), targets.split(HEAD_ROWS), strict=True):
        logits = model.get_output_embeddings()(h).float()
        nll.append(functional.cross_entropy(logits, t, reduction="none"))
        wrong.append((logits.argmax(-1) != t).float())
    zeros = torch.zeros(len(rows), device=owners.device)
    sums = zeros.index_add(0, owners, torch.cat(nll)).tolist()
    misses = zeros.index_add(0, owners, torch.cat(wrong)).tolist()
    counts = torch.bincount(owners, minlength=len(rows)).tolist()
    return [RowLoss(s, n, m == 0) for s, n, m in zip(sums, counts, misses, strict=True)]


def batches(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Indices of rows of like length, each batch within BATCH_TOKENS once padded."""
    made: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids)):
        width = len(rows[i].input_ids)
        if made and (len(made[-1]) + 1) * width <= BATCH_TOKENS:
            made[-1].append(i)
        else:
            made.append([i])
    return made
