"""Every answer is measured at its turn, and a model that is bad only at a later one does not pass."""

from dataclasses import replace

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.trainer import row_of
from trainer.data.conversation import Message
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow, answer_runs
from trainer.generation import generate
from trainer.objective import sft
from trainer.objective.score import RowScore


def only_answer(row: TokenRow, number: int) -> TokenRow:
    """The row with labels on this answer alone."""
    begin, end = answer_runs(row.labels)[number]
    labels = [label if begin <= place < end else IGNORED for place, label in enumerate(row.labels)]
    return replace(row, labels=labels)


def test_a_row_of_two_answers_scores_as_two_turns_and_their_sum_is_the_row(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    rows = [
        row_of(tokenizer, ("One?", "first"), ("Two?", "the second answer")),
        row_of(tokenizer, ("A longer question of one turn?", "x")),
        row_of(tokenizer, ("A?", "b"), ("C?", "d"), ("E?", "f")),
    ]
    scores = sft.scores(tiny_model, rows, pad_id=0)
    assert [len(score.turns) for score in scores] == [2, 1, 3]
    for row, score in zip(rows, scores, strict=True):
        alone = [only_answer(row, number) for number in range(len(score.turns))]
        for turn, other in zip(score.turns, sft.scores(tiny_model, alone, pad_id=0), strict=True):
            assert turn.total == pytest.approx(other.total, rel=1e-5) and turn.weight == other.weight
        assert score.total == sum(turn.total for turn in score.turns)
        assert score.weight == sum(turn.weight for turn in score.turns)
        assert score.weight == sum(label != IGNORED for label in row.labels)


def test_a_row_is_a_hit_only_if_every_answer_is_one(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    row = row_of(tokenizer, ("One?", "first"))
    asked = row.input_ids + ChatTokenizer(tokenizer).prompt_ids([Message("user", "Two?")])
    (answer,) = generate(tiny_model, [asked], pad_id=0, max_new_tokens=4)
    labels = row.labels + [IGNORED] * (len(asked) - len(row.labels))
    longer = TokenRow(asked + answer.token_ids, labels + answer.token_ids, "Two?")
    (score,) = sft.scores(tiny_model, [longer], pad_id=0)
    assert [turn.hit for turn in score.turns] == [False, True] and not score.hit
    assert RowScore.of(score.turns[1:]).hit
