"""bench/tool_skill.py asks what was not trained and counts exact calls; docs/training.md has its result."""

import json
from typing import Any

import pytest

from bench import tool_skill
from tests.support import ROOT
from trainer.data.clean import clean
from trainer.data.formats import RawRow

QUESTION = tool_skill.Question(
    "Tell Anna: I am late.", [], ("send_message", {"to": "Anna", "text": "I am late"})
)


def called(name: str, arguments: str, times: int = 1) -> dict[str, Any]:
    return {"tool_calls": [{"function": {"name": name, "arguments": arguments}}] * times}


def test_held_out_questions_have_other_words_than_the_rows() -> None:
    rows, held_out = (tool_skill.questions(200, held_out=side) for side in (False, True))
    trained = {str(value) for question in rows if question.call for value in question.call[1].values()}
    asked = {str(value) for question in held_out if question.call for value in question.call[1].values()}
    assert not trained & asked
    assert not {q.text for q in rows} & {q.text for q in held_out}
    assert all(str(v) in q.text for q in (*rows, *held_out) if q.call for v in q.call[1].values())
    cleaned = clean(RawRow(f"f:{i}", question.row()) for i, question in enumerate(rows))
    assert len(cleaned.conversations) == 200 and not cleaned.dropped and not cleaned.unread


@pytest.mark.parametrize(
    ("message", "exact"),
    [
        (called("send_message", '{"text": "I am late", "to": "Anna"}'), True),
        (called("send_message", '{"to": "Anna", "text": "I am late."}'), False),
        (called("send_message", '{"to": "Anna", "text": "I am late"}', times=2), False),
        (called("play_song", '{"to": "Anna", "text": "I am late"}'), False),
        (called("send_message", '{"to": "Anna"'), False),
        ({"content": "I told her."}, False),
    ],
)
def test_only_one_call_with_the_right_name_and_arguments_is_exact(
    message: dict[str, Any], exact: bool
) -> None:
    assert tool_skill.is_exact(QUESTION, message) == exact


def test_the_training_page_shows_the_kept_result() -> None:
    kept = json.loads((ROOT / "bench" / "results" / "tool_skill.json").read_text())
    lines = tool_skill.table(kept).splitlines()
    page = (ROOT / "docs" / "training.md").read_text().splitlines()
    assert all(line in page for line in lines)
