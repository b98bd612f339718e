import json
import re
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path

from transformers import PreTrainedTokenizerFast

from trainer import base_model
from trainer.cli import main
from trainer.config_file import load
from trainer.data.conversation import Conversation, Message
from trainer.data.prepare import EXAMPLES, prepare
from trainer.data.report import Example
from trainer.data.row_file import RowFile, rows_fingerprint
from trainer.data.tokenize import ChatTokenizer, TokenRow
from trainer.identity import fingerprint
from trainer.pages.data_report import EXAMPLE_CHARACTERS, page, write_page

REPORT = {
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
