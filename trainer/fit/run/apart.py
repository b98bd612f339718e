"""Find out whether a base keeps the rows of one packed sequence apart.

Positions that start again at 0 are the only border between packed rows. Attention does not cross it. A
recurrent state, a convolution or an attention that ignores positions does, and only a wrong loss shows it.
"""

from collections.abc import Sequence
from typing import Any

import torch

from trainer.data.tokenize import IGNORED
from trainer.engines import Engine
from trainer.objective import Objective

LENGTH = 16  # tokens of each row
TARGETS = 4  # a convolution reaches only the first tokens of the next row
TOLERANCE = 1e-6  # relative; the arithmetic is the same to the bit if the row before is not read
FIRST_ROWS = 3


def shares_positions_beyond(config: Any) -> int | None:
    """Return the length of a row from which on all rows of its sequence get other positions, or None.

    longrope (Phi 3 and 4) has two sets of frequencies, and transformers takes one for a whole sequence.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    longest: int | None = (
        rope["original_max_position_embeddings"] if rope.get("rope_type") == "longrope" else None
    )
    return longest


@torch.no_grad()
def rows_stay_apart(engine: Engine, objective: Objective, model: Any) -> bool:
    """Return whether a row's loss is the same after different rows of the same length in its sequence."""
    training = model.training
    model.eval()
    generator = torch.Generator().manual_seed(0)
    size = model.get_input_embeddings().weight.shape[0]
    rows = torch.randint(size, (FIRST_ROWS + 1, LENGTH), generator=generator).tolist()
    own = rows.pop()
    losses = [_loss(engine, objective, model, first, own) for first in rows]
    model.train(training)
    return max(losses) - min(losses) <= TOLERANCE * abs(max(losses))


def _loss(
    engine: Engine, objective: Objective, model: Any, first: Sequence[int], second: Sequence[int]
) -> float:
    """Return the loss of the second row's first tokens when both rows are packed into one sequence."""
    labels = [IGNORED] * (LENGTH + 1) + list(second[1 : TARGETS + 1])
    labels += [IGNORED] * (2 * LENGTH - len(labels))
    packed = {"input_ids": [*first, *second], "labels": labels, "seq_lengths": [LENGTH, LENGTH]}
    device = next(model.parameters()).device
    inputs = {
        name: value.to(device) if isinstance(value, torch.Tensor) else value
        for name, value in objective.collate([packed]).items()
    }
    return float(objective.loss(engine, model, inputs, torch.tensor(TARGETS, device=device)))
