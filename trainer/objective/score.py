"""The score of a row and what it means, shared by every objective and by all that read its results."""

import math
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Measure:
    """Describe what a figure measures.

    name: `loss`. unit: `nats a token`. meaning: a phrase for card and page. reading: what a better value
    says, as a sentence, where it is not plain. beyond_a_seed: a difference that a seed does not explain.
    """

    name: str
    unit: str
    meaning: str
    lower_is_better: bool
    reading: str = ""
    beyond_a_seed: float = math.inf

    @property
    def sign(self) -> int:
        """1 or -1: times this, a smaller value is a better one."""
        return 1 if self.lower_is_better else -1

    @property
    def best(self) -> str:
        """`lowest` or `highest`, the superlative of a better value."""
        return "lowest" if self.lower_is_better else "highest"


@dataclass(frozen=True, slots=True)
class RowScore:
    """The score of one row.

    total: summed over the row's `weight` units, such as NLL over its target tokens. hit: whether the model
    gets the row right, such as by reproducing the reference. turns: the score of the answer at each turn,
    None for an answer that is not measured; empty if they were not kept, as in a finished run.
    """

    total: float
    weight: int
    hit: bool
    turns: tuple["RowScore | None", ...] = ()

    @classmethod
    def of(cls, turns: Sequence["RowScore | None"]) -> "RowScore":
        """Return the score of answers together. It is a hit if every answer is one."""
        measured = [x for x in turns if x]
        total, weight = sum(x.total for x in measured), sum(x.weight for x in measured)
        return cls(total, weight, all(x.hit for x in measured), tuple(turns))

    @classmethod
    def at(cls, turns: Sequence[int], answers: Sequence["RowScore"]) -> "RowScore":
        """Return the score of answers together, each at its turn, from 1 and rising."""
        places: list[RowScore | None] = [None] * turns[-1]
        for turn, answer in zip(turns, answers, strict=True):
            places[turn - 1] = answer
        return cls.of(places)


def mean_score(scores: Sequence[RowScore]) -> float:
    """Return the score of all rows together: the sum of totals over the sum of weights."""
    return sum(x.total for x in scores) / sum(x.weight for x in scores)
