"""Held-out rows of the data's own: kept as they are, never trained on, and made where there are none."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

from trainer.cli import main
from trainer.config_data import DataConfig
from trainer.data.layout import file_sides, side_of, split_sides
from trainer.data.select import Selected, divide, select
from trainer.data.split import Split
from trainer.errors import DataError

SEED = 7


def row(question: str, answer: str = "") -> dict[str, str]:
    return {"instruction": question, "output": answer or f"{question}!"}


def write(file: Path, rows: list[dict[str, str]]) -> str:
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return str(file)


def numbered(word: str, count: int) -> list[dict[str, str]]:
    return [row(f"{word}{i}") for i in range(count)]


def data(source: Any, **more: Any) -> DataConfig:
    values = {"max_length": 96, "validation_rows": 50, "test_rows": 50, **more}
    return DataConfig.model_validate({"source": source, **values})


def split_of(source: Any, **more: Any) -> tuple[Selected, Split]:
    config = data(source, **more)
    selected = select(config, SEED)
    return selected, divide(selected, config, SEED)


def questions(rows: Any) -> set[str]:
    return {r.messages[0].content for r in rows}


@pytest.mark.parametrize(
    ("parts", "side"),
    [
        (("train",), "train"),
        (("train-00000-of-00012",), "train"),
        (("train-00000-of-00012-0a1b2c3d",), "train"),
        (("chat_train",), "train"),
        (("VAL",), "validation"),
        (("dev",), "validation"),
        (("valid-v2",), "validation"),
        (("test_sft",), "test"),
        (("eval",), "test"),
        (("validation", "data"), "validation"),
        (("default", "test", "0000"), "test"),
        (("train", "test_questions"), "train"),
        (("latest",), None),
        (("contested", "attestation"), None),
        (("my_test_rows",), None),
        (("data",), None),
    ],
)
def test_a_name_says_its_side(parts: tuple[str, ...], side: str | None) -> None:
    assert side_of(*parts) == side


LAYOUTS = {
    "folders": ("train/data.jsonl", "validation/data.jsonl", "test/data.jsonl"),
    "files": ("train.jsonl", "dev.jsonl", "test.jsonl"),
    "shards": ("data/train-00000-of-00001.jsonl", "data/val-00000-of-00001.jsonl", "data/test-0.jsonl"),
    "one without a side": ("rows.jsonl", "valid.jsonl", "eval.jsonl"),
}  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_splits_of_a_folder_are_kept(tmp_path: Path, layout: str) -> None:
    for file, word in zip(LAYOUTS[layout], ("t", "v", "x"), strict=True):
        write(tmp_path / "set" / file, numbered(word, 9))
    _, parts = split_of(str(tmp_path / "set"))
    assert questions(parts.train) == {f"t{i}" for i in range(9)}
    assert questions(parts.validation) == {f"v{i}" for i in range(9)}
    assert questions(parts.test) == {f"x{i}" for i in range(9)}


def test_a_saved_dataset_dict_keeps_its_splits(tmp_path: Path) -> None:
    saved = {side: datasets.Dataset.from_list(numbered(side, 9)) for side in ("train", "validation", "test")}
    datasets.DatasetDict(saved).save_to_disk(tmp_path / "saved")
    _, parts = split_of(str(tmp_path / "saved"))
    for side in saved:
        assert questions(getattr(parts, side)) == {f"{side}{i}" for i in range(9)}


def test_a_folder_whose_names_say_nothing_is_one_set(tmp_path: Path) -> None:
    for name in ("a.jsonl", "b.jsonl"):
        write(tmp_path / "set" / name, numbered(name[0], 20))
    write(tmp_path / "tests" / "test.jsonl", numbered("x", 20))
    assert list(file_sides(tmp_path / "set")) == ["train"]
    assert list(file_sides(tmp_path / "tests")) == ["train"], "nothing would be left to train on"


def test_a_side_that_is_not_given_is_made_from_train(tmp_path: Path) -> None:
    write(tmp_path / "set/train.jsonl", numbered("t", 40))
    write(tmp_path / "set/test.jsonl", numbered("x", 3))
    _, parts = split_of(str(tmp_path / "set"))
    assert questions(parts.test) == {"x0", "x1", "x2"}
    assert parts.validation and questions(parts.validation) < {f"t{i}" for i in range(40)}
    assert len(parts.train) + len(parts.validation) == 40


def test_one_row_a_side_is_enough(tmp_path: Path) -> None:
    for side in ("train", "validation", "test"):
        write(tmp_path / "set" / f"{side}.jsonl", numbered(side, 1))
    _, parts = split_of(str(tmp_path / "set"))
    assert [len(side) for side in (parts.train, parts.validation, parts.test)] == [1, 1, 1]


def test_two_rows_to_train_on_are_enough_where_only_test_is_given(tmp_path: Path) -> None:
    rows, test = write(tmp_path / "r.jsonl", numbered("t", 2)), write(tmp_path / "x.jsonl", numbered("x", 1))
    _, parts = split_of(rows, test=test)
    assert [len(side) for side in (parts.train, parts.validation, parts.test)] == [1, 1, 1]
    with pytest.raises(DataError, match="1 group, and each of train and validation needs one"):
        split_of(write(tmp_path / "r.jsonl", numbered("t", 1)), test=test)


def test_given_sources_replace_the_split_and_the_folders_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path / "set/train.jsonl", numbered("t", 30))
    write(tmp_path / "set/test.jsonl", numbered("x", 3))
    given = [write(tmp_path / f"{name}.jsonl", numbered(name, 2)) for name in ("mine", "more")]
    _, parts = split_of(str(tmp_path / "set"), test=given)
    assert questions(parts.test) == {"mine0", "mine1", "more0", "more1"}
    assert "its own test split is not read, because data.test is set" in capsys.readouterr().out


def test_a_given_source_with_splits_gives_the_one_of_that_side(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", numbered("r", 30))
    for side in ("train", "validation"):
        write(tmp_path / "set" / f"{side}.jsonl", numbered(side, 3))
    _, parts = split_of(rows, validation=str(tmp_path / "set"))
    assert questions(parts.validation) == {"validation0", "validation1", "validation2"}
    with pytest.raises(
        DataError, match=r"data\.test .*set has the splits train, validation and none for test"
    ):
        split_of(rows, test=str(tmp_path / "set"))


def test_a_source_with_a_test_split_leaves_the_others_theirs(tmp_path: Path) -> None:
    write(tmp_path / "set/train.jsonl", numbered("t", 60))
    write(tmp_path / "set/test.jsonl", numbered("x", 2))
    _, parts = split_of([str(tmp_path / "set"), write(tmp_path / "own.jsonl", numbered("own", 60))])
    tested = questions(parts.test)
    assert {"x0", "x1"} < tested and any(text.startswith("own") for text in tested)
    assert not any(text.startswith("t") for text in tested), "its test split is the whole of its test"


def test_what_stands_in_a_held_out_side_is_not_trained_on(tmp_path: Path) -> None:
    write(
        tmp_path / "set/train.jsonl", [*numbered("t", 20), row("x0"), row("x1", "another answer"), row("v0")]
    )
    write(tmp_path / "set/validation.jsonl", [*numbered("v", 4), row("x2"), row("x3", "again")])
    write(tmp_path / "set/test.jsonl", numbered("x", 5))
    selected, parts = split_of(str(tmp_path / "set"))
    assert questions(parts.test) == {f"x{i}" for i in range(5)}
    assert questions(parts.validation) == {f"v{i}" for i in range(4)}
    assert questions(parts.train) == {f"t{i}" for i in range(20)}
    accounts = selected.cleaned.accounts
    assert accounts["train.jsonl"].dropped == {
        "the same as a held-out row": 2, "first question of a held-out row": 1
    }  # fmt: skip
    assert accounts["validation.jsonl"].dropped == {
        "the same as a held-out row": 1, "first question of a held-out row": 1
    }  # fmt: skip
    assert not accounts["test.jsonl"].dropped


def test_groups_that_given_sides_share_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = write(
        tmp_path / "r.jsonl", [{**r, "group": f"g{i // 4}"} for i, r in enumerate(numbered("t", 20))]
    )
    test = write(tmp_path / "x.jsonl", [{**row("x"), "group": "g1"}])
    selected, _ = split_of(rows, test=test)
    assert "4 rows share a group with held-out rows; they stay" in capsys.readouterr().out
    assert len(selected.cleaned.conversations) == 20
    split_of(rows)
    assert "share a group" not in capsys.readouterr().out


def test_near_duplicates_of_a_held_out_row_are_not_trained_on(tmp_path: Path) -> None:
    words = " ".join(f"word{i}" for i in range(60))
    close = [row(f"{words} {end}", words) for end in ("alpha", "beta", "gamma")]
    rows = write(tmp_path / "r.jsonl", [*numbered("t", 20), close[0]])
    test = write(tmp_path / "x.jsonl", [*close[1:], row("x")])
    selected, parts = split_of(rows, test=test, near_duplicates=0.8)
    assert selected.cleaned.dropped == {"near duplicate of a held-out row": 1}
    assert len(parts.test) == 3, "a data set's own test rows stay, also those that resemble each other"
    without, _ = split_of(rows, test=test)
    assert not without.cleaned.dropped


def test_a_held_out_side_without_a_usable_row_is_refused(tmp_path: Path) -> None:
    rows = write(tmp_path / "r.jsonl", numbered("t", 20))
    test = write(tmp_path / "x.jsonl", [{"instruction": "asked", "output": ""}])
    with pytest.raises(
        DataError, match=r"test rows of .*x\.jsonl: none is usable: 1 dropped.*leave data\.test out"
    ):
        split_of(rows, test=test)


def test_the_splits_of_a_hub_data_set_are_known_by_their_names() -> None:
    assert split_sides(["train", "test"]) == {"train": "train", "test": "test"}
    assert split_sides(["train", "dev", "eval"]) == {"train": "train", "validation": "dev", "test": "eval"}
    assert split_sides(["train_sft", "test_sft"]) == {"train": "train_sft", "test": "test_sft"}
    assert split_sides(["train", "train_small", "test", "eval"]) == {"train": "train", "test": "test"}
    assert split_sides(["train_sft", "train_gen", "test_sft"]) == {}
    assert split_sides(["latest", "oldest"]) == {}


def test_prepare_says_which_rows_are_the_datas_own(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for side, count in (("train", 12), ("validation", 9), ("test", 2)):
        write(tmp_path / "set" / f"{side}.jsonl", numbered(side, count))
    flags = [f"data.source={tmp_path / 'set'}", "data.general=null"]
    settings = [part for flag in flags for part in ("--set", flag)]
    assert main(["prepare", "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *settings]) == 0
    said = capsys.readouterr().out
    assert "test has rows of its own: 2 of test.jsonl" in said
    assert "12 train, 6 validation, 2 test" in said
    assert "3 usable rows are neither trained on nor measured: 3 over data.validation_rows 6" in said
    (file,) = tmp_path.glob("a/data/*/report.json")
    report = json.loads(file.read_text())
    assert report["sources"]["validation.jsonl"]["used"] == {"validation": 6}
    assert report["sources"]["validation.jsonl"]["unused"] == {"over data.validation_rows 6": 3}
