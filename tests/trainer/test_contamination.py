import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.cli import main
from trainer.config_file import load
from trainer.data.clean import Cleaned
from trainer.data.contamination import check_files, drop_contaminated
from trainer.data.conversation import Conversation, Message
from trainer.errors import DataError

ITEM = "A farmer has twelve cows and sells five of them to a neighbour before the long winter comes."


def row(question: str) -> Conversation:
    return Conversation((Message("user", question), Message("assistant", "Yes.")), "s", where="rows:1")


def evaluation(tmp_path: Path, *items: Any) -> Path:
    file = tmp_path / "exam.jsonl"
    file.write_text("".join(json.dumps(item) + "\n" for item in items))
    return file


def left(rows: list[Conversation], *files: Path) -> Cleaned:
    cleaned = Cleaned(conversations=rows)
    drop_contaminated(cleaned, files)
    return cleaned


def test_a_row_with_thirteen_words_of_an_exam_is_dropped_and_counted_by_file(tmp_path: Path) -> None:
    thirteen, twelve = " ".join(ITEM.split()[2:15]), " ".join(ITEM.split()[2:14])
    file = evaluation(tmp_path, {"question": ITEM})
    cleaned = left([row(thirteen.upper() + "?!"), row(twelve), row("Unrelated " * 20)], file)
    assert [c.messages[0].content for c in cleaned.conversations] == [twelve, "Unrelated " * 20]
    assert cleaned.dropped == {"contaminated by exam.jsonl": 1}
    assert cleaned.first_places == {"contaminated by exam.jsonl": "rows:1"}


CHINESE = "".join(chr(i) for i in range(0x4E00, 0x4E80))
THAI = "".join(chr(i) for i in range(0x0E01, 0x0E2F))


@pytest.mark.parametrize(("exam", "letters"), [(CHINESE, 26), (THAI, 39)], ids=["Chinese", "Thai"])
def test_letters_of_scripts_without_spaces_count_by_what_they_say(
    tmp_path: Path, exam: str, letters: int
) -> None:
    """Thirteen Chinese characters are eight English words, and thirteen Thai letters four."""
    file = evaluation(tmp_path, {"question": f"{exam[:20]}，{exam[20:]}。"})
    enough, few = exam[3 : 3 + letters], exam[3 : 2 + letters]
    cleaned = left([row(f"?{enough}!"), row(few), row(exam[::-1])], file)
    assert [c.messages[0].content for c in cleaned.conversations] == [few, exam[::-1]]


def test_words_and_letters_make_one_stretch(tmp_path: Path) -> None:
    """Five words and 16 characters weigh as much as 13 words."""
    exam = f"{CHINESE[:10]} sort 12 apples {CHINESE[10:16]} by price"
    file = evaluation(tmp_path, {"question": exam})
    enough = f"{CHINESE[:10]}sort 12 apples {CHINESE[10:16]} by price"
    few, other = enough[1:], enough.replace("12", "13")
    cleaned = left([row(enough), row(few), row(other)], file)
    assert [c.messages[0].content for c in cleaned.conversations] == [few, other]


@pytest.mark.parametrize("item", [{"choices": {"text": ["no", ITEM]}}, [ITEM], {"n": 3, "q": {"a": ITEM}}])
def test_strings_are_found_wherever_they_are_nested(tmp_path: Path, item: Any) -> None:
    assert left([row(ITEM)], evaluation(tmp_path, item)).dropped.total() == 1


def test_two_strings_of_an_exam_are_not_read_as_one(tmp_path: Path) -> None:
    words = ITEM.split()
    file = evaluation(tmp_path, {"a": " ".join(words[:9]), "b": " ".join(words[9:]), "c": "other " * 13})
    assert left([row(ITEM)], file).dropped.total() == 0


def test_a_second_exam_is_checked_too(tmp_path: Path) -> None:
    first = evaluation(tmp_path, {"q": "another thing " * 9})
    second = tmp_path / "second.json"
    second.write_text(json.dumps([{"q": ITEM}]))
    assert left([row(ITEM)], first, second).dropped == {"contaminated by second.json": 1}


@pytest.mark.parametrize(
    ("content", "message"),
    [("{broken\n", "exam.jsonl:1 is not JSON"), ('{"q": "short"}\n', "nothing to check")],
)
def test_an_exam_that_cannot_be_checked_is_refused(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "exam.jsonl"
    file.write_text(content)
    with pytest.raises(DataError, match=message):
        left([row(ITEM)], file)


def test_a_missing_exam_is_reported_by_its_key_and_path(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"data\.contamination .*absent\.jsonl"):
        check_files([tmp_path / "absent.jsonl"])


def test_relative_exams_count_from_the_config_file(config_file: Path, config_values: dict[str, Any]) -> None:
    config_values["data"]["contamination"] = ["exams/a.jsonl"]
    config_file.write_text(yaml.safe_dump(config_values))
    loaded = load(config_file)
    assert loaded.data.contamination == (config_file.parent / "exams/a.jsonl",)


def test_prepare_leaves_contaminated_rows_out_of_every_side(config_file: Path, tmp_path: Path) -> None:
    rows = [{"instruction": f"{ITEM} number {i}" if i % 2 else f"q{i}", "output": "a"} for i in range(160)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    evaluation(tmp_path, {"q": ITEM})
    settings = [f"data.contamination=[{tmp_path / 'exam.jsonl'}]", "data.general=null", "data.max_length=512"]
    settings += ["train.tokens_per_step=512"]
    flags = [part for setting in settings for part in ("--set", setting)]
    assert main(["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *flags]) == 0
    (report,) = (json.loads(p.read_text()) for p in tmp_path.glob("a/data/*/report.json"))
    assert report["dropped"] == {"contaminated by exam.jsonl": 80}
    assert report["usable_rows_by_source"] == {"rows.jsonl": 80}
