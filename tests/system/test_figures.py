"""What README.md states is what the programs in bench/ printed."""

import importlib
import json

from bench import quickstart
from conftest import ROOT

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_table_of_the_kept_measurement() -> None:
    assert quickstart.table(json.loads(quickstart.RESULT.read_text())) in README


def test_the_readme_shows_the_kept_training_speed() -> None:
    training = importlib.import_module("bench.training")  # it names modules of the trainer's environment
    kept = json.loads((ROOT / "bench" / "results" / "training-h100.json").read_text())
    assert training.table(kept["rows"]) in README
