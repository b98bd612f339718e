"""Whatever a row holds: it is kept, or dropped and counted, or a DataError in one line says what it means."""

import datetime
import decimal
import json
import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerFast

from trainer.cli import main
from trainer.config_data import ColumnsConfig
from trainer.data.clean import Cleaned, clean
from trainer.data.formats import RawRow
from trainer.data.parse import Reading
from trainer.data.tokenize import ChatTokenizer
from trainer.errors import DataError
from trainer.progress import say


def nested(depth: int, kind: type = list) -> Any:
    value: Any = "x"
    for _ in range(depth):
        value = [value] if kind is list else {"a": value}
    return value


HALF = "\ud800"
CHAT = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
VALUES: list[Any] = [
    "", " ", "text", HALF, f"a{HALF} b", "\x00", "\ufdd0", "<|im_end|>", "nan", "null", "[]", "x" * 4000,
    '{"name": "f", "arguments": {}}', '[{"name": "f"}]', None, True, False, 0, 1, -1, 2, 1.5, 10**400,
    -(10**400), 1e308, float("inf"), float("-inf"), float("nan"), [], {}, [[]], [None], [{}], [1],
    ["a", "b"], [["q", "a"]],
    [["q"]], [["q", None]], [[None, None]], nested(50), nested(900), nested(900, dict), b"\xff\x00", (1, 2),
    {1: 2},
    datetime.datetime(2020, 1, 1), datetime.date(2020, 1, 1), datetime.timedelta(1),
    decimal.Decimal("1e400"), decimal.Decimal("NaN"), {"type": "text", "text": "x"},
    [{"type": "text", "text": "x"}], [{"type": "text", "text": HALF}], [{"type": "text"}], [{"type": ["x"]}],
    CHAT, [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], {"name": "f", "arguments": "{}"},
    {"function": {"name": "f", "arguments": '{"a": 1e999}'}},
    [{"function": {"name": "f", "parameters": {}}}],
]  # fmt: skip
COLUMNS = (
    "conversations", "messages", "instruction", "input", "output", "prompt", "completion", "system",
    "history", "source", "group", "score", "context", "id", "tools", "weight", "text", "label", "chosen",
    "images", HALF,
)  # fmt: skip
FIELDS = ("weight", "tool_calls", "function_call", "name", "tool_call_id", "reasoning_content", "audio", HALF)
ROLES: tuple[Any, ...] = (
    "user",
    "assistant",
    "system",
    "gpt",
    "tool",
    "function_call",
    "User ",
    "bot",
    None,
    1,
    [],
    {},
    HALF,
)
DROPS_MEANING = (
    "tools",
    "label",
    "images",
    "weight",
    "history",
    "chosen",
    "audio",
    "tool_calls",
    "function_call",
)
READINGS = (
    Reading(),
    Reading(ignored=DROPS_MEANING, roles={"bot": "assistant"}),
    Reading(use="chosen"),
    Reading(
        columns=ColumnsConfig(prompt="prompt", response="completion", system="system", context="context")
    ),
)


def message(draw: random.Random) -> dict[str, Any]:
    made = {
        draw.choice(["role", "from"]): draw.choice(ROLES),
        draw.choice(["content", "value"]): draw.choice(VALUES),
    }
    return made | {draw.choice(FIELDS): draw.choice(VALUES) for _ in range(draw.choice([0, 0, 1, 2]))}


def hostile_row(draw: random.Random) -> Any:
    """A row of some shape, or of none, with values that do not belong there."""
    if draw.random() < 0.03:
        return draw.choice(VALUES)
    if draw.random() < 0.5:
        turns = [
            message(draw) if draw.random() < 0.9 else draw.choice(VALUES)
            for _ in range(draw.choice([0, 1, 3]))
        ]
        row = {draw.choice(["messages", "conversations"]): [*CHAT[: draw.choice([0, 1])], *turns, *CHAT[1:]]}
    else:
        names = draw.choice([("instruction", "output"), ("prompt", "completion"), ("prompt", "response")])
        row = {name: draw.choice(VALUES) for name in names}
    return row | {draw.choice(COLUMNS): draw.choice(VALUES) for _ in range(draw.choice([0, 0, 1, 3]))}


def cleaned(row: Any, reading: Reading) -> Cleaned | None:
    """What became of one row; None if it stopped the run with a sentence."""
    try:
        return clean([RawRow("f.jsonl:1", row)], reading=reading)
    except DataError as error:
        assert "\n" not in str(error)
        return None


@pytest.mark.parametrize("part", range(4))
def test_one_row_never_ends_the_run(tokenizer: PreTrainedTokenizerFast, part: int) -> None:
    chat = ChatTokenizer(tokenizer)
    outcomes: Counter[str] = Counter()
    for seed in range(part * 1500, (part + 1) * 1500):
        row = hostile_row(random.Random(seed))
        for reading in READINGS:
            found = cleaned(row, reading)
            if found is None:
                outcomes["stopped"] += 1
                continue
            assert len(found.conversations) + found.dropped.total() == 1, f"seed {seed}: lost"
            assert not [why for why in found.dropped if why.startswith("cannot be read")], (
                f"seed {seed}: {found}"
            )
            (found.summary() + found.unread_columns()).encode()
            chat.rows(found.conversations)
            for kept in found.conversations:
                "".join((kept.text, kept.source, *kept.groups)).encode()
            outcomes["kept" if found.conversations else "dropped"] += 1
    print(dict(outcomes))
    assert min(outcomes[what] for what in ("kept", "dropped", "stopped")) > 100, "each outcome is tried"


def test_a_row_that_nothing_foresaw_is_dropped_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*given: Any) -> Any:
        raise KeyError("a defect")

    monkeypatch.setattr("trainer.data.parse.turns_of", broken)
    assert clean([RawRow("f:1", {"messages": CHAT})]).dropped == {"cannot be read (KeyError)": 1}


def test_hostile_rows_among_good_ones_are_prepared_and_each_is_counted(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = [json.dumps({"instruction": f"Say {i}.", "output": f"{i}"}) for i in range(60)]
    for seed in range(400):
        row = hostile_row(random.Random(seed))
        try:
            text = json.dumps(row)
        except (RecursionError, TypeError):  # of other formats than JSON
            continue
        if cleaned(json.loads(text), Reading(ignored=DROPS_MEANING)) is not None:
            lines.append(text)
    odd = [
        '{"instruction":' + "9" * 5000 + "}",
        "[" * 10_000,
        '{"a":' * 10_000,
        '{"output": 1e99999}',
        "\0",
        "{",
    ]
    source = tmp_path / "rows.jsonl"
    source.write_text("".join(line + "\n" for line in [*lines, *odd]))
    settings = [
        "data.general=null",
        "data.near_duplicates=0.8",
        f"data.ignore_columns=[{','.join(DROPS_MEANING)}]",
    ]
    flags = [part for value in settings for part in ("--set", value)]
    artifacts = tmp_path / "a"
    status = main(["prepare", "--config", str(config_file), "--artifacts", str(artifacts), *flags])
    assert status == 0, capsys.readouterr().err
    (report,) = (json.loads(file.read_text()) for file in artifacts.glob("data/*/report.json"))
    account = report["sources"]["rows.jsonl"]
    assert account["read"] == len(lines) + len(odd) > 300
    assert account["read"] == sum(sum(account[name].values()) for name in ("used", "unused", "dropped"))


def test_the_console_prints_what_it_can(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    say(f"column {HALF}")
    assert capsys.readouterr().out == "column \\ud800\n"
