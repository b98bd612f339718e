"""The gate `answers stop` counts answers that had room to end, and says how many it takes to know."""

import math
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support.trainer import row_of
from trainer.config import EvaluateConfig
from trainer.config_file import load
from trainer.data.tokenize import ChatTokenizer, TokenRow, answer_runs
from trainer.errors import DataError
from trainer.generation import Answer, generate
from trainer.judge import answers as judge_answers
from trainer.judge.answers import answer
from trainer.judge.endings import MOST_WRITTEN, Endings, fitting, needed, require_endings
from trainer.objective import sft
from trainer.objective.score import RowScore

STOP = 2  # <|im_end|> of the tests' tokenizer


def config(**more: Any) -> EvaluateConfig:
    return EvaluateConfig(max_new_tokens=8, max_general_loss_increase=1.0, **more)


@pytest.fixture
def rows(tokenizer: PreTrainedTokenizerFast) -> list[TokenRow]:
    """60 rows; the answers of every fourth do not fit into 8 tokens, one byte a token."""
    texts = [("longer than it" if i % 4 == 0 else f"a{i}") for i in range(60)]
    return [row_of(tokenizer, (f"Question {i}?", text)) for i, text in enumerate(texts)]


def scored(rows: list[TokenRow], exact: int = 0) -> list[RowScore]:
    return [
        RowScore.of([RowScore(1.0, 1, i < exact)] * len(answer_runs(r.labels))) for i, r in enumerate(rows)
    ]


def replayed(rows: list[TokenRow], endings: Endings, room: int) -> list[Answer]:
    """The answers of a model that answers exactly as the references do, cut where the room ends."""
    whole = [rows[place.row].input_ids[place.begin : place.end] for place in endings.asked]
    return [Answer(ids[:room], STOP in ids[:room]) for ids in whole]


def test_a_model_that_answers_as_the_references_do_passes_however_long_they_are(rows: list[TokenRow]) -> None:
    """Every fourth answer is cut at the room, so a count over all of them would refuse this model."""
    made = Endings.of(config(), rows, scored(rows), [STOP])
    assert (made.others, made.left_out, len(made.asked)) == (45, 15, 29)
    gate = made.gate(config(), replayed(rows, made, 8))
    assert gate["passed"] is True
    assert gate["detail"] == (
        "100% of 45 answers end by themselves, at least 90% must: 29 of 29 that it wrote ended and 0 were "
        "cut at 8 tokens; 15 with a longer reference do not count"
    )


def test_a_model_that_ends_four_answers_of_five_does_not_pass(rows: list[TokenRow]) -> None:
    made = Endings.of(config(), rows, scored(rows), [STOP])
    written = [Answer([1] * 8, i % 5 != 0) for i in range(len(made.asked))]
    gate = made.gate(config(), written)
    assert gate["passed"] is False
    assert "79% of 45" in gate["detail"] and "23 of 29 that it wrote ended and 6 were cut" in gate["detail"]


def test_an_exact_answer_is_known_to_end_and_is_not_written(rows: list[TokenRow]) -> None:
    made = Endings.of(config(), rows, scored(rows, exact=48), [STOP])
    assert (made.exact, made.others) == (36, 9)
    assert all(place.row >= 48 for place in made.asked)
    assert len(made.asked) == needed(0.9, 36 / 45) == 5
    none_ends = made.gate(config(), [Answer([1] * 8, False)] * 5)
    assert none_ends["passed"] is False, "exact answers do not hide that the others run on"
    assert "80% of 45" in none_ends["detail"] and "36 are their reference" in none_ends["detail"]
    assert made.gate(config(), replayed(rows, made, 8))["passed"] is True


def test_an_exact_answer_that_ends_by_no_stop_token_is_written(rows: list[TokenRow]) -> None:
    assert Endings.of(config(), rows, scored(rows, exact=60), [99]).exact == 0
    assert Endings.of(config(), rows, scored(rows, exact=60), []).exact == 0


def test_enough_exact_answers_leave_nothing_to_write(rows: list[TokenRow]) -> None:
    made = Endings.of(config(), rows, scored(rows, exact=57), [STOP])
    assert made.asked == [] and made.gate(config(), [])["passed"] is True


def test_a_limit_of_written_answers_is_stated_with_how_many_it_would_take(rows: list[TokenRow]) -> None:
    limited = config(stop_samples=3)
    made = Endings.of(limited, rows, scored(rows), [STOP])
    detail = made.gate(limited, replayed(rows, made, 8))["detail"]
    assert "3 of 3 that it wrote ended" in detail and detail.endswith("29 written ones would show it")


