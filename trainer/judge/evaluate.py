"""Stage `evaluate`: compare the shipped weights with the base on rows never trained on, and gate them.

Measures the objective's score and hits on the test rows, whole and by turn, and the loss on general chat,
alone and after a conversation, for both models with paired intervals; then lets both answer prompts, and runs
the benchmarks. This module measures gates; `gates` decides what a failed one means. The evaluation reads the
directory that would be served, not the adapter it came from.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import torch

from trainer.base_model import load_model, load_tokenizer
from trainer.config import EvaluateConfig
from trainer.data.prompts import read_conversations
from trainer.data.tokenize import ChatTokenizer, TokenRow
from trainer.fit.choose.intervals import hit_interval, score_interval
from trainer.generation import stop_ids
from trainer.judge.answers import (
    Answers,
    answer,
    first_question,
    samples,
    side_by_side,
)
from trainer.judge.benchmarks import compare
from trainer.judge.endings import Endings
from trainer.judge.measures import FOLLOWUP, FOLLOWUP_TO_ALONE, GENERAL
from trainer.judge.turns import Turns, measured_turns
from trainer.objective import Objective, sft
from trainer.objective.score import Measure, RowScore, mean_score

SMALL_BYTES = 2**30  # of weights; two such models fit into a laptop's memory
EXAMPLES = 3  # prompts for a page to offer: two of the task and a general one where the model has a task


@dataclass(frozen=True, slots=True)
class _Measured:
    """test: scored by the objective. general, followup: the loss of the base's own answers in any case.

    endings: how the answers to the test rows end, as far as `answers` and the scores show it.
    """

    test: list[RowScore]
    general: list[RowScore]
    followup: list[RowScore]
    answers: Answers
    endings: Endings


def evaluate(
    config: EvaluateConfig,
    objective: Objective,
    base: Path,
    shipped: Path,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    followup: Sequence[TokenRow],
    dtype: str,
    device: str,
) -> tuple[dict[str, Any], dict[str, list[Any]]]:
    """Measure both models, each loaded in `dtype`, and apply the gates.

    followup: the prompts and answers of `general`, in its order, each after a conversation; or none.
    Returns the manifest's `evaluation`, and the answers of both: `samples` and `side_by_side`. Next to them
    `examples`, prompts for a page to offer.

    Raises: DataError if the prompts cannot be read. MissingError if a benchmark cannot be run.
    """
    chat = ChatTokenizer(load_tokenizer(shipped))  # with the template that the rows were rendered with
    conversations = read_conversations(config.prompts, "evaluate.prompts")
    before, after = _both(
        lambda directory: (load_model(directory, dtype, device), directory == shipped),
        lambda loaded: _measure(
            config, objective, loaded[0], loaded[1], chat, test, general, followup, conversations
        ),
        base,
        shipped,
        at_once=device == "cpu",
    )
    turns = measured_turns(before.test, config.turns)
    more_metrics, more_gates = compare(config.benchmarks, base, shipped, dtype, device)
    gates = _gates(config, objective.SCORE, objective.HITS, turns, before, after) + more_gates
    summary = {
        "passed": all(g["passed"] for g in gates),
        "metrics": _metrics(objective, turns, before, after) + more_metrics,
        "gates": gates,
    }
    return summary, {
        "samples": samples(test, before.answers, after.answers, chat),
        "side_by_side": side_by_side(conversations, before.answers, after.answers),
        "examples": examples(
            test,
            after.test,
            [row.question for row in general] or [questions[0] for questions in conversations],
            first_question,
        ),
    }


def examples(
    test: Sequence[TokenRow],
    scores: Sequence[RowScore],
    general: Sequence[str],
    asked: Callable[[TokenRow], str],
) -> list[str]:
    """Return prompts that the tuned model answers well: first questions it gets right, then general ones.

    scores: the tuned model's of the test rows. asked: gives a row's first question. Open-ended answers are
    seldom reproduced, so a general assistant gets general prompts.
    """
    right = (bool(score.turns[0] and score.turns[0].hit) if score.turns else score.hit for score in scores)
    solved = [row for row, hit in zip(test, right, strict=True) if hit]
    return [*map(asked, solved[: EXAMPLES - 1]), *general][:EXAMPLES]


def _both(
    load: Callable[[Path], Any],
    measure: Callable[[Any], _Measured],
    base: Path,
    shipped: Path,
    at_once: bool,
) -> tuple[_Measured, _Measured]:
    """Measure both models. at_once: share the threads, if the models are small.

    Decoding keeps one core busy, whatever the number of threads.
    """
    if not at_once or sum(file.stat().st_size for file in base.glob("*.safetensors")) > SMALL_BYTES:
        return measure(load(base)), measure(load(shipped))
    models = load(base), load(shipped)  # transformers loads one at a time
    threads = torch.get_num_threads()
    before: Future[_Measured] = Future()

    def measure_base() -> None:
        torch.set_num_threads(max(1, threads // 2))
        try:
            before.set_result(measure(models[0]))
        except BaseException as error:
            before.set_exception(error)

    Thread(target=measure_base, daemon=True).start()  # daemon: Ctrl-C does not wait for it
    torch.set_num_threads(max(1, threads // 2))
    try:
        after = measure(models[1])
        return before.result(), after
    finally:
        torch.set_num_threads(threads)


def _measure(
    config: EvaluateConfig,
    objective: Objective,
    model: Any,
    tuned: bool,
    chat: ChatTokenizer,
    test: Sequence[TokenRow],
    general: Sequence[TokenRow],
    followup: Sequence[TokenRow],
    conversations: Sequence[Sequence[str]],
) -> _Measured:
    scores = objective.scores(model, test, chat.pad_id)
    endings = Endings.of(config, test, scores, stop_ids(model) if objective.HITS is sft.HITS else ())
    return _Measured(
        scores,
        sft.scores(model, general, chat.pad_id),
        sft.scores(model, followup, chat.pad_id),
        answer(model, chat, config, test, conversations, endings.asked if tuned else ()),
        endings,
    )


def _metrics(
    objective: Objective, turns: Sequence[Turns], before: _Measured, after: _Measured
) -> list[dict[str, Any]]:
    own = ((objective.SCORE, score_interval), (objective.HITS, hit_interval))
    metrics = [_metric(measure, "test", interval, before.test, after.test) for measure, interval in own]
    metrics += [
        _metric(measure, "test", interval, turn.of(before.test), turn.of(after.test)) | turn.as_dict()
        for measure, interval in own
        for turn in turns
    ]
    if before.general:
        metrics.append(_metric(GENERAL, "general", score_interval, before.general, after.general))
    if before.followup:
        metrics += [
            _metric(FOLLOWUP, "followup", score_interval, before.followup, after.followup),
            _metric(FOLLOWUP_TO_ALONE, "followup", score_interval, before.general, after.followup),
        ]
    return metrics


def _gates(
    config: EvaluateConfig,
    score: Measure,
    hits: Measure,
    turns: Sequence[Turns],
    before: _Measured,
    after: _Measured,
) -> list[dict[str, Any]]:
    allowed, allowed_general = config.max_loss_increase, config.max_general_loss_increase
    gates = [
        _gate("test", score, before.test, after.test, allowed),
        *(_gate(turn.name, score, turn.of(before.test), turn.of(after.test), allowed) for turn in turns),
        after.endings.gate(config, after.answers.written),
    ]
    if config.max_turn_drop is not None:
        gates += [_turn_gate(hits, turns[0], turn, after.test, config.max_turn_drop) for turn in turns[1:]]
    for rows, base, tuned in (
        ("general chat", before.general, after.general),
        ("general chat after a conversation", before.followup, after.followup),
    ):
        if base:
            gates.append(_gate(rows, sft.SCORE, base, tuned, allowed_general))
    return gates


def _turn_gate(
    hits: Measure, first: Turns, later: Turns, tuned: list[RowScore], allowed: float
) -> dict[str, Any]:
    """Pass only if a later turn has at most `allowed` fewer hits than the first.

    The base gets next to nothing exactly at any turn, so a comparison with it cannot show such a drop.
    """
    shares = [hit_interval(turn.of(tuned)).value for turn in (first, later)]
    return {
        "name": f"{later.name} {hits.name}",
        "passed": shares[0] - shares[1] <= allowed,
        "detail": f"{shares[1]:.2f}, and {shares[0]:.2f} at {first.name}; {allowed:.2f} less is allowed",
    }


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
