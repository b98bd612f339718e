"""A clone of a data set's repository: the splits and subsets that its README describes, as on the Hub."""

import json
from pathlib import Path

import pytest

from trainer import identity
from trainer.data.layout import file_sides
from trainer.data.sources import read_sides
from trainer.data_card import configs_of
from trainer.errors import DataError

FILES = ("en/one.jsonl", "en/two.jsonl", "de/one.jsonl", "held.jsonl", "more/extra.jsonl")


def clone(folder: Path, configs: str) -> Path:
    for name in FILES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"prompt": name, "completion": "x"}) + "\n")
    (folder / "README.md").write_text(f"---\nlicense: mit\n{configs}---\n# A set\n")
    return folder


def read(folder: Path) -> dict[str, list[str]]:
    return {side: [row.value["prompt"] for row in rows] for side, rows in read_sides(str(folder)).items()}


EN = ["en/one.jsonl", "en/two.jsonl"]


@pytest.mark.parametrize(
    ("configs", "sides"),
    [
        ("configs:\n- config_name: default\n  data_files: en/*.jsonl\n", {"train": EN}),
        ("configs:\n- config_name: x\n  data_files: [en/one.jsonl, en/two.jsonl]\n", {"train": EN}),
        (
            "configs:\n- config_name: x\n  data_files:\n  - {split: train, path: en/*}\n"
            "  - {split: test, path: [held.jsonl]}\n",
            {"train": EN, "test": ["held.jsonl"]},
        ),
        (
            "configs:\n- config_name: x\n  data_files: {train: en/*, validation: held.jsonl}\n",
            {"train": EN, "validation": ["held.jsonl"]},
        ),
        ("configs:\n- config_name: x\n  data_dir: en\n  data_files: '*.jsonl'\n", {"train": EN}),
        (
            "configs:\n- {config_name: de, data_files: de/*}\n"
            "- {config_name: en, default: true, data_files: en/*}\n",
            {"train": EN},
        ),
        (
            "configs:\n- {config_name: de, data_files: de/*}\n- {config_name: default, data_files: en/*}\n",
            {"train": EN},
        ),
        ("configs:\n- config_name: x\n  data_files:\n  - {split: held, path: 'en/**'}\n", {"train": EN}),
    ],
)
def test_a_readme_says_which_files_are_which_side(
    tmp_path: Path, configs: str, sides: dict[str, list[str]]
) -> None:
    assert read(clone(tmp_path, configs)) == sides


@pytest.mark.parametrize(
    ("configs", "message"),
    [
        (
            "configs:\n- {config_name: de, data_files: de/*}\n- {config_name: en, data_files: en/*}\n",
            r"README\.md has several subsets: give data\.source the files of one: de \(de/\*\), en \(en/\*\)",
        ),
        ("configs:\n- data_files: gone/*\n", r"names gone/\*, and the folder has no such file"),
        ("configs:\n- data_files: /etc/*\n", r"names /etc/\*, and the folder has no such file"),
        ("configs:\n- data_files: ../*\n", r"names \.\./\*, and the folder has no such file"),
        (
            "configs:\n- data_files:\n  - {split: a, path: en/*}\n  - {split: b, path: de/*}\n",
            r"has the splits a, b: give the files of the one to train on",
        ),
    ],
)
def test_a_readme_that_leaves_a_choice_or_names_nothing_is_refused(
    tmp_path: Path, configs: str, message: str
) -> None:
    with pytest.raises(DataError, match=message):
        read(clone(tmp_path / "clone", configs))


def test_files_that_the_readme_takes_nothing_from_are_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file_sides(clone(tmp_path / "set", "configs:\n- data_files: en/*\n"))
    assert capsys.readouterr().out == (
        "  set: its README.md takes no side from de/one.jsonl, held.jsonl, more/extra.jsonl, which are not "
        "read\n"
    )


@pytest.mark.parametrize("header", ["", "configs: 7\n", "configs:\n- {config_name: x}\n", "configs: [\n"])
def test_a_readme_without_files_leaves_the_names_to_say_it(tmp_path: Path, header: str) -> None:
    assert len(read(clone(tmp_path, header))["train"]) == len(FILES)


def test_an_edited_description_is_other_data(tmp_path: Path) -> None:
    def key() -> str:
        return identity._source_sha256(tmp_path, "data.source")

    clone(tmp_path, "")
    plain = key()
    clone(tmp_path, "configs:\n- data_files: en/*\n")
    assert configs_of(tmp_path) and (described := key()) != plain
    clone(tmp_path, "configs:\n- data_files: de/*\n")
    assert key() not in (plain, described)
    clone(tmp_path, "# words only\n")
    assert key() == plain