@pytest.mark.parametrize("share", [0.5, 0.8, 0.9, 0.95, 0.99])
@pytest.mark.parametrize("exact", [0.0, 0.3, 0.45])
def test_the_number_is_the_smallest_that_shows_the_share_with_95_percent(share: float, exact: float) -> None:
    """A model whose share lies just under the bar ends all of them in one case of twenty at most."""
    count, under = needed(share, exact), (share - exact) / (1 - exact)
    assert under**count <= 0.05 + 1e-12 < under ** (count - 1)


def test_the_numbers_of_common_shares() -> None:
    assert [needed(share) for share in (0, 0.8, 0.9, 0.95, 0.99, 1)] == [0, 14, 29, 59, 299, MOST_WRITTEN]
    assert needed(0.9, exact=0.9) == 0 and needed(1, exact=0.5) == MOST_WRITTEN


def test_the_last_answers_of_all_rows_come_first(tokenizer: PreTrainedTokenizerFast) -> None:
    """One answer a row is independent of the others, and a later turn is harder to end."""
    rows = [row_of(tokenizer, ("A?", "a"), ("B?", "b")), row_of(tokenizer, ("C?", "c"))]
    places = fitting(rows, room=8)
    assert [place.row for place in places] == [0, 1, 0]
    assert places[0].begin > places[2].begin


def test_the_shown_samples_and_the_counted_answers_are_one_batch(
    monkeypatch: pytest.MonkeyPatch,
    tiny_model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    rows: list[TokenRow],
) -> None:
    made = Endings.of(config(), rows, scored(rows), [STOP])
    batches: list[int] = []

    def counted(model: Any, prompts: Any, *more: Any, **named: Any) -> list[Answer]:
        batches.append(len(prompts))
        made: list[Answer] = generate(model, prompts, *more, **named)
        return made

    monkeypatch.setattr(judge_answers, "generate", counted)
    chat = ChatTokenizer(tokenizer)
    both = answer(tiny_model, chat, config(samples=3), rows, [["Hello?"]], made.asked)
    assert batches == [30, 1], "rows 1 and 2 are shown and counted, row 0 is shown and does not fit"
    assert both.written[:2] == both.samples[1:] and len(both.written) == 29
    alone = answer(tiny_model, chat, config(samples=3), rows, [["Hello?"]])
    assert alone.samples == both.samples and alone.written == []


def test_a_room_that_no_reference_fits_is_refused_before_anything_is_trained(rows: list[TokenRow]) -> None:
    require_endings(rows, config())
    small = EvaluateConfig(max_new_tokens=2, max_general_loss_increase=1.0)
    with pytest.raises(DataError) as caught:
        require_endings(rows, small)
    assert str(caught.value) == (
        "evaluate.max_new_tokens is 2, but the shortest answer of the 60 test rows has 3 tokens, so the gate "
        "`answers stop` would refuse any model: raise it to 3 or more"
    )
    made = Endings.of(small, rows, scored(rows), [STOP])
    assert made.gate(small, [])["passed"] is False
    require_endings(rows, small.model_copy(update={"min_stopped": 0.0}))


def test_real_scores_know_which_answers_end(
    tiny_model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast
) -> None:
    """An answer that the model itself wrote is a hit, and is counted without being written again."""
    prompt = row_of(tokenizer, ("One?", "x"))
    begin = answer_runs(prompt.labels)[-1][0]
    (own,) = generate(tiny_model, [prompt.input_ids[:begin]], 0, 400)
    ids = [*prompt.input_ids[:begin], *own.token_ids]
    row = TokenRow(ids, [-100] * begin + own.token_ids, "One?")
    stops = {own.token_ids[-1]}
    made = Endings.of(
        EvaluateConfig(max_new_tokens=400, max_general_loss_increase=1.0),
        [row, prompt],
        sft.scores(tiny_model, [row, prompt], 0),
        stops,
    )
    assert (made.exact, made.others) == (1, 1)


@pytest.mark.parametrize("profile", ["llama-3.2-1b", "llama-3.2-3b", "t4-qlora"])
def test_the_llama_profiles_write_as_many_answers_as_show_their_share(profile: str) -> None:
    evaluate = load(Path("trainer/configs") / f"{profile}.yaml").evaluate
    assert evaluate.stop_samples is None and needed(evaluate.min_stopped) == 29
    assert math.isclose(evaluate.min_stopped, 0.9)
