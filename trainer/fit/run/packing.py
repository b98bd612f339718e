"""Rows packed into one long row a step, kept apart by their positions.

Each row's positions start again at 0 and there is no attention mask: that is what transformers, and
Unsloth too, read as a border that attention does not cross. TRL packs, but its own switch stays off and
the collator is ours: Unsloth turns that switch off on a CPU, and puts a padding collator on labelled rows.
"""

from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from trl import pack_dataset

from trainer.data.tokenize import IGNORED


def pack(rows: Dataset, length: int) -> Dataset:
    """Best-fit-decreasing packing up to `length` tokens.

    rows: `input_ids` and `labels`. Returns those and `seq_lengths`, the lengths of the rows within.
    """
    return pack_dataset(rows.select_columns(["input_ids", "labels"]), length, "bfd")


def collate(packed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """One packed row to (1, length) `input_ids`, `labels` and `position_ids`, and what an engine would ask.

    target_positions: (targets,), where the next token is a target. seq_lengths: a list. Found here because a
    GPU that is asked for them must first finish all that it was told before.
    """
    (row,) = packed
    labels = torch.tensor(row["labels"])
    positions = [position for length in row["seq_lengths"] for position in range(length)]
    return {
        "input_ids": torch.tensor([row["input_ids"]]),
        "labels": labels[None],
        "position_ids": torch.tensor([positions]),
        "target_positions": (labels[1:] != IGNORED).nonzero()[:, 0],
        "seq_lengths": list(row["seq_lengths"]),
    }
