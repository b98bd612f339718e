"""Forward passes over token rows, shared by objectives and by the merge check."""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.data.tokenize import IGNORED, TokenRow

BATCH_TOKENS = 2048


def target_hidden(model: Any, rows: Sequence[TokenRow], pad_id: int) -> tuple[Any, Any]:
    """Return the hidden states that predict a target, and their targets, row after row.

    Returns: (n, hidden) states, (n,) token ids.
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
    return hidden[:, :-1][chosen], targets[chosen]


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
