"""The figures that an evaluation reports: name, unit, meaning and direction of each."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from trainer.judge.turns import turns_of
from trainer.objective import Objective, sft
from trainer.objective.score import Measure

GENERAL = Measure(
    "general_chat_loss",
    sft.SCORE.unit,
    "loss on the base model's own answers to general questions",
    lower_is_better=True,
)
FOLLOWUP = Measure(
    "followup_loss",
    sft.SCORE.unit,
    "loss on the same answers where the question follows a conversation",
    lower_is_better=True,
)
FOLLOWUP_TO_ALONE = Measure(
    "followup_loss_to_alone",
    sft.SCORE.unit,
    "the same, against the base model asked without the conversation",
    lower_is_better=True,
)
BENCHMARKS = tuple(
    Measure(task, "share of items", meaning, lower_is_better=False)
    for task, meaning in (
        ("ifeval", "IFEval: prompts whose instructions are all followed, strictly"),
        ("gsm8k", "GSM8K: sums whose last number is right, reasoning asked for"),
        ("arc_challenge", "ARC-Challenge: right choices, by length-normalised likelihood"),
        ("mmlu", "MMLU: right choices, by likelihood"),
    )
)


def measures(objective: Objective) -> Mapping[str, Measure]:
    """Return every measure by its name, the objective's first."""
    score = replace(objective.SCORE, meaning=f"{objective.SCORE.meaning} on held-out rows")
    return {
        measure.name: measure
        for measure in (score, objective.HITS, GENERAL, FOLLOWUP, FOLLOWUP_TO_ALONE, *BENCHMARKS)
    }


def title(metric: Mapping[str, Any], known: Mapping[str, Measure]) -> str:
    """Return the meaning and the unit of a metric of the manifest, and the turns that it is over."""
    turns = turns_of(metric)
    at = f" at {turns.name}" if turns else ""
    return f"{known[metric['name']].meaning}{at}, {metric['unit']}"
