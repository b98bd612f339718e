import json
import math
import random
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from trainer.data.clean import clean, repairs
from trainer.data.conversation import Conversation, Message
from trainer.data.formats import RawRow
from trainer.data.parse import parse_row
from trainer.data.shapes import RowError
from trainer.data.sources import read_rows
from trainer.data.split import split
from trainer.data.stdlib_docs import build_rows, first_sentence, make_row
from trainer.errors import DataError

MERGED = "turns of the same role merged"
LEADING = "answers before the first question cut"
TRAILING = "turns after the last answer cut"
GOOD = {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}


def turns(*pairs: tuple[str, str]) -> dict[str, Any]:
    return {"conversations": [{"from": role, "value": text} for role, text in pairs]}


@pytest.mark.parametrize(
    "row",
    [
        GOOD,
        {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]},
        {"instruction": "q", "input": "", "output": "a"},
        turns(("human", "q"), ("gpt", "a"), ("human", "left hanging")),
    ],
    ids=["sharegpt", "openai", "alpaca", "ends with a question"],
)
def test_every_shape_becomes_the_same_conversation(row: dict[str, Any]) -> None:
    assert parse_row(row, "s").messages == (Message("user", "q"), Message("assistant", "a"))


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("text", "not an object"),
        ({"text": "x"}, "no messages and no known pair"),
        ({"conversations": None}, "no messages and no known pair"),
        ({"conversations": "q"}, "not a list"),
        ({"conversations": []}, "no answer"),
        (turns(("human", "q")), "no answer"),
        (turns(("gpt", "a")), "no question before an answer"),
        (turns(("gpt", "a"), ("human", "q")), "no question before an answer"),
        (turns(("human", "q"), ("gpt", " ")), "empty turn"),
        (turns(("human", "q"), ("observation", "x"), ("gpt", "a")), "a result without a call"),
        (turns(("human", "q"), ("critic", "x"), ("gpt", "a")), "unknown role 'critic'"),
        (turns(("human", "q"), ("system", "s"), ("gpt", "a")), "system turn in the middle"),
        (turns(("human", "q"), ("gpt", None)), "empty turn"),  # type: ignore[arg-type]
        ({"conversations": [{"from": "human", "value": "q"}, "a"]}, "a turn is not an object"),
    ],
)
def test_unusable_row_is_named_by_its_reason(row: Any, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        parse_row(row, "s")


@pytest.mark.parametrize(
    ("row", "roles_and_texts", "repaired"),
    [
        (turns(("human", "q"), ("gpt", "a"), ("gpt", "b")), "user:q assistant:a/b", {MERGED}),
        (turns(("human", "q"), ("human", "r"), ("gpt", "a")), "user:q/r assistant:a", {MERGED}),
        (turns(("gpt", "hi"), ("gpt", "yes"), ("human", "q"), ("gpt", "a")), "user:q assistant:a", {LEADING}),
        (
            turns(("system", "s"), ("gpt", "hi"), ("human", "q"), ("gpt", "a")),
            "system:s user:q assistant:a",
            {LEADING},
        ),
        (
            turns(("system", "s"), ("system", "t"), ("human", "q"), ("gpt", "a")),
            "system:s/t user:q assistant:a",
            {MERGED},
        ),
        (
            turns(("human", "q"), ("gpt", "a"), ("human", "r"), ("human", "t")),
            "user:q assistant:a",
            {TRAILING},
        ),
        (GOOD, "user:q assistant:a", set()),
    ],
)
def test_rows_are_repaired_by_stated_rules_and_counted(
    row: dict[str, Any], roles_and_texts: str, repaired: set[str]
) -> None:
    cleaned = clean([RawRow("f:1", row)])
    (conversation,) = cleaned.conversations
    found = " ".join(f"{m.role}:{m.content}" for m in conversation.messages).replace("\n\n", "/")
    assert found == roles_and_texts
    counts, places = repairs(cleaned.conversations)
    assert counts == dict.fromkeys(repaired, 1) and places == dict.fromkeys(repaired, "f:1")


def test_a_system_turn_that_a_repair_would_move_is_still_refused() -> None:
    with pytest.raises(RowError, match="in the middle"):
        parse_row(turns(("human", "q"), ("system", "s"), ("human", "r"), ("gpt", "a")), "s")


def test_broken_rows_cost_only_themselves_and_are_counted(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    huge = '{"score": ' + "9" * 5000 + "}"
    file.write_text(json.dumps(GOOD) + "\n{broken\n\n" + json.dumps(GOOD) + "\n[]\n" + huge + "\n")
    cleaned = clean(read_rows(str(file)))
    assert len(cleaned.conversations) == 1
    assert cleaned.dropped == {
        "not JSON": 1,
        "a number of thousands of digits": 1,
        "exact duplicate": 1,
        "not an object": 1,
    }
    assert cleaned.first_places["not JSON"] == "rows.jsonl:2"


def test_json_array_and_parquet_read_alike(tmp_path: Path) -> None:
    import pyarrow
    from pyarrow import parquet

    (tmp_path / "a.json").write_text(json.dumps([GOOD]))
    parquet.write_table(pyarrow.Table.from_pylist([GOOD]), tmp_path / "b.parquet")
    rows = [parse_row(raw.value, "s").messages for raw in read_rows(str(tmp_path))]
    assert len(rows) == 2 and rows[0] == rows[1]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("cut.json", '[{"conversations": [', "cut off"),
        ("not.parquet", "hello", "not a Parquet file"),
        ("rows.txt", "a,b", "no .json"),
    ],
)
def test_unreadable_source_is_refused_in_one_line(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=message):
        list(read_rows(str(tmp_path / name)))


