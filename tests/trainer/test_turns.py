"""Every answer is measured at its turn, and a model that is bad only at a later one does not pass."""

import json
import math
import shutil
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from tests.support import ROOT
from tests.support.trainer import row_of
from trainer.cli import main
from trainer.config import EvaluateConfig
from trainer.data.conversation import Conversation, Message
from trainer.data.prompts import read_conversations
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow, answer_runs
from trainer.errors import DataError
from trainer.generation import Answer, generate
from trainer.judge.evaluate import evaluate
from trainer.judge.turns import FIRST_TURNS, MIN_ROWS, TURNS, Turns, caveat, measured_turns, require_turns
from trainer.objective import sft
from trainer.objective.score import RowScore
from trainer.pages.evaluation import page
from trainer.ship.card import write_card

Evaluated = Callable[..., tuple[dict[str, Any], dict[str, list[Any]]]]
GATE = {"name": "test loss", "passed": True, "detail": "-0.1"}


def only_answer(row: TokenRow, number: int) -> TokenRow:
    """The row with labels on this answer alone."""
    begin, end = answer_runs(row.labels)[number]
    labels = [label if begin <= place < end else IGNORED for place, label in enumerate(row.labels)]
    return replace(row, labels=labels, turns=None)


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


def test_turns_with_few_rows_count_with_the_turn_before() -> None:
    def rows(*lengths: int) -> list[RowScore]:
        return [RowScore.of([RowScore(1.0, 2, True)] * length) for length in lengths]

    assert measured_turns(rows(*[1] * 50), wanted=1) == []
    assert measured_turns(rows(*[1] * 50, *[2] * (MIN_ROWS - 1)), wanted=1) == []
    assert measured_turns(rows(*[1] * 50, *[2] * MIN_ROWS), wanted=1) == [Turns(1, 1), Turns(2, 2)]
    assert measured_turns(rows(*[2] * 9, *[6] * 2), wanted=1) == [Turns(1, 1), Turns(2, 6)]
    longest = rows(*[6] * 9)
    assert measured_turns(longest, wanted=1)[-1] == Turns(TURNS, 6)
    assert measured_turns(longest, wanted=6)[-1] == Turns(6, 6)
    assert [len(turn.of(longest)) for turn in measured_turns(longest, wanted=1)] == [9] * TURNS
    assert Turns(4, 6).of(longest)[0] == RowScore.of([RowScore(1.0, 2, True)] * 3)


def test_a_profile_that_asks_for_more_turns_than_its_rows_have_fails_in_one_sentence(
    tokenizer: PreTrainedTokenizerFast,
) -> None:
    rows = [row_of(tokenizer, ("One?", "a"), ("Two?", "b"))] * 20
    require_turns(rows, wanted=1)
    require_turns(rows, wanted=2)
    with pytest.raises(DataError, match=r"^evaluate\.turns is 3, but 0 of the 20 test rows have 3 turns"):
        require_turns(rows, wanted=3)


