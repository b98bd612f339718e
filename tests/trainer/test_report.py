import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

from trainer import base_model
from trainer.cli import main
from trainer.config_file import load
from trainer.data.conversation import Conversation, Message
from trainer.data.prepare import EXAMPLES, prepare
from trainer.data.report import GIVEN, Example, few_rows
from trainer.data.row_file import RowFile, rows_fingerprint
from trainer.data.tokenize import ChatTokenizer, TokenRow
from trainer.identity import fingerprint
from trainer.pages.data_report import EXAMPLE_CHARACTERS, SOURCES_SHOWN, page, write_page

REPORT: dict[str, Any] = {
    "source": "<b>rows</b>",
    "fingerprint": "0" * 64,
    "rows": {"train": 3, "test": 1},
    "target_tokens": {"train": 1200, "test": 4},
    "usable_rows_by_source": {f"s{i}": 2 for i in range(25)} | {"<i>": 1},
    "rows_by_source": {"train": {"s0": 3}, "test": {"general": 1}},
    "tokens_a_row": {"median": 4, "mean": 4.0, "longest": 9, "bar_tokens": 5, "counts": [3, 1]},
    "dropped": {"unknown role '<x>'": 2},
    "first_dropped": {"unknown role '<x>'": "a&b:7"},
    "unread": {"<category>": 3},
    "repaired": {"turns of the same role merged": 1},
    "unused": {"over data.test_rows 1": 4},
    "held_out": {"test": "split from train"},
    "shapes": {"": 2, "<alpaca>": 1},
    "sources": {
        "a&b": {
            "weight": 0.5,
            "read": 9,
            "used": {"train": 3},
            "target_tokens": {"train": 1200, "test": 4},
            "dropped": {"unknown role '<x>'": 2},
            "unused": {"over data.test_rows 1": 4},
            "unread": {},
        },
        "f": {
            "weight": 1.0,
            "read": 3,
            "used": {"test": 1},
            "target_tokens": {},
            "dropped": {},
            "unused": {},
            "unread": {"<category>": 3},
        },
    },
    "first_repaired": {"turns of the same role merged": "f:3"},
    "remarks": ["3 rows contain <|im_end|>"],
}


class Tags(HTMLParser):
    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        if tag not in ("meta",):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_page_is_whole_and_takes_nothing_from_outside() -> None:
    made = page(REPORT, [Example("s", [("<|im_start|>", False), ("</pre><script>alert(1)</script>", True)])])
    tags = Tags(made)
    assert not tags.open and {"svg", "table", "mark"} <= tags.seen
    assert not tags.seen & {"script", "link", "img", "iframe", "b", "i", "x"}
    assert not re.search(r"https?:|url\(|@import|\bsrc=", made)
    assert "prefers-color-scheme: dark" in made


def test_page_counts_small_sources_together_and_names_first_places() -> None:
    made = page(REPORT, [])
    assert "7 others" in made and "a&amp;b:7" in made and ">f:3<" in made
    assert "<p>3 rows contain &lt;|im_end|&gt;.</p>" in made


def test_page_says_what_became_of_each_source() -> None:
    made = " ".join(re.sub("<[^>]*>", "|", page(REPORT, [])).split("|"))
    cells = " ".join(made.split())
    assert "a&amp;b 0.5 9 2 4 3 0 0 1,200" in cells
    assert "f Column not used &lt;category&gt; 3" in cells
    assert "Left over over data.test_rows 1 4" in cells and "A lower data.held_out_share" in cells
    alone = {**REPORT, "sources": {"f": REPORT["sources"]["f"]}, "held_out": {"test": GIVEN}}
    assert "Sources count rows as they were read" not in page(REPORT, [])
    assert "Sources count rows as they were read" in page({**REPORT, "rows": {"train": 2, "test": 1}}, [])
    assert "by source" not in page(alone, []) and "held_out_share" not in page(alone, [])


def test_page_folds_many_sources_into_one_line() -> None:
    many = {f"part-{i}.jsonl": REPORT["sources"]["a&b"] for i in range(SOURCES_SHOWN + 5)}
    made = page({**REPORT, "sources": many}, [])
    assert (
        "5 others" in made and ">45<" in made and "part-24.jsonl" not in made.split("The same by source")[0]
    )