def conversations(count: int, group: bool = False) -> list[Conversation]:
    return [
        Conversation(
            (Message("user", f"q{i}"), Message("assistant", f"a{i}")),
            "s",
            (f"g{i // 3}",) if group else (),
        )
        for i in range(count)
    ]


def test_split_does_not_depend_on_the_order_of_rows() -> None:
    rows = conversations(300)
    shuffled = random.Random(1).sample(rows, len(rows))
    assert split(rows, 0.1, seed=7) == split(shuffled, 0.1, seed=7)


def test_adding_rows_moves_no_row_to_another_side() -> None:
    small, large = split(conversations(300), 0.1, 7), split(conversations(900), 0.1, 7)
    for side in ("train", "validation", "test"):
        assert set(getattr(small, side)) <= set(getattr(large, side))


def test_split_keeps_its_shares_and_its_groups_together() -> None:
    rows = conversations(3000, group=True)
    parts = split(rows, 0.1, seed=7)
    sides = [{g for c in side for g in c.groups} for side in (parts.train, parts.validation, parts.test)]
    assert not (sides[0] & sides[1] or sides[0] & sides[2] or sides[1] & sides[2])
    assert len(parts.validation) == len(sides[1]), "one row a group on a held-out side"
    assert all(60 < len(side) < 140 for side in sides[1:]), "a tenth of 1,000 groups each"


def test_each_source_gets_its_share_of_each_side_within_chance() -> None:
    groups_of = {"large": 6000, "middle": 2000, "small": 500}
    rows = [
        Conversation((Message("user", f"{source}{i}"), Message("assistant", "a")), source)
        for source, groups in groups_of.items()
        for i in range(groups)
    ]
    parts = split(rows, 0.1, seed=7)
    for side in (parts.validation, parts.test):
        share = {s: sum(row.source == s for row in side) / groups_of[s] for s in groups_of}
        for source, groups in groups_of.items():
            assert abs(share[source] - 0.1) < 3 * math.sqrt(0.1 * 0.9 / groups), (source, share)


def test_a_side_that_is_cut_keeps_the_mix_of_sources() -> None:
    rows = [replace(row, source=f"s{i % 2}") for i, row in enumerate(conversations(6000))]
    head = split(rows, 0.1, seed=7).train[:1000]
    assert 450 < sum(row.source == "s0" for row in head) < 550


def test_too_few_rows_are_refused() -> None:
    with pytest.raises(DataError, match=r"2 usable rows make 2 groups.*: add rows"):
        split(conversations(2), 0.1, seed=7)


def test_every_part_of_a_card_stands_in_its_prompt() -> None:
    for row in build_rows():
        prompt, card = (turn["value"] for turn in row["conversations"])
        flat = " ".join(prompt.split())
        title, summary, _, _, signature, *_ = card.splitlines()
        assert signature in prompt and summary in flat
        assert signature.startswith(title.removeprefix("### "))


def test_cards_name_every_parameter_with_its_default() -> None:
    def shorten(text: str, width: int = 70, *rest: int, fill: str = "x", **more: int) -> str:
        """Collapse and cut the text. Then return it."""
        return text

    row = make_row("m.shorten", "m.shorten", shorten)
    assert row is not None
    assert row["conversations"][1]["value"].splitlines() == [
        "### m.shorten",
        "Collapse and cut the text.",
        "",
        "```python",
        "m.shorten(text: str, width: int = 70, *rest: int, fill: str = 'x', **more: int)",
        "```",
        "",
        "- `text`: required",
        "- `width=70`: optional",
        "- `*rest`: any number",
        "- `fill='x'`: optional",
        "- `**more`: any number",
    ]


def test_first_sentence_ends_where_a_sentence_does() -> None:
    assert first_sentence("Use e.g. this one. Then that.") == "Use e.g. this one."


def test_stdlib_docs_has_enough_rows_and_says_nothing_of_this_machine() -> None:
    rows = list(build_rows())
    text = json.dumps(rows)
    assert len(rows) > 1500
    assert " at 0x" not in text and "/usr/" not in text and "/home/" not in text


def test_raw_rows_say_where_they_stand(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD))
    assert list(read_rows(str(file))) == [RawRow("rows.jsonl:1", GOOD)]


def test_stdlib_docs_is_the_same_in_every_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def queries(executable: str = "/srv/one/.venv/bin/python") -> None:
        """Query the executable for information."""

    monkeypatch.setattr(sys, "prefix", "/srv/two/.venv")
    assert make_row("platform.queries", "platform.queries", queries) is not None
    monkeypatch.setattr(sys, "prefix", "/srv/one/.venv")
    assert make_row("platform.queries", "platform.queries", queries) is None


def test_stdlib_docs_is_the_same_in_every_process(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    for seed in ("1", "2"):
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        made.append([raw.value for raw in read_rows("stdlib-docs")])
    assert made[0] == made[1]
