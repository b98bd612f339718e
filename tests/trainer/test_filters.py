from typing import Any

import pytest
from pydantic import ValidationError

from trainer.config_data import DataFilters
from trainer.data.clean import clean
from trainer.data.formats import RawRow
from trainer.errors import DataError

ROWS: list[dict[str, Any]] = [
    {"instruction": "q1", "output": "short", "source": "a", "score": 4.5},
    {"instruction": "q2", "output": "long " * 20, "source": "a", "score": 3},
    {"instruction": "q3", "output": "third", "source": "b", "score": None},
]


@pytest.mark.parametrize(
    ("filters", "kept", "dropped"),
    [
        ({}, "123", {}),
        ({"min_score": 4}, "1", {"score under 4.0": 1, "no score": 1}),
        ({"max_score": 4}, "2", {"score over 4.0": 1, "no score": 1}),
        ({"min_score": 3, "max_score": 4.5}, "12", {"no score": 1}),
        ({"min_characters": 8}, "2", {"characters under 8": 2}),
        ({"max_characters": 7}, "13", {"characters over 7": 1}),
        ({"only_sources": ["b"]}, "3", {"source not in only_sources": 2}),
        ({"without_sources": ["b"]}, "12", {"source in without_sources": 1}),
    ],
)
def test_each_filter_drops_what_it_says_and_is_counted(
    filters: dict[str, Any], kept: str, dropped: dict[str, int]
) -> None:
    rows = [RawRow(f"f:{i}", row) for i, row in enumerate(ROWS)]
    cleaned = clean(rows, DataFilters(**filters))
    assert "".join(c.messages[0].content[1] for c in cleaned.conversations) == kept
    assert cleaned.dropped == dropped


PROSE = {
    "en": "What will the weather be like tomorrow? It is going to rain, says the forecast for London.",
    "de": "Wie wird das Wetter morgen in Berlin? Es soll regnen, sagt der Wetterdienst.",
    "fr": "Quelle est la capitale de la France, et quel fleuve la traverse ? Paris, sur la Seine.",
    "zh": "法国的首都是哪里？巴黎。",
}
NO_PROSE = [
    "def f(x):\n    return [i**2 for i in range(x)]",
    "2 + 2 = 4",
    "SELECT name FROM users WHERE id = 4;",
]


def test_rows_surely_in_another_language_are_dropped_and_counted() -> None:
    rows = [RawRow(f"f:{i}", {"instruction": t, "output": t}) for i, t in enumerate(PROSE.values())]
    cleaned = clean(rows, DataFilters(languages=("en", "fr")))
    assert cleaned.dropped == {"language de": 1, "language zh": 1}


@pytest.mark.parametrize("text", NO_PROSE)
def test_code_and_formulas_are_in_no_language_and_kept(text: str) -> None:
    rows = [RawRow("f:1", {"instruction": text, "output": text})]
    assert not clean(rows, DataFilters(languages=("de",))).dropped


def test_a_language_that_is_never_found_is_refused_before_any_row_is_read() -> None:
    with pytest.raises(DataError, match="english"):
        clean(iter([]), DataFilters(languages=("en", "english")))


@pytest.mark.parametrize("score", [None, "high", float("nan"), [4]])
def test_a_score_that_is_no_number_counts_as_none(score: Any) -> None:
    cleaned = clean([RawRow("f:1", ROWS[0] | {"score": score})], DataFilters(min_score=0))
    assert cleaned.dropped == {"no score": 1}


@pytest.mark.parametrize(
    ("filters", "message"),
    [
        ({"min_score": 5, "max_score": 4}, "no row can pass"),
        ({"min_characters": 9, "max_characters": 8}, "no row can pass"),
        ({"only_sources": ["a"], "without_sources": ["a"]}, "both in"),
    ],
)
def test_filters_that_contradict_themselves_are_refused(filters: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DataFilters(**filters)
