"""A gate passes only if its condition is true: NaN, an unknown value and an empty list do not pass."""

import math
from operator import attrgetter
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch

from trainer.config import BenchmarkConfig
from trainer.data.tokenize import TokenRow
from trainer.errors import DataError, GateError
from trainer.judge.benchmarks import gate_of
from trainer.judge.evaluate import SMALL_BYTES, _both, _gate, examples
from trainer.judge.gates import failed_gates, shippable
from trainer.objective import sft
from trainer.objective.score import Measure, RowScore

MARGIN = Measure("margin", "nats a pair", "mean margin", lower_is_better=False)


def scores(total: float) -> list[RowScore]:
    return [RowScore(total, 2, False), RowScore(0.0, 2, True)]


@pytest.mark.parametrize("base, tuned", [(1.0, math.nan), (math.nan, 1.0), (math.inf, math.inf)])
def test_a_score_that_is_no_number_fails_its_gate(base: float, tuned: float) -> None:
    for measure in (sft.SCORE, MARGIN):
        assert _gate("test", measure, scores(base), scores(tuned), allowed=100.0)["passed"] is False


def test_a_gate_knows_in_which_direction_its_score_is_better() -> None:
    worse, better = scores(1.0), scores(2.0)
    assert _gate("test", sft.SCORE, worse, better, 0.0)["passed"] is False
    assert _gate("test", MARGIN, worse, better, 0.0)["passed"] is True
    made = _gate("test", MARGIN, better, worse, 0.1)
    assert (made["name"], made["passed"]) == ("test margin", False)
    assert made["detail"] == "-0.2500 nats a pair against the base, at least -0.1000 allowed"


def test_a_benchmark_whose_change_is_no_number_fails_its_gate() -> None:
    metric = {
        "n": 2, "difference": {"value": math.nan}, "benchmark": {"informative": True},
    }  # fmt: skip
    assert gate_of(BenchmarkConfig(task="mmlu", max_drop=1.0), metric)["passed"] is False


@pytest.mark.parametrize("passed", [False, None, math.nan, "yes", 1])
def test_a_gate_that_is_not_true_has_failed(passed: object) -> None:
    evaluation = {"gates": [{"name": "test loss", "passed": passed, "detail": "d"}]}
    assert failed_gates(evaluation) == ["test loss: d"]
    with pytest.raises(GateError, match="tiny is not shipped and `current` stays: test loss: d"):
        shippable(evaluation, "tiny", ship_despite=False, details=Path("page.html"))


def test_an_evaluation_without_gates_ships_nothing() -> None:
    with pytest.raises(GateError, match="has no gates"):
        shippable({"gates": []}, "tiny", ship_despite=True, details=Path("page.html"))


def test_examples_are_prompts_that_the_model_answers_exactly_and_then_a_general_one() -> None:
    test = [TokenRow([1], [1], question) for question in ("wrong", "one", "two", "three")]
    ask = attrgetter("question")
    right = [RowScore(1.0, 1, question.question != "wrong") for question in test]
    assert examples(test, right, ["general", "more"], ask) == ["one", "two", "general"]
    none = [RowScore(1.0, 1, False)] * len(test)
    assert examples(test, none, ["a", "b", "c", "d"], ask) == ["a", "b", "c"], "a general assistant"


@pytest.fixture
def models(tmp_path: Path) -> tuple[Path, Path]:
    for name in ("base", "shipped"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").write_bytes(b"weights")
    return tmp_path / "base", tmp_path / "shipped"


def test_small_models_are_measured_at_the_same_time_and_keep_their_places(models: tuple[Path, Path]) -> None:
    together, threads = Barrier(2), torch.get_num_threads()

    def measure(name: str) -> Any:
        together.wait(timeout=60)
        return name

    found: Any = _both(lambda directory: directory.name, measure, *models, at_once=True)
    assert found == ("base", "shipped")
    assert torch.get_num_threads() == threads


def test_large_models_are_in_memory_one_after_the_other(models: tuple[Path, Path]) -> None:
    with (models[0] / "model.safetensors").open("r+b") as weights:
        weights.truncate(SMALL_BYTES + 1)
    seen: list[str] = []

    def load(directory: Path) -> str:
        seen.append(f"load {directory.name}")
        return directory.name

    def measure(name: str) -> Any:
        seen.append(f"measure {name}")

    _both(load, measure, *models, at_once=True)
    assert seen == ["load base", "measure base", "load shipped", "measure shipped"]


def test_a_failure_of_the_base_is_not_lost(models: tuple[Path, Path]) -> None:
    def measure(name: str) -> Any:
        if name == "base":
            raise DataError("the base cannot answer")

    with pytest.raises(DataError, match="the base cannot answer"):
        _both(lambda directory: directory.name, measure, *models, at_once=True)
