"""What README.md states is what the programs in bench/ printed."""

import json

from bench.quickstart import RESULT, table
from conftest import ROOT


def test_the_readme_shows_the_table_of_the_kept_measurement() -> None:
    assert table(json.loads(RESULT.read_text())) in (ROOT / "README.md").read_text()
