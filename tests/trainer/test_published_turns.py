"""docs/training.md shows what bench/turns.py printed, before and after."""

import json

import pytest

from bench import turns
from tests.support import ROOT


@pytest.mark.parametrize("name", ["turns", "turns-before"])
def test_the_training_page_shows_the_kept_conversations(name: str) -> None:
    kept = json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())
    for line in turns.table(kept).splitlines()[2:]:
        measured, value = line.strip("| ").split(" | ")
        rows = [row for row in (ROOT / "docs" / "training.md").read_text().splitlines() if measured in row]
        assert rows and value in rows[0], line
