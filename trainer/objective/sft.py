"""Objective `sft`: raise the likelihood of reference answers, packed; score rows by their loss.

The loss is the sum of NLL over the sum of target tokens, and never the Trainer's `eval_loss` (a mean
of batch means, huggingface/transformers#39241). A row is a hit if the model's own greedy answer is
the reference, token for token and ended: that is so if and only if the reference's every token is
the most likely one after those before it, so one forward pass shows it, and nothing is generated.

Each packed row's positions start again at 0 and there is no attention mask: transformers and Unsloth
read that as a border that attention does not cross. TRL packs, but its own switch stays off and the
collator is ours: Unsloth turns that switch off on a CPU, and puts a padding collator on labelled rows.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
from datasets import Dataset
from torch.nn import functional

from trainer.data.conversation import Conversation
from trainer.data.tokenize import IGNORED, ChatTokenizer, Rendered, TokenRow, answer_runs, turn_numbers
from trainer.engines import Engine
from trainer.objective.forward import batches, target_logits
from trainer.objective.score import Measure, RowScore

NAME = "sft"
METHOD = "on the answers' tokens"
SCORE = Measure(
    "loss",
    "nats a token",
    "token-weighted loss",
    lower_is_better=True,
    reading="A lower loss is a likelier reference answer.",
    beyond_a_seed=0.1,  # 14 standard deviations of a seed's noise where docs/sweep has most of it (0.007)
)
HITS = Measure(
    "exact_match",
    "share of answers",
    "held-out answers reproduced exactly, token for token, by greedy decoding",
    lower_is_better=False,
)
COLUMNS = ("input_ids", "labels", "top_ids", "top_logprobs")
LOSS_ROWS = 256  # target positions whose loss is computed at once: bounds the memory of logits in fp32


def rows(chat: ChatTokenizer, conversations: Sequence[Conversation]) -> list[Rendered]:
    """Tokenise conversations, with labels on every answer.

    Where the chat template renders earlier turns differently, each answer is a row.
    """
    return chat.rows(conversations)


def pack(rows: Dataset, length: int, together: bool = True) -> Dataset:
    """Pack rows, best fit decreasing, up to `length` tokens; each alone unless `together`.

    rows: with the columns of COLUMNS that they have. Returns those and `seq_lengths`, the lengths of the rows
    within.
    """
    from trl import pack_dataset  # takes seconds to import, and only training needs it

    kept = rows.select_columns([name for name in COLUMNS if name in rows.column_names])
    if together:
        return pack_dataset(kept, length, "bfd")
    return kept.add_column("seq_lengths", [[len(ids)] for ids in kept["input_ids"]])


def collate(packed: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Turn one packed row into (1, length) `input_ids`, `labels` and `position_ids`, and what an engine asks.

    target_positions: (targets,), where the next token is a target. seq_lengths: a list. Both are found here
    because asking a GPU for them would wait for all the work that it was given before. Where targets follow
    probabilities, top_targets: (n,), which targets; top_ids and top_logprobs: (n, most likely tokens).
    """
    (row,) = packed
    labels = torch.tensor(row["labels"])
    positions = [position for length in row["seq_lengths"] for position in range(length)]
    targets = (labels[1:] != IGNORED).nonzero()[:, 0]
    return {
        "input_ids": torch.tensor([row["input_ids"]]),
        "labels": labels[None],
        "position_ids": torch.tensor([positions]),
        "target_positions": targets,
        "seq_lengths": list(row["seq_lengths"]),
        **_probabilities(row, (targets + 1).tolist()),
    }


def _probabilities(row: dict[str, Any], places: list[int]) -> dict[str, Any]:
    """Return the tensors of the targets that follow probabilities, if any do."""
    following = [i for i, place in enumerate(places) if "top_ids" in row and row["top_ids"][place]]
    if not following:
        return {}
    return {
        "top_targets": torch.tensor(following),
        "top_ids": torch.tensor([row["top_ids"][places[i]] for i in following]),
        "top_logprobs": torch.tensor([row["top_logprobs"][places[i]] for i in following]),
    }


def loss(engine: Engine, model: Any, inputs: dict[str, Any], counted: Any) -> Any:
    """Return the loss of one packed row's targets over `counted`, the target tokens of the whole step.

    It is the NLL of a label, and KL(base || model) where a target follows the base's probabilities.
    """
    return engine.compute_loss(model, inputs, counted)


@torch.inference_mode()
def scores(model: Any, rows: Sequence[TokenRow], pad_id: int) -> list[RowScore]:
    """Score every row and each of its answers under a causal LM (bare or with an adapter), in order."""
    found: list[RowScore | None] = [None] * len(rows)
    model.eval()
    for indices in batches(rows):
        for i, score in zip(indices, _batch_scores(model, [rows[i] for i in indices], pad_id), strict=True):
            found[i] = score
    return [score for score in found if score is not None]


def _batch_scores(model: Any, rows: Sequence[TokenRow], pad_id: int) -> list[RowScore]:
    logits, targets = target_logits(model, rows, pad_id)
    nll, wrong = [], []
    for own, t in zip(logits.split(LOSS_ROWS), targets.split(LOSS_ROWS), strict=True):
        nll.append(functional.cross_entropy(own.float(), t, reduction="none"))
        wrong.append((own.argmax(-1) != t).float())
    # No token predicts the first one of a row, so it is no target.
    lengths = [[end - max(begin, 1) for begin, end in answer_runs(row.labels)] for row in rows]
    counts = list(itertools.chain(*lengths))
    owners = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts)).to(targets.device)
    zeros = torch.zeros(len(counts), device=targets.device)
    sums = zeros.index_add(0, owners, torch.cat(nll)).tolist()
    misses = zeros.index_add(0, owners, torch.cat(wrong)).tolist()
    answers = (RowScore(s, n, m == 0) for s, n, m in zip(sums, counts, misses, strict=True))
    return [
        RowScore.at(turn_numbers(row), list(itertools.islice(answers, len(own))))
        for row, own in zip(rows, lengths, strict=True)
    ]