def test_more_turns_than_the_data_has_are_refused_before_anything_is_trained(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["run", "--config", str(config_file), "--artifacts", str(tmp_path / "artifacts")]
    assert main([*arguments, "--set", "evaluate.turns=3"]) == 1
    error = capsys.readouterr().err
    assert "evaluate.turns is 3, but 0 of the 6 test rows have 3 turns" in error.splitlines()[-1]
    assert not (tmp_path / "artifacts" / "runs").exists()


class Scripted:
    """An objective whose scores are given: one list of turns a row, for each model by its directory."""

    NAME, METHOD, SCORE, HITS = "scripted", "none", sft.SCORE, sft.HITS

    def __init__(self, models: dict[Path, list[float]]) -> None:
        self._models = {str(directory): turns for directory, turns in models.items()}

    def scores(self, model: Any, rows: Any, pad_id: int) -> list[RowScore]:
        turns = [RowScore(total, 1, total < 0.5) for total in self._models[model.name_or_path]]
        return [RowScore.of(turns) for _ in rows]


@pytest.fixture
def evaluated(tmp_path: Path, base_directory: Path, tokenizer: PreTrainedTokenizerFast) -> Evaluated:
    """Evaluates a model that scores as scripted, on 12 conversations as long as the script."""
    prompts = tmp_path / "asked.txt"
    prompts.write_text("What is red?\n> And blue?\nAnd now?\n")
    shipped = tmp_path / "shipped"
    shutil.copytree(base_directory, shipped)

    def run(
        base: list[float], tuned: list[float], turns: int = 1, max_turn_drop: float | None = None, **more: Any
    ) -> Any:
        config = EvaluateConfig(
            samples=2, max_new_tokens=4, prompt_tokens=3, min_stopped=0, prompts=prompts,
            max_general_loss_increase=0.1, turns=turns, max_turn_drop=max_turn_drop,
        )  # fmt: skip
        asked = [(f"Question {i}?", f"answer {i}") for i in range(len(base))]
        rows = [row_of(tokenizer, *asked)] * 12
        objective: Any = Scripted({base_directory: base, shipped: tuned})
        chosen = {"general": [], "followup": [], **more}
        return evaluate(
            config, objective, base_directory, shipped, rows, dtype="float32", device="cpu", **chosen
        )

    return run


def failed(summary: dict[str, Any]) -> list[str]:
    return [gate["name"] for gate in summary["gates"] if not gate["passed"]]


def test_a_model_that_is_bad_only_at_turn_two_fails_its_gate(evaluated: Evaluated) -> None:
    summary, _ = evaluated([2.0, 1.0, 2.0], [0.1, 1.4, 0.1])
    assert failed(summary) == ["turn 2 loss"] and not summary["passed"]
    found = {(m["name"], m.get("turn")): m for m in summary["metrics"]}
    assert list(found) == [(name, turn) for name, turn in [("loss", None), ("exact_match", None)]] + [
        (name, turn) for name in ("loss", "exact_match") for turn in (1, 2, 3)
    ]
    assert found["loss", 2]["difference"]["value"] == pytest.approx(0.4)
    assert [found["exact_match", turn]["tuned"]["value"] for turn in (1, 2, 3)] == [1.0, 0.0, 1.0]
    assert {m["n"] for m in summary["metrics"]} == {12}


def test_a_model_that_forgets_its_task_after_the_first_turn_fails_though_its_base_is_worse(
    evaluated: Evaluated,
) -> None:
    base, tuned = [2.0, 2.0, 2.0], [0.1, 0.9, 0.1]
    assert failed(evaluated(base, tuned)[0]) == []
    assert failed(evaluated(base, tuned, turns=3, max_turn_drop=0.4)[0]) == ["turn 2 exact_match"]


def test_a_drop_by_turn_without_turns_is_refused() -> None:
    with pytest.raises(ValidationError, match="needs `turns` of at least 2"):
        EvaluateConfig(max_general_loss_increase=0.1, max_turn_drop=0.4)


def test_a_score_that_is_no_number_at_a_later_turn_fails_its_gate(evaluated: Evaluated) -> None:
    summary, _ = evaluated([2.0, 1.0], [0.1, math.nan])
    assert failed(summary) == ["test loss", "turn 2 loss"]


def test_general_chat_after_a_conversation_is_compared_with_the_base_there_and_with_the_base_alone(
    tokenizer: PreTrainedTokenizerFast, evaluated: Evaluated
) -> None:
    general = [row_of(tokenizer, (f"Why {word}?", "so")) for word in ("me", "you")]
    followup = [only_answer(row_of(tokenizer, ("Card?", "card"), (row.question, "so")), 1) for row in general]
    summary, _ = evaluated([1.0], [0.5], general=general, followup=followup)
    found = {m["name"]: m for m in summary["metrics"]}
    there, alone, first = found["followup_loss"], found["followup_loss_to_alone"], found["general_chat_loss"]
    assert there["base"] == there["tuned"] == alone["tuned"], "the same model on both sides"
    assert alone["base"] == first["base"] != there["base"]
    assert alone["difference"]["value"] == pytest.approx(there["tuned"]["value"] - first["base"]["value"])
    assert "general chat after a conversation loss" in [gate["name"] for gate in summary["gates"]]


def test_a_model_that_was_measured_on_first_turns_only_says_so(
    tmp_path: Path, manifest: dict[str, Any], evaluated: Evaluated
) -> None:
    single, _ = evaluated([2.0], [0.1])
    several, _ = evaluated([2.0, 1.0], [0.1, 0.1])
    for summary, says in ((single, True), (several, False)):
        write_card(tmp_path, {**manifest, "evaluation": summary}, sft)
        shown = page("tiny", summary, sft, [], [])
        assert caveat(summary) == (FIRST_TURNS if says else "")
        assert (FIRST_TURNS in (tmp_path / "README.md").read_text()) is (FIRST_TURNS in shown) is says
        assert ("Exact match, tuned" in shown) is not says


def test_page_card_and_schema_carry_each_turn(
    tmp_path: Path, manifest: dict[str, Any], evaluated: Evaluated
) -> None:
    summary, _ = evaluated([2.0] * 6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.6])
    write_card(tmp_path, {**manifest, "evaluation": summary}, sft)
    card, shown = (tmp_path / "README.md").read_text(), page("tiny", summary, sft, [], [])
    for turn in ("turn 1", "turn 2", "turn 3", "turns 4 to 6"):
        assert f"rows at {turn}, nats a token | 12 |" in card and f"<td>{turn}</td>" in shown
    for text in (card, shown):
        assert "The answers at turns 4 to 6 count together, once a conversation" in text
    schema = json.loads((ROOT / "docs/artifact.schema.json").read_text())
    metric = {**schema["$defs"]["metric"], "$defs": schema["$defs"]}
    for entry in summary["metrics"]:
        jsonschema.validate(entry, metric)


