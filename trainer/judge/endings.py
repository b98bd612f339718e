"""Measure how many of the tuned model's answers to test questions end by themselves: the gate `answers stop`.

An answer counts if its reference fits into `evaluate.max_new_tokens`: the answer to another question is cut
however good the model is. An answer that is its reference, token for token, ends as that does, which the
scores show without generation. The others are written out, as many as it takes.

How many: if all of k answers end, the share of those that end is `p` or more with confidence 95% where
p**k <= 0.05 (Clopper and Pearson 1934). So 29 answers show 90%, and fewer if some are known to be exact.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from trainer.config import EvaluateConfig
from trainer.data.tokenize import TokenRow, answer_runs
from trainer.errors import DataError
from trainer.generation import Answer
from trainer.objective.score import RowScore

DOUBT = 0.05  # one-sided
ROUNDING = 1e-9
MOST_WRITTEN = 299  # what shows 99%; nothing shows 100%


@dataclass(frozen=True, slots=True)
class Place:
    """One answer of a test row: its row, and where its tokens begin and end."""

    row: int
    begin: int
    end: int


@dataclass(frozen=True, slots=True)
class Endings:
    """Of the answers that count: exact, which are known to end; others; asked, the others to write out.

    left_out: answers whose reference does not fit. wanted: how many have to be written to show the share.
    """

    exact: int
    others: int
    asked: list[Place]
    left_out: int
    wanted: int

    @classmethod
    def of(
        cls,
        config: EvaluateConfig,
        rows: Sequence[TokenRow],
        scores: Sequence[RowScore],
        stops: Collection[int],
    ) -> "Endings":
        """Choose the answers to write out.

        scores: of the test rows; a hit is an answer equal to its reference. stops: the model's tokens that
        end an answer; without any no answer is known to end.
        """
        counted = fitting(rows, config.max_new_tokens)
        exact = _exact(rows, scores, stops)
        others = [place for place in counted if place not in exact]
        known = len(counted) - len(others)
        wanted = needed(config.min_stopped, known / len(counted)) if counted else 0
        limit = wanted if config.stop_samples is None else min(wanted, config.stop_samples)
        everything = sum(len(answer_runs(row.labels)) for row in rows)
        return cls(known, len(others), others[:limit], everything - len(counted), wanted)

    def gate(self, config: EvaluateConfig, written: Sequence[Answer]) -> dict[str, Any]:
        """Return the gate. written: the answers `asked`. If no answer counts, only a share of 0 passes."""
        counted, stopped = self.exact + self.others, sum(answer.stopped for answer in written)
        ended = stopped / len(written) if written else 0.0
        share = (self.exact + self.others * ended) / counted if counted else 0.0
        cut = f"{len(written) - stopped} were cut at {config.max_new_tokens} tokens"
        parts = [
            f"{self.exact} are their reference" if self.exact else "",
            f"{stopped} of {len(written)} that it wrote ended and {cut}",
            f"{self.left_out} with a longer reference do not count" if self.left_out else "",
            f"{self.wanted} written ones would show it" if len(written) < self.wanted else "",
        ]
        return {
            "name": "answers stop",
            "passed": share >= config.min_stopped - ROUNDING,
            "detail": f"{share:.0%} of {counted} answers end by themselves, at least "
            f"{config.min_stopped:.0%} must: {'; '.join(filter(None, parts))}",
        }


def fitting(rows: Sequence[TokenRow], room: int) -> list[Place]:
    """Return the answers whose reference has at most `room` tokens: every row's last, then those before."""
    places = [[Place(i, *run) for run in reversed(answer_runs(row.labels))] for i, row in enumerate(rows)]
    longest = max(map(len, places), default=0)
    ordered = [row[back] for back in range(longest) for row in places if back < len(row)]
    return [place for place in ordered if place.end - place.begin <= room]


def needed(min_stopped: float, exact: float = 0.0) -> int:
    """Return how many answers must be written so that they show `min_stopped`, if all of them end.

    exact: the share of answers that are known to end. Only the rest is written.
    """
    if exact >= min_stopped:
        return 0
    may_fail = (1 - min_stopped) / (1 - exact)
    return min(MOST_WRITTEN, math.ceil(math.log(DOUBT) / math.log1p(-may_fail))) if may_fail else MOST_WRITTEN


def require_endings(rows: Sequence[TokenRow], config: EvaluateConfig) -> None:
    """Check that some answer counts for the gate, before anything is trained. Raises: DataError."""
    if config.min_stopped and not fitting(rows, config.max_new_tokens):
        shortest = min(end - begin for row in rows for begin, end in answer_runs(row.labels))
        raise DataError(
            f"evaluate.max_new_tokens is {config.max_new_tokens}, but the shortest answer of the {len(rows)} "
            f"test rows has {shortest} tokens, so the gate `answers stop` would refuse any model: raise it "
            f"to {shortest} or more"
        )


def few_endings(rows: Sequence[TokenRow], config: EvaluateConfig) -> str:
    """Return the sentence for test rows whose answers are too few to show the share, or an empty text."""
    counted, wanted = len(fitting(rows, config.max_new_tokens)), needed(config.min_stopped)
    if counted >= wanted:
        return ""
    return (
        f"the gate `answers stop` has {counted} test answers to count, and it takes {wanted} to show "
        f"{config.min_stopped:.0%}"
    )


def _exact(rows: Sequence[TokenRow], scores: Sequence[RowScore], stops: Collection[int]) -> set[Place]:
    """Return the answers that the model gives as their reference, if that ends by a stop token."""
    return {
        Place(i, *run)
        for i, (row, score) in enumerate(zip(rows, scores, strict=True))
        for run, answer in zip(answer_runs(row.labels), filter(None, score.turns), strict=True)
        if answer.hit and row.input_ids[run[1] - 1] in stops
    }
