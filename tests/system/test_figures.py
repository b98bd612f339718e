"""README.md and docs/training.md state what the programs in bench/ printed."""

import importlib
import json

from bench import quickstart
from tests.support import ROOT

README = (ROOT / "README.md").read_text()


def test_the_readme_shows_the_table_of_the_kept_measurement() -> None:
    assert quickstart.table(json.loads(quickstart.RESULT.read_text())) in README


def test_readme_and_training_page_show_the_kept_training_speed() -> None:
    training = importlib.import_module("bench.training")  # it names modules of the trainer's environment
    kept = json.loads((ROOT / "bench" / "results" / "training-h100.json").read_text())
    table = training.table(kept["rows"])
    assert table in (ROOT / "docs" / "training.md").read_text()
    speed = {row[0]: row[1] for line in table.splitlines()[2:] if (row := line.strip("| ").split(" | "))}
    said = " ".join(README.split())
    assert (
        f"{speed['compiled-bf16']} tokens/s in bf16 and {speed['compiled-fp8']} with a frozen base in FP8"
        in said
    )
    assert f"has {speed['unsloth']} as it installs and {speed['unsloth-kept']} without gradient" in said


def test_the_readme_states_the_kept_figures_of_the_page() -> None:
    one, _, fifty = json.loads((ROOT / "bench" / "results" / "page.json").read_text())["rows"]
    first_s, alone_s = fifty["first_text_s"]["median"], one["first_text_s"]["median"]
    gap_s, cores = fifty["between_updates_s"]["median"], fifty["page_cpu_s_per_s"]
    said = " ".join(README.split())
    assert (one["chats"], fifty["chats"]) == (1, 50)
    assert f"first text after {first_s:.1f} s (one alone: {alone_s:.2f} s)" in said
    assert f"an update every {gap_s:.1f} s, {cores:.1f} of a core" in said
