import json
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import votes
from conversations import SIDES, Chat, ask, reply
from errors import VoteRefused
from tests.support import ROOT
from tests.support.votes import SAMPLING, compared, lines
from votes import VoteFile

PROMPT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi\u2028"}]


def with_ballot(file: VoteFile, chat: Chat) -> Chat:
    ballot = file.ballot(chat, "Be brief.", SAMPLING)
    assert ballot
    chat["ballot"] = ballot
    return chat


def cast(path: Path, verdict: str, chat: Chat | None = None, visitor: str = "192.0.2.7") -> None:
    file = VoteFile(path)
    file.cast(with_ballot(file, chat or compared()), verdict, visitor)


def rows(path: Path) -> list[dict[str, Any]]:
    command = [sys.executable, str(ROOT / "frontend/votes.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.split("\n") if line]


def test_a_vote_records_models_and_answers_and_becomes_a_preference_row(path: Path) -> None:
    cast(path, "right")
    [vote] = lines(path)
    assert vote.keys() == {
        "id", "answered_at", "models", "prompts", "answers", "sampling", "at", "visitor", "verdict"
    }  # fmt: skip
    assert vote["sampling"] == SAMPLING
    assert "192.0.2.7" not in path.read_text()
    assert rows(path) == [
        {
            "conversations": [
                {"from": "system", "value": "Be brief."},
                {"from": "human", "value": "Hi\u2028"},
                {"from": "gpt", "value": "b"},
            ],
            "prompt": PROMPT,
            "chosen": [{"role": "assistant", "content": "b"}],
            "rejected": [{"role": "assistant", "content": "a"}],
            "chosen_model": "tuned",
            "rejected_model": "base",
        }
    ]


def test_votes_of_different_visitors_can_be_distinguished(path: Path) -> None:
    for visitor in ("192.0.2.7", "192.0.2.8", "192.0.2.7"):
        cast(path, "left", visitor=visitor)
    first, second, third = (vote["visitor"] for vote in lines(path))
    assert first == third != second


def test_only_a_preference_for_one_answer_to_the_same_prompt_is_a_row(path: Path) -> None:
    later = compared()
    for side in SIDES:
        later[side] = reply(ask(later[side], "And?"), "c", model=side)
    for verdict, chat in (("tie", None), ("neither", None), ("left", later), ("left", None)):
        cast(path, verdict, chat)
    assert [row["chosen_model"] for row in rows(path)] == ["base"]
    assert len(lines(path)) == 4, "every vote is kept"


@pytest.mark.parametrize(
    "forged",
    [
        {},
        {"entries": reply(ask([], "Hi\u2028"), "x", model="base")},
        {
            "entries": reply(ask([], "Ho"), "a", model="base"),
            "rival": reply(ask([], "Ho"), "b", model="tuned"),
        },
        {"entries": compared()["rival"], "rival": compared()["entries"]},
        {"entries": reply(ask([], "Hi\u2028"), "a", model="x")},
        {"entries": []},
        {"start": 7},
    ],
)
def test_a_vote_on_anything_but_the_signed_answers_is_refused(path: Path, forged: Any) -> None:
    file = VoteFile(path)
    chat = with_ballot(file, compared())
    if not forged:
        del chat["ballot"]
    with pytest.raises(VoteRefused, match="unknown"):
        file.cast(chat | forged, "left", "192.0.2.7")
    assert path.read_bytes() == b""


@pytest.mark.parametrize(
    "forged",
    [
        {"settings": json.dumps({"system_prompt": "Be long.", "sampling": SAMPLING})},
        {"settings": json.dumps({"system_prompt": "Be brief.", "sampling": {}})},
        {"settings": "{"},
        {"settings": "[]"},
        {"settings": '{"system_prompt": 1, "sampling": 1}'},
        {"id": "0" * 16},
        {"answered_at": "2001-01-01T00:00:00Z"},
        {"signature": ""},
        {"signature": "é"},
        {"signature": "\ud800"},
    ],
)
def test_a_ballot_that_was_changed_is_refused(path: Path, forged: Any) -> None:
    file = VoteFile(path)
    chat = with_ballot(file, compared())
    chat["ballot"] |= forged
    with pytest.raises(VoteRefused, match="unknown"):
        file.cast(chat, "left", "192.0.2.7")
    assert path.read_bytes() == b""


def test_a_ballot_of_another_page_is_refused(path: Path, tmp_path: Path) -> None:
    with pytest.raises(VoteRefused, match="unknown"):
        VoteFile(path).cast(with_ballot(VoteFile(tmp_path / "other.jsonl"), compared()), "left", "x")


def test_a_vote_counts_once_in_all_processes_and_after_a_restart(path: Path) -> None:
    one, other = VoteFile(path), VoteFile(path)
    chat = with_ballot(one, compared())
    other.cast(chat, "left", "192.0.2.7")
    for file in (one, other, VoteFile(path)):
        with pytest.raises(VoteRefused, match="repeated"):
            file.cast(chat, "right", "192.0.2.8")
    assert [vote["verdict"] for vote in lines(path)] == ["left"]


def test_votes_continue_in_a_new_file_after_the_operator_moved_the_old_one(path: Path) -> None:
    file = VoteFile(path)
    chat = with_ballot(file, compared())
    file.cast(chat, "left", "192.0.2.7")
    path.rename(path.with_name("old.jsonl"))
    file.cast(with_ballot(file, compared()), "right", "192.0.2.7")
    with pytest.raises(VoteRefused, match="repeated"):
        file.cast(chat, "left", "192.0.2.7")
    assert [vote["verdict"] for vote in lines(path)] == ["right"]


def test_only_the_owner_can_read_the_key_and_it_survives_a_restart(path: Path) -> None:
    chat = with_ballot(VoteFile(path), compared())
    [key] = path.parent.glob("*.key")
    assert key.stat().st_mode & 0o777 == 0o600
    VoteFile(path).cast(chat, "left", "192.0.2.7")


def test_a_comparison_that_is_too_long_gets_no_ballot(path: Path) -> None:
    assert VoteFile(path).ballot(compared("x" * votes.MAX_VOTE_BYTES), "", {}) is None


def test_a_full_file_takes_no_more_votes(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cast(path, "left")
    before = path.read_bytes()
    monkeypatch.setattr(votes, "MAX_FILE_BYTES", len(before) + 100)
    with pytest.raises(VoteRefused, match="full"):
        cast(path, "left")
    assert path.read_bytes() == before


def test_a_vote_that_the_disk_cannot_hold_leaves_nothing(path: Path) -> None:
    cast(path, "left")
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(before) + 10, limits[1]))
    try:
        with pytest.raises(VoteRefused, match="failed"):
            cast(path, "left")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before


def test_an_interrupted_line_does_not_damage_other_votes(path: Path) -> None:
    cast(path, "left")
    path.write_bytes(path.read_bytes() + b'[]\n{}\n{"id": "cut o')
    cast(path, "right")
    command = [sys.executable, str(ROOT / "frontend/votes.py"), str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.count("\n") == 2
    assert done.stderr.endswith("skipped: 3\n")
