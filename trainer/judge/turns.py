"""Measure test rows by the turn of the conversation: which turns have enough rows, and what they scored.

Rows are independent within a turn, so each turn has its own intervals. The last turn that has its own figures
stands for those after it too, where few conversations are longer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.data.tokenize import TokenRow, turn_numbers
from trainer.errors import DataError
from trainer.objective.score import RowScore

MIN_ROWS = 8  # fewer rows say nothing about a turn
TURNS = 4  # turns with figures of their own, unless the profile asks for more

FIRST_TURNS = (
    f"Only first answers were measured: fewer than {MIN_ROWS} test rows have a second one. How the model "
    "answers a second question in the same chat is not known."
)


@dataclass(frozen=True, slots=True)
class Turns:
    """The turns of a conversation that have figures of their own: one, or the last ones together."""

    first: int
    last: int

    @property
    def name(self) -> str:
        return f"turn {self.first}" if self.first == self.last else f"turns {self.first} to {self.last}"

    def of(self, rows: Sequence[RowScore]) -> list[RowScore]:
        """Return the scores at these turns, one a row in which one of them was measured."""
        answers = ([x for x in row.turns[self.first - 1 : self.last] if x] for row in rows)
        return [RowScore.of(own) for own in answers if own]

    def as_dict(self) -> dict[str, int]:
        """Return what the manifest states of a metric."""
        return {"turn": self.first} | ({"last_turn": self.last} if self.last > self.first else {})


def turns_of(metric: Mapping[str, Any]) -> Turns | None:
    """Return the turns of a metric of the manifest, or None if it is over whole rows."""
    first = metric.get("turn")
    return Turns(first, metric.get("last_turn", first)) if first else None


def name_of(metric: Mapping[str, Any]) -> str:
    """Return `loss`, or `loss, turn 2`."""
    turns = turns_of(metric)
    return f"{metric['name']}, {turns.name}" if turns else str(metric["name"])


def measured_turns(rows: Sequence[RowScore], wanted: int) -> list[Turns]:
    """Return the turns that have figures of their own, from the first; none if only first turns have.

    wanted: `evaluate.turns`.
    """
    measured = [[turn for turn, score in enumerate(row.turns, 1) if score] for row in rows]
    longest = max((len(row.turns) for row in rows), default=0)
    own = [turn for turn in range(1, max(TURNS, wanted) + 1) if _with_turn(measured, turn) >= MIN_ROWS]
    ends = [*(turn - 1 for turn in own[1:]), longest]
    return (
        [Turns(first, last) for first, last in zip(own, ends, strict=False)]
        if max(own, default=1) > 1
        else []
    )


def require_turns(rows: Sequence[TokenRow], wanted: int) -> None:
    """Check that the test rows can measure `wanted` turns, before anything is trained. Raises: DataError."""
    found = _with_turn([turn_numbers(row) for row in rows], wanted)
    if wanted > 1 and found < MIN_ROWS:
        raise DataError(
            f"evaluate.turns is {wanted}, but {found} of the {len(rows)} test rows have {wanted} turns "
            f"or more, expected at least {MIN_ROWS}: lower it, or use more test rows or longer conversations"
        )


def caveat(evaluation: Mapping[str, Any]) -> str:
    """Return the sentence for page, card and console if only first turns were measured, or an empty text."""
    return "" if any(turns_of(metric) for metric in evaluation["metrics"]) else FIRST_TURNS


def _with_turn(measured: Sequence[Sequence[int]], turn: int) -> int:
    """Return in how many rows the answer at a turn is measured."""
    return sum(turn in turns for turns in measured)
