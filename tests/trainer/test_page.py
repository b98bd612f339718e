"""The evaluation page stands alone, hides nothing and lets no text become markup."""

import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from trainer.config_data import CONFIGS
from trainer.data.prompts import read_conversations, read_prompts
from trainer.errors import DataError
from trainer.judge.gates import OVERRIDE
from trainer.objective import sft
from trainer.pages import frame as html_page
from trainer.pages.evaluation import page

SIDE = {"value": 0.5, "low": 0.4, "high": 0.6}
FLOOR = {"value": 0.25, "low": 0.2, "high": 0.3}
SIDES = {"base": SIDE, "tuned": SIDE, "difference": SIDE}
METRICS = [
    {"name": "loss", "split": "test", "unit": "nats a token", "n": 3, **SIDES},
    {
        "name": "mmlu",
        "split": "test",
        "unit": "share of items",
        "n": 12,
        **SIDES,
        "benchmark": {
            "dataset": "<b>.jsonl", "measure": "acc", "shots": 0, "of_items": 40, "floor": FLOOR,
            "informative": False,
        },
    },
]  # fmt: skip
PASSED = {"name": "test loss", "passed": True, "detail": "<i>fine</i>"}
FAILED = {"name": "benchmark mmlu", "passed": False, "detail": "-0.3"}


def evaluation(*gates: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"passed": False, "metrics": METRICS, "gates": list(gates), **more}


def made(evaluated: dict[str, Any]) -> str:
    bad = "</pre><script>alert(1)</script>"
    sample = {"prompt": bad, "reference": bad, "base": bad, "tuned": bad}
    return page("tiny-<x>", evaluated, sft, [sample], [{"prompt": bad, "base": bad, "tuned": "TUNED"}])


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_escaped_and_takes_nothing_from_outside() -> None:
    found = made(evaluation(PASSED, FAILED))
    tags = Tags(found)
    assert not tags.open and {"svg", "circle", "table", "pre"} <= tags.seen
    assert not tags.seen & {"script", "link", "img", "iframe", "b", "i", "x"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=", found)
    assert html_page.STYLE in found, "it looks as the other pages do"
    assert "TUNED" in found and "cannot detect a regression" in found


@pytest.mark.parametrize(
    ("evaluated", "verdict"),
    [
        (evaluation(PASSED), "The model passed every gate."),
        (evaluation(PASSED, FAILED), "1 of 2 gates failed: the model may not be shipped."),
        (
            evaluation(FAILED, override=OVERRIDE),
            f"1 of 1 gates failed, and the model was shipped anyway, with {OVERRIDE}.",
        ),
    ],
    ids=("passed", "failed", "overridden"),
)
def test_page_begins_with_the_verdict(evaluated: dict[str, Any], verdict: str) -> None:
    found = made(evaluated)
    assert 0 < found.find(verdict) < found.find("<h2>")


def test_intervals_are_drawn_to_scale() -> None:
    found = made(evaluation(PASSED))
    ends = re.findall(r'<g class=tuned><title>[^<]*</title><line x1="([\d.]+)" x2="([\d.]+)"', found)
    low, high = map(float, ends[0])
    axis = re.search(r'<line class=axis x1="([\d.]+)" x2="([\d.]+)"', found)
    assert axis
    left, right = map(float, axis.groups())
    assert (low - left) / (right - left) == pytest.approx(0.4, abs=1e-3)
    assert (high - left) / (right - left) == pytest.approx(0.6, abs=1e-3)


def test_the_shipped_prompt_list_asks_some_prompts_further() -> None:
    conversations = read_conversations(CONFIGS / "side_by_side_prompts.txt", "evaluate.prompts")
    assert [len(questions) for questions in conversations] == [2, 2, 1, 2, 2, 1, 1, 1]
    assert len({question for questions in conversations for question in questions}) == 12


def test_an_empty_prompt_list_is_reported_by_its_setting(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("# nothing\n\n")
    with pytest.raises(DataError, match=r"evaluate\.prompts .*holds no prompt"):
        read_prompts(tmp_path / "p.txt", "evaluate.prompts")
