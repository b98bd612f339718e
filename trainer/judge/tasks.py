"""The benchmarks that a profile may name, as lm-eval knows them, and what they need installed.

This module does not import lm-eval, so that a check before any work can report what is missing.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

PUNKT_PACKAGE = "llama-index-core"
PUNKT = "llama_index/core/_static/nltk_cache/tokenizers/punkt_tab/english"
# Rows in a batch. Choices need the logits of every position, answers only those of the last one.
CHOICE_ROWS, ANSWER_ROWS = 8, 32


@dataclass(frozen=True, slots=True)
class Task:
    """include: the task's file below lm-eval's `tasks`. split: where its data set holds the items.

    score, filter: which of its measures counts, 1 or 0 an item. changes: to the task's settings.
    """

    include: str
    dataset: str
    split: str
    score: str
    filter: str = "none"
    rows_at_once: int = CHOICE_ROWS
    changes: Mapping[str, Any] = field(default_factory=dict)


TASKS = {
    "ifeval": Task(
        "ifeval/ifeval.yaml", "google/IFEval", "train", "prompt_level_strict_acc",
        rows_at_once=ANSWER_ROWS,
    ),
    "gsm8k": Task(
        "gsm8k/gsm8k-cot-zeroshot.yaml", "openai/gsm8k", "test", "exact_match", "flexible-extract",
        ANSWER_ROWS,
        # lm-eval's 256 new tokens would cut a chat model's reasoning before its result.
        {"generation_kwargs": {"until": ["Q:"], "do_sample": False, "max_gen_toks": 512}},
    ),
    "arc_challenge": Task("arc/arc_challenge.yaml", "allenai/ai2_arc", "test", "acc_norm"),
    "mmlu": Task(
        "mmlu/default/_default_template_yaml", "cais/mmlu", "test", "acc",
        changes={"dataset_name": "all"},
    ),
}  # fmt: skip


def sentence_splitter() -> Path | None:
    """Return the folder of NLTK's English sentence splitter, which IFEval's checker needs, or None."""
    try:
        folder = Path(str(distribution(PUNKT_PACKAGE).locate_file(PUNKT)))
    except PackageNotFoundError:
        return None
    return folder if folder.is_dir() else None
