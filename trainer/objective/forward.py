"""Forward passes over token rows, shared by objectives and by the merge check."""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.data.tokenize import IGNORED, TokenRow

BATCH_TOKENS = 2048


def target_logits(model: Any, rows: Sequence[TokenRow], pad_id: int) -> tuple[Any, Any]:
    """Return the logits that predict a target, and their targets, row after row.

    The model's own `forward` makes them, so they contain what a family does to its logits (scaling, soft
    caps, biases). Its LM head gets only the positions that predict a target.
    Returns: (n, vocabulary) logits in the model's dtype, (n,) token ids.
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
    targets = labels[:, 1:].to(device)
    chosen = targets != IGNORED
    head = model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, inputs: (inputs[0][:, :-1][chosen],))
    try:
        logits = model(input_ids=input_ids.to(device), attention_mask=mask.to(device), use_cache=False).logits
    finally:
        hook.remove()
    return logits, targets[chosen]


def batches(rows: Sequence[TokenRow]) -> list[list[int]]:
    """Return indices of rows of similar length, each batch within BATCH_TOKENS once padded."""
    made: list[list[int]] = []
    for i in sorted(range(len(rows)), key=lambda i: len(rows[i].input_ids)):
        width = len(rows[i].input_ids)
        if made and (len(made[-1]) + 1) * width <= BATCH_TOKENS:
            made[-1].append(i)
        else:
            made.append([i])
    return made
