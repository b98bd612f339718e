"""Stage `evaluate`: compare the shipped weights with the base on rows never trained on, and gate them.

Measures the objective's score and hits on the test rows, and the loss on general chat, for both models
with paired intervals; then lets both answer a few test prompts and a fixed list of general ones, and
runs the benchmarks. This module measures gates; `gates` decides what a failed one means. The evaluation
reads the directory that would be served, not the adapter it came from.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_model import load_model, load_tokenizer
from trainer.config import EvaluateConfig
from trainer.data.conversation import Message
from trainer.data.general import read_prompts
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow
from trainer.fit.choose.intervals import hit_interval, score_interval
from trainer.generation import Answer, generate
from trainer.judge.benchmarks import compare
from trainer.judge.measures import GENERAL
from trainer.objective import Objective, sft
from trainer.objective.score import Measure, RowScore, mean_score

EXAMPLES = 3  # prompts for a page to offer: two of the task and a general one where the model has a task


@dataclass(frozen=True, slots=True)
class _Measured:
    """test: scored by the objective. general: the loss of the base's own answers, whatever the objective."""

    test: list[RowScore]
    general: list[RowScore]
    answers: list[Answer]
    side_by_side: list[Answer]


def evaluate(
    config: EvaluateConfig,
    objective: Objective,
    base: Path,
    shipped: Path,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    dtype: str,
    device: str,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Measure both models, each loaded in `dtype`, and apply the gates.

    Returns the manifest's `evaluation`, and the answers of both: `samples` (prompt, reference, base,
    tuned) and `side_by_side` (prompt, base, tuned). Next to them `examples`, prompts for a page to offer.

    Raises: DataError if the prompts cannot be read. MissingError if a benchmark cannot be run.
    """
    chat = ChatTokenizer(load_tokenizer(base))
    prompts = read_prompts(config.prompts, "evaluate.prompts")
    asked = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts]
    before, after = (
        _measure(config, objective, load_model(directory, dtype, device), test, general, asked, chat.pad_id)
        for directory in (base, shipped)
    )
    metrics = [
        _metric(objective.SCORE, "test", score_interval, before.test, after.test),
        _metric(objective.HITS, "test", hit_interval, before.test, after.test),
    ]
    if general:
        metrics.append(_metric(GENERAL, "general", score_interval, before.general, after.general))
    more_metrics, more_gates = compare(config.benchmarks, base, shipped, dtype, device)
    gates = _gates(config, objective.SCORE, before, after) + more_gates
    summary = {
        "passed": all(g["passed"] for g in gates), "metrics": metrics + more_metrics, "gates": gates,
    }  # fmt: skip
    return summary, {
        "samples": _samples(test, before.answers, after.answers, chat),
        "side_by_side": [
            {"prompt": prompt, "base": _text(chat, one.token_ids), "tuned": _text(chat, other.token_ids)}
            for prompt, one, other in zip(prompts, before.side_by_side, after.side_by_side, strict=True)
        ],
        "examples": examples(test, after.test, [row.question for row in general] or prompts),
    }


def examples(test: Sequence[TokenRow], scores: Sequence[RowScore], general: Sequence[str]) -> list[str]:
    """Return prompts that the tuned model answers well: test rows that it gets right, then general ones.

    scores: the tuned model's of the test rows. Open-ended answers are seldom reproduced, so a general
    assistant gets general prompts.
    """
    solved = [row.question for row, score in zip(test, scores, strict=True) if score.hit]
    return [*solved[: EXAMPLES - 1], *general][:EXAMPLES]


def prompt_of(row: TokenRow) -> list[int]:
    """Return the ids up to the row's last answer."""
    return row.input_ids[: _last_answer(row)]


def _measure(
    config: EvaluateConfig,
    objective: Objective,
    model: Any,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    asked: Sequence[Sequence[int]],
    pad_id: int,
) -> _Measured:
    prompts = [prompt_of(row) for row in test[: config.samples]]
    return _Measured(
        objective.scores(model, test, pad_id),
        sft.scores(model, general, pad_id),
        generate(model, prompts, pad_id, config.max_new_tokens),
        generate(model, asked, pad_id, config.prompt_tokens),
    )


def _gates(
    config: EvaluateConfig, score: Measure, before: _Measured, after: _Measured
) -> list[dict[str, Any]]:
    stopped = sum(a.stopped for a in after.answers) / len(after.answers)
    gates = [
        _gate("test", score, before.test, after.test, config.max_loss_increase),
        {
            "name": "answers stop",
            "passed": stopped >= config.min_stopped,
            "detail": f"{stopped:.0%} of {len(after.answers)} ended by themselves, at least "
            f"{config.min_stopped:.0%} must",
        },
    ]
    if after.general:
        allowed = config.max_general_loss_increase
        gates.append(_gate("general chat", sft.SCORE, before.general, after.general, allowed))
    return gates


def _gate(
    rows: str, measure: Measure, base: list[RowScore], tuned: list[RowScore], allowed: float
) -> dict[str, Any]:
    """Pass only if the score is worse than the base's by at most `allowed`; NaN fails."""
    change = mean_score(tuned) - mean_score(base)
    limit = f"at most {allowed:+.4f}" if measure.lower_is_better else f"at least {-allowed:+.4f}"
    return {
        "name": f"{rows} {measure.name}",
        "passed": measure.sign * change <= allowed,
        "detail": f"{change:+.4f} {measure.unit} against the base, {limit} allowed",
    }


def _metric(
    measure: Measure, split: str, interval: Any, base: list[RowScore], tuned: list[RowScore]
) -> dict[str, Any]:
    return {
        "name": measure.name,
        "split": split,
        "unit": measure.unit,
        "n": len(base),
        "base": interval(base).as_dict(),
        "tuned": interval(tuned).as_dict(),
        "difference": interval(tuned, minus=base).as_dict(),
    }


def _samples(
    rows: Sequence[TokenRow], before: Sequence[Answer], after: Sequence[Answer], chat: ChatTokenizer
) -> list[dict[str, Any]]:
    return [
        {
            "prompt": row.question,
            "reference": _text(chat, row.input_ids[_last_answer(row) :]),
            "base": _text(chat, base.token_ids),
            "tuned": _text(chat, tuned.token_ids),
        }
        for row, base, tuned in zip(rows, before, after, strict=False)
    ]


def _text(chat: ChatTokenizer, ids: Sequence[int]) -> str:
    return str(chat.tokenizer.decode(ids, skip_special_tokens=True)).rstrip("\n")


def _last_answer(row: TokenRow) -> int:
    """Where the last run of labels begins."""
    learned = [label != IGNORED for label in row.labels]
    last = len(learned) - 1 - learned[::-1].index(True)
    while last > 0 and learned[last - 1]:
        last -= 1
    return last
