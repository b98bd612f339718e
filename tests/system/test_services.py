import sys

import pytest

from tests.support import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
from services import title_of


@pytest.mark.parametrize(
    ("reference", "title"),
    [("### m.f\nDoes.", "m.f"), ("\n  \n#\nYes.", "Yes."), ("\n", "Example"), ("x" * 99, "x" * 60)],
)
def test_every_example_on_the_page_gets_a_title(reference: str, title: str) -> None:
    assert title_of(reference) == title