def test_examples_stand_under_their_shape() -> None:
    examples = [Example("s", [("text", True)], shape) for shape in ("", "<alpaca>", "")]
    made = page(REPORT, examples)
    assert re.findall("<h3>(.*?)</h3>", made) == ["Others: 2 of 2 rows", "&lt;alpaca&gt;: 1 of 1 rows"]
    assert made.count("<figure>") == 3


def test_long_examples_are_cut_and_say_so() -> None:
    made = page(REPORT, [Example("s", [("q" * EXAMPLE_CHARACTERS, False), ("z" * 1234, True)])])
    assert "1,234 more characters" in made and "zz" not in made


def test_runs_mark_exactly_what_is_learned(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatTokenizer(tokenizer)
    row = chat.row(Conversation((Message("user", "q"), Message("assistant", "a")), "s"))
    assert [text for text, learned in chat.runs(row) if learned] == ["a<|im_end|>"]


def test_rows_in_one_batch_are_the_rows_one_by_one(tokenizer: PreTrainedTokenizerFast) -> None:
    chat = ChatTokenizer(tokenizer)
    texts = ["plain", "naïve 😀 <|im_end|>", "<|im_start|><|im_end|>", " x <|endoftext|> y", "last"]
    batch = [Conversation((Message("user", t), Message("assistant", t)), "s") for t in texts]
    assert [made.rows for made in chat.rows(batch)] == [[chat.row(c)] for c in batch]


def test_fingerprint_of_the_files_is_that_of_the_rows(tmp_path: Path) -> None:
    rows = {"train": [TokenRow([1, 2, 3], [-100, 2, 3], "q"), TokenRow([9], [9], "r")], "a": [], "test": []}
    rows["test"] = [TokenRow([i], [-100], "") for i in range(7)]
    files = {name: RowFile(tmp_path / name) for name in rows}
    for name, file in files.items():
        for row in rows[name]:
            file.add([row])
        file.close()
    plain = {name: [[r.input_ids, r.labels] for r in split] for name, split in rows.items()}
    assert rows_fingerprint(files) == fingerprint(plain)


def test_held_out_rows_name_their_source(config_file: Path, tmp_path: Path) -> None:
    config = load(config_file)
    prepared = prepare(config, base_model.fetch(config.base, tmp_path), tmp_path, write_page)
    for name in ("validation", "test", "general"):
        found = Counter(row.source for row in prepared.rows(name))
        assert found == prepared.report["rows_by_source"][name]


def test_prepare_leaves_both_reports(config_file: Path, tmp_path: Path) -> None:
    assert main(["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "a")]) == 0
    (directory,) = (p.parent for p in tmp_path.glob("a/data/*/report.json"))
    report = json.loads((directory / "report.json").read_text())
    assert sum(report["tokens_a_row"]["counts"]) == sum(report["rows"].values())
    assert report["rows_by_source"]["general"] == {"general chat": 2}
    made = (directory / "report.html").read_text()
    assert made.count("<figure>") == EXAMPLES and "<mark>word" in made
    assert {path.name for path in directory.iterdir()} == {
        "chat_template.jinja",
        "made_by.json", "report.json", "report.html", *(f"{split}.arrow" for split in report["rows"])
    }  # fmt: skip


def test_prepared_rows_that_were_cut_off_are_made_again(config_file: Path, tmp_path: Path) -> None:
    config = load(config_file)
    base = base_model.fetch(config.base, tmp_path)
    file = prepare(config, base, tmp_path).directory / "test.arrow"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    assert prepare(config, base, tmp_path).rows("test")
    assert file.read_bytes() == whole


def prepared(config_file: Path, tmp_path: Path, *settings: str) -> tuple[dict[str, Any], str]:
    """The report and the page of data with these settings."""
    flags = [part for setting in ("data.general=null", *settings) for part in ("--set", setting)]
    assert main(["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *flags]) == 0
    (directory,) = (path.parent for path in tmp_path.glob("a/data/*/report.json"))
    return json.loads((directory / "report.json").read_text()), (directory / "report.html").read_text()


def write(file: Path, rows: list[dict[str, Any]]) -> str:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


def alpaca(word: str, count: int, **more: Any) -> list[dict[str, Any]]:
    return [{"instruction": f"Say {word}{i}.", "output": f"{word}{i}", **more} for i in range(count)]


def chats(word: str, count: int) -> list[dict[str, Any]]:
    asked, said = ({"role": role} for role in ("user", "assistant"))
    return [
        {"messages": [{**asked, "content": f"{word}{i}?"}, {**said, "content": f"{word}{i}"}]}
        for i in range(count)
    ]


def test_every_row_of_every_source_is_accounted_for(config_file: Path, tmp_path: Path) -> None:
    ants = [*alpaca("ant", 150, mood="good"), {"instruction": "q", "output": ""}, *alpaca("ant", 4)]
    bees = [*chats("bee", 30), *chats("long" * 40, 3)]
    sources = f"[{write(tmp_path / 'ants.jsonl', ants)}, {write(tmp_path / 'bees.jsonl', bees)}]"
    report, _ = prepared(config_file, tmp_path, f"data.source={sources}", "data.train_rows=100")
    found = report["sources"]
    assert [found[name]["read"] for name in ("ants.jsonl", "bees.jsonl")] == [155, 33]
    for source in found.values():
        ends = (source["dropped"], source["used"], source["unused"])
        assert source["read"] == sum(sum(end.values()) for end in ends)
    assert found["ants.jsonl"]["dropped"] == {"empty turn": 1, "exact duplicate": 4}
    assert found["ants.jsonl"]["unread"] == {"mood": 150} and not found["bees.jsonl"]["unread"]
    assert set(found["bees.jsonl"]["dropped"]) == {"longer than 96 tokens"}
    for side in ("train", "validation", "test"):
        assert sum(source["used"].get(side, 0) for source in found.values()) == report["rows"][side]
        tokens = sum(source["target_tokens"].get(side, 0) for source in found.values())
        assert tokens == report["target_tokens"][side]
    assert sum(report["unused"].values()) and set(report["unused"]) <= {
        f"over data.{side}_rows {most}" for side, most in (("train", 100), ("validation", 6), ("test", 6))
    }


def test_rows_are_accounted_for_where_they_are_joined(config_file: Path, tmp_path: Path) -> None:
    sources = [write(tmp_path / f"{name}.jsonl", alpaca(name, 40)) for name in ("ant", "bee")]
    settings = (f"data.source={json.dumps(sources)}", "data.chats={turns: 2}", "data.train_rows=20")
    report, _ = prepared(config_file, tmp_path, *settings)
    assert report["unused"]["over data.train_rows 20"] > 0
    for source in report["sources"].values():
        assert source["read"] == 40 == sum(source["used"].values()) + sum(source["unused"].values())


def test_other_rows_of_a_held_out_group_are_counted(config_file: Path, tmp_path: Path) -> None:
    rows = [{**row, "group": f"g{i // 3}"} for i, row in enumerate(alpaca("ant", 60))]
    report, _ = prepared(config_file, tmp_path, f"data.source={write(tmp_path / 'a.jsonl', rows)}")
    held_out = report["rows"]["validation"] + report["rows"]["test"]
    assert report["unused"] == {"in the group of a held-out row": 2 * held_out}


def test_ten_rows_of_each_shape_are_shown(config_file: Path, tmp_path: Path) -> None:
    sources = [
        write(tmp_path / "a.jsonl", alpaca("ant", 60)),
        write(tmp_path / "b.jsonl", chats("bee", 60)),
        write(tmp_path / "c.jsonl", [{"prompt": f"cat{i}?", "completion": f"cat{i}"} for i in range(6)]),
    ]
    report, made = prepared(config_file, tmp_path, f"data.source={json.dumps(sources)}")
    counts = report["shapes"]
    assert set(counts) == {"alpaca", "OpenAI messages", "prompt and completion"}
    for shape, count in counts.items():
        assert f"<h3>{shape}: {min(count, EXAMPLES)} of {count} rows</h3>" in made
    for word in ("ant", "bee", "cat"):
        assert f"<mark>{word}" in made


def test_what_few_held_out_rows_can_tell_is_said() -> None:
    def sides(validation: int, test: int) -> dict[str, Any]:
        return {"validation": range(validation), "test": range(test)}

    assert list(few_rows(sides(10, 12))) == []
    assert list(few_rows(sides(4, 12))) == [
        "validation has only 4 rows: a share of answers measured there is known to ±0.35"
    ]
    assert [line.split()[0] for line in few_rows(sides(1, 1))] == ["validation", "test"]
