"""Stage `evaluate`: the shipped weights against the base, on rows never trained on, and the gates.

Measures the loss and the share of exact answers on the test rows, and the loss on general chat, for
both models with paired intervals; then lets both answer a few test prompts and a fixed list of general
ones, and runs the benchmarks. Here a gate is measured; `gates` decides what a failed one means. It
judges the directory that would be served, not the adapter it came from.
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
from trainer.fit.choose.intervals import exact_interval, loss_interval
from trainer.generation import Answer, generate
from trainer.judge.benchmarks import compare
from trainer.objective.loss import RowLoss, mean_loss, row_losses


@dataclass(frozen=True, slots=True)
class _Measured:
    test: list[RowLoss]
    general: list[RowLoss]
    answers: list[Answer]
    side_by_side: list[Answer]


def evaluate(
    config: EvaluateConfig,
    base: Path,
    shipped: Path,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    dtype: str,
    device: str,
) -> tuple[dict[str, Any], dict[str, list[dict[str, Any]]]]:
    """Measure both models, each loaded in `dtype`, and apply the gates.

    Returns the manifest's `evaluation`, and the answers of both: `samples` (prompt, reference, base,
    tuned) and `side_by_side` (prompt, base, tuned).

    Raises: DataError if the prompts cannot be read. MissingError if a benchmark cannot be run.
    """
    chat = ChatTokenizer(load_tokenizer(base))
    prompts = read_prompts(config.prompts, "evaluate.prompts")
    asked = [chat.prompt_ids([Message("user", prompt)]) for prompt in prompts]
    before, after = (
        _measure(config, load_model(directory, dtype, device), test, general, asked, chat.pad_id)
        for directory in (base, shipped)
    )
    metrics = [
        _metric("loss", "test", "nats a token", loss_interval, before.test, after.test),
        _metric("exact_match", "test", "share of answers", exact_interval, before.test, after.test),
    ]
    if general:
        metrics.append(
            _metric(
                "general_chat_loss",
                "general",
                "nats a token",
                loss_interval,
                before.general,
                after.general,
            )
        )
    more_metrics, more_gates = compare(config.benchmarks, base, shipped, dtype, device)
    gates = _gates(config, before, after) + more_gates
    summary = {
        "passed": all(g["passed"] for g in gates), "metrics": metrics + more_metrics, "gates": gates,
    }  # fmt: skip
    return summary, {
        "samples": _samples(test, before.answers, after.answers, chat),
        "side_by_side": [
            {"prompt": prompt, "base": _text(chat, one.token_ids), "tuned": _text(chat, other.token_ids)}
            for prompt, one, other in zip(prompts, before.side_by_side, after.side_by_side, strict=True)
        ],
    }


def prompt_of(row: TokenRow) -> list[int]:
    """The ids up to the row's last answer."""
    return row.input_ids[: _last_answer(row)]


def _measure(
    config: EvaluateConfig,
    model: Any,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    asked: Sequence[Sequence[int]],
    pad_id: int,
) -> _Measured:
    prompts = [prompt_of(row) for row in test[: config.samples]]
    return _Measured(
        row_losses(model, test, pad_id),
        row_losses(model, general, pad_id),
        generate(model, prompts, pad_id, config.max_new_tokens),
        generate(model, asked, pad_id, config.prompt_tokens),
    )


def _gates(config: EvaluateConfig, before: _Measured, after: _Measured) -> list[dict[str, Any]]:
    stopped = sum(a.stopped for a in after.answers) / len(after.answers)
    gates = [
        _gate("test loss", mean_loss(after.test) - mean_loss(before.test), config.max_loss_increase),
        {
            "name": "answers stop",
            "passed": stopped >= config.min_stopped,
            "detail": f"{stopped:.0%} of {len(after.answers)} ended by themselves, at least "
            f"{config.min_stopped:.0%} must",
        },
    ]
    if after.general:
        change = mean_loss(after.general) - mean_loss(before.general)
        gates.append(_gate("general chat loss", change, config.max_general_loss_increase))
    return gates


def _gate(name: str, change: float, allowed: float) -> dict[str, Any]:
    detail = f"{change:+.4f} nats a token against the base, at most {allowed:+.4f} allowed"
    return {"name": name, "passed": change <= allowed, "detail": detail}


def _metric(
    name: str, split: str, unit: str, interval: Any, base: list[RowLoss], tuned: list[RowLoss]
) -> dict[str, Any]:
    return {
        "name": name,
        "split": split,
        "unit": unit,
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