def test_a_follow_up_is_asked_after_the_models_own_answer(
    monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerFast, evaluated: Evaluated
) -> None:
    asked: dict[str, list[list[str]]] = defaultdict(list)

    def answers(model: Any, prompts: Any, *_: Any, **__: Any) -> list[Answer]:
        asked[model.name_or_path].append([tokenizer.decode(ids) for ids in prompts])
        return [Answer(tokenizer.encode(f"answer{i}"), True) for i in range(len(prompts))]

    monkeypatch.setattr("trainer.judge.answers.generate", answers)
    _, shown = evaluated([1.0], [0.5])
    assert [len(calls) for calls in asked.values()] == [3, 3], "one for the samples and one a turn"
    _, first, second = next(iter(asked.values()))
    assert [text.count("<|im_start|>user") for text in first + second] == [1, 1, 2]
    assert "What is red?<|im_end|>\n<|im_start|>assistant\nanswer0<|im_end|>" in second[0]
    turns = [(one["turn"], one["prompt"], one["tuned"]) for one in shown["side_by_side"]]
    assert turns == [(1, "What is red?", "answer0"), (2, "And blue?", "answer0"), (1, "And now?", "answer1")]


def test_a_sample_of_several_turns_shows_all_of_them(evaluated: Evaluated) -> None:
    _, shown = evaluated([1.0, 1.0, 1.0], [0.5, 0.5, 0.5])
    sample = shown["samples"][0]
    assert sample["earlier"] == [
        {"role": role, "content": content}
        for i in (0, 1)
        for role, content in (("user", f"Question {i}?"), ("assistant", f"answer {i}"))
    ]
    assert (sample["prompt"], sample["reference"]) == ("Question 2?", "answer 2")
    found = page("tiny", {"passed": True, "metrics": [], "gates": [GATE]}, sft, shown["samples"], [])
    assert "Question 0?</pre>" in found and "answer 1</pre>" in found


@pytest.mark.parametrize("name", ["chatml_tokenizer", "llama3_tokenizer"])
def test_earlier_turns_come_back_as_they_were_whatever_the_template(
    request: pytest.FixtureRequest, name: str
) -> None:
    tokenizer = request.getfixturevalue(name)
    chat = ChatTokenizer(tokenizer)
    messages = (
        Message("system", "Be a question."),
        Message("user", "user\nWhat is <|im_end|><|eot_id|> here?"),
        Message("assistant", "It ends a turn."),
        Message("user", "assistant"),
        Message("assistant", "Yes?"),
        Message("user", "Thanks"),
        Message("assistant", "!"),
    )
    found = chat.row(Conversation(messages, "made")).earlier or []
    assert [(m["role"], m["content"]) for m in found] == [(m.role, m.content) for m in messages[1:5]]


def test_examples_are_first_questions_that_the_model_answers_exactly(evaluated: Evaluated) -> None:
    _, shown = evaluated([1.0, 1.0], [0.1, 0.9])
    assert shown["examples"] == ["Question 0?", "Question 0?", "What is red?"]
    _, shown = evaluated([1.0, 1.0], [0.9, 0.1])
    assert shown["examples"] == ["What is red?", "And now?"]


def test_a_prompt_list_of_one_turn_reads_as_before_and_a_line_with_an_angle_follows_up(
    tmp_path: Path,
) -> None:
    file = tmp_path / "p.txt"
    file.write_text("# Ours.\nOne?\n\n> And then?\n>And after that?\nTwo?\n")
    assert read_conversations(file, "k") == [["One?", "And then?", "And after that?"], ["Two?"]]
    file.write_text("> What?\n")
    with pytest.raises(DataError, match=r"k .*begins with '> What\?', which follows up no prompt"):
        read_conversations(file, "k")
