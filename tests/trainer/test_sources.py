"""Several sources in one run: their rows, weights and names, and what a run with them is known by."""

import json
from collections import Counter
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from trainer import base_model, identity
from trainer.cli import main
from trainer.config_data import DataConfig, describe_sources
from trainer.config_file import load
from trainer.data.layout import short_names
from trainer.data.prepare import prepare
from trainer.data.select import Selected, divide, select
from trainer.data.split import Split
from trainer.errors import DataError
from trainer.files import sha256_file
from trainer.source_name import HubName

SEED = 7


def write(file: Path, words: str, count: int, **more: Any) -> Path:
    """Rows of an alpaca file, each with a question of its own."""
    rows = [{"instruction": f"Say {words}{i}.", "output": f"{words}{i}", **more} for i in range(count)]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def data(source: Any, **more: Any) -> DataConfig:
    values = {"max_length": 96, "validation_rows": 50, "test_rows": 50, **more}
    return DataConfig.model_validate({"source": source, **values})


def split_of(config: DataConfig) -> tuple[Selected, Split]:
    selected = select(config, SEED)
    return selected, divide(selected, config, SEED)


def texts(rows: Any) -> Counter[str]:
    return Counter(row.messages[-1].content for row in rows)


def test_rows_of_all_sources_are_on_every_side(tmp_path: Path) -> None:
    sources = [str(write(tmp_path / f"{name}.jsonl", name, 100)) for name in ("ant", "bee")]
    selected, parts = split_of(data(sources))
    for side in (parts.train, parts.validation, parts.test):
        assert {row.files[0] for row in side} == {"ant.jsonl", "bee.jsonl"}
    assert {file: account.read for file, account in selected.cleaned.accounts.items()} == {
        "ant.jsonl": 100, "bee.jsonl": 100
    }  # fmt: skip


def test_a_weight_under_one_takes_that_share_and_counts_the_rest(tmp_path: Path) -> None:
    write(tmp_path / "ant.jsonl", "ant", 60)
    write(tmp_path / "bee.jsonl", "bee", 60)
    weighted = [str(tmp_path / "ant.jsonl"), {"source": str(tmp_path / "bee.jsonl"), "weight": 0.25}]
    selected, _ = split_of(data(weighted))
    rows = selected.cleaned.conversations
    assert Counter(row.files[0] for row in rows) == {"ant.jsonl": 60, "bee.jsonl": 15}
    assert selected.cleaned.unused == {"by weight 0.25": 45} and not selected.cleaned.dropped
    again, _ = split_of(data(weighted))
    assert texts(again.cleaned.conversations) == texts(rows), "the same rows each time"


def test_two_sources_of_one_weight_give_a_share_of_each(tmp_path: Path) -> None:
    sources = [
        {"source": str(write(tmp_path / f"{name}.jsonl", name, count)), "weight": 0.5}
        for name, count in (("ant", 80), ("bee", 20))
    ]
    rows = split_of(data(sources))[0].cleaned.conversations
    assert Counter(row.files[0] for row in rows) == {"ant.jsonl": 40, "bee.jsonl": 10}


def test_a_weight_over_one_repeats_rows_of_train_and_no_held_out_row(tmp_path: Path) -> None:
    write(tmp_path / "ant.jsonl", "ant", 40)
    write(tmp_path / "bee.jsonl", "bee", 40)
    weighted = [str(tmp_path / "ant.jsonl"), {"source": str(tmp_path / "bee.jsonl"), "weight": 2.5}]
    _, parts = split_of(data(weighted))
    times = texts(parts.train)
    bees = [count for text, count in times.items() if text.startswith("bee")]
    assert set(bees) == {2, 3} and abs(bees.count(3) - len(bees) / 2) <= 0.5
    assert {count for text, count in times.items() if text.startswith("ant")} == {1}
    assert set(texts([*parts.validation, *parts.test]).values()) == {1}


def test_half_again_is_half_of_each_source(tmp_path: Path) -> None:
    sources = [
        {"source": str(write(tmp_path / f"{name}.jsonl", name, count)), "weight": 1.5}
        for name, count in (("ant", 60), ("bee", 12))
    ]
    _, parts = split_of(data(sources))
    once = Counter(row.files[0] for row in set(parts.train))
    again = Counter(row.files[0] for row in parts.train) - once
    assert all(abs(again[name] - count / 2) <= 0.5 for name, count in once.items())


def test_each_source_may_have_columns_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "sql.jsonl").write_text(
        "".join(json.dumps({"question": f"q{i}", "sql": f"s{i}"}) + "\n" for i in range(20))
    )
    mapped = {
        "source": str(tmp_path / "sql.jsonl"), "columns": {"prompt": "question", "response": "sql"},
    }  # fmt: skip
    selected, _ = split_of(data([mapped, str(write(tmp_path / "ant.jsonl", "ant", 20))]))
    assert len(selected.cleaned.conversations) == 40 and not selected.cleaned.dropped


def test_a_source_without_a_readable_row_is_refused_with_its_mapping(tmp_path: Path) -> None:
    (tmp_path / "sql.jsonl").write_text('{"question": "q", "sql": "s"}\n' * 9)
    sources = [str(write(tmp_path / "ant.jsonl", "ant", 20)), str(tmp_path / "sql.jsonl")]
    with pytest.raises(DataError) as raised:
        split_of(data(sources))
    assert "sql.jsonl has no usable row: 9 dropped" in str(raised.value)
    assert "set columns: {prompt: question, response: sql} beside this source" in str(raised.value)


def test_a_row_in_two_sources_is_used_once_and_counted_where_it_is_dropped(tmp_path: Path) -> None:
    sources = [str(write(tmp_path / name / "rows.jsonl", "same", 30)) for name in ("one", "two")]
    selected, _ = split_of(data(sources))
    accounts = selected.cleaned.accounts
    assert len(selected.cleaned.conversations) == 30
    assert accounts["two/rows.jsonl"].dropped == {"exact duplicate": 30}
    assert not accounts["one/rows.jsonl"].dropped


def test_files_of_one_name_are_told_apart_by_as_few_folders_as_it_takes() -> None:
    files = [Path(name) for name in ("/d/x/a.jsonl", "/d/y/a.jsonl", "/d/y/b.jsonl", "/e/y/a.jsonl")]
    assert list(short_names(files).values()) == ["b.jsonl", "x/a.jsonl", "d/y/a.jsonl", "e/y/a.jsonl"]
    assert short_names(files)[files[1]] == "d/y/a.jsonl"


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("[a.jsonl, a.jsonl]", "a.jsonl twice: `weight: 2` repeats rows"),
        ("[a.jsonl, {source: b.jsonl, weight: 0}]", "data.source.1.weight: expected a number above"),
        ("[{weight: 2}]", "data.source.0.source: expected a value"),
        ("[]", "data.source: expected a list of at least 1"),
        ("hub:o/n/too/deep", "is not of the form hub:OWNER/NAME:SUBSET@REVISION#SPLIT"),
        ("hub:o/n@revision:subset", "is not of the form hub:OWNER/NAME:SUBSET@REVISION#SPLIT"),
    ],
)
def test_wrong_sources_are_answered_in_one_sentence(
    config_file: Path, capsys: pytest.CaptureFixture[str], value: str, message: str
) -> None:
    assert main(["check", "--config", str(config_file), "--set", f"data.source={value}"]) == 1
    error = capsys.readouterr().err
    assert message in error and error.count("\n") == 1


def test_a_held_out_source_has_no_weight(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flag = "data.test={source: t.jsonl, weight: 2}"
    assert main(["check", "--config", str(config_file), "--set", flag]) == 1
    assert "t.jsonl: `weight` belongs to `source`" in capsys.readouterr().err


def test_every_source_that_is_missing_is_named_before_any_work(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    flags = ["--set", "data.source=[/no/a.jsonl, {source: /no/b.jsonl}]", "--set", "data.test=/no/c.jsonl"]
    assert main(["check", "--config", str(config_file), *flags]) == 1
    error = capsys.readouterr().err
    for name in ("data.source /no/a.jsonl", "data.source /no/b.jsonl", "data.test /no/c.jsonl"):
        assert f"{name} does not exist" in error


def test_relative_sources_count_from_the_file_in_every_form(
    tmp_path: Path, config_values: dict[str, Any]
) -> None:
    config_values["data"] |= {"source": ["a.jsonl", {"source": "b.jsonl", "weight": 2}], "test": "c.jsonl"}
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config_values))
    found = load(path).data
    named = [source.source for source in (*found.source, *found.test)]
    assert named == [str(tmp_path / name) for name in ("a.jsonl", "b.jsonl", "c.jsonl")]


def test_sources_are_written_as_they_were_given(tmp_path: Path) -> None:
    for given in ("stdlib-docs", ["hub:o/n", {"source": "hub:p/q", "weight": 0.5}]):
        assert data(given).model_dump(mode="json")["source"] == given


def test_no_folder_of_this_machine_is_published() -> None:
    given = data(
        ["/home/someone/a.jsonl", {"source": "hub:o/n", "weight": 0.5}], test="/home/someone/b.jsonl"
    )
    assert describe_sources(given, public=True) == "a.jsonl, hub:o/n (weight 0.5); test: b.jsonl"


@pytest.mark.parametrize(
    ("source", "described"),
    [
        ("hub:o/n", "hub:o/n@{}"),
        ("hub:o/n:de@main#train", "hub:o/n:de@{}#train"),
        ("hub:o/n#train", "hub:o/n@{}#train"),
        ("a.jsonl", "a.jsonl"),
    ],
)
def test_a_source_of_the_hub_is_described_with_its_commit(source: str, described: str) -> None:
    commit = "c" * 40
    found = describe_sources(data([source]), commits={source: commit})
    assert found == described.format(commit)
    assert HubName.parse(found).revision == commit if source.startswith("hub:") else found == source


class HubSplit(list[dict[str, str]]):
    """A split as `datasets` returns it, from its cache."""

    cache_files: ClassVar = [{"filename": f"/cache/o___n/default/0.0.0/{'c' * 40}/n-train.arrow"}]


def test_the_commit_of_a_source_is_in_the_report_and_its_description(
    tmp_path: Path, config_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [{"prompt": f"word{i}", "completion": f"{i}"} for i in range(40)]
    monkeypatch.setattr("trainer.data.hub.load", lambda name: {"train": HubSplit(rows)})
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump({**config_values, "data": config_values["data"] | {"source": "hub:o/n"}}))
    config = load(path)
    report = prepare(config, base_model.fetch(config.base, tmp_path), tmp_path).report
    assert report["source"] == f"hub:o/n@{'c' * 40}"
    assert f"hub:o/n is at commit {'c' * 40}" in report["told"]
    assert config.data.source[0].source == "hub:o/n"


def key_of(config_values: dict[str, Any], path: Path, **settings: Any) -> str:
    path.write_text(yaml.safe_dump({**config_values, "data": config_values["data"] | settings}))
    return identity.data_key(load(path), "base")


def test_data_are_known_by_the_content_of_every_source(tmp_path: Path, config_values: dict[str, Any]) -> None:
    a, b = (str(write(tmp_path / f"{name}.jsonl", name, 5)) for name in ("ant", "bee"))
    config = tmp_path / "c.yaml"
    one = key_of(config_values, config, source=a)
    assert key_of(config_values, config, source=[a]) == one
    assert key_of(config_values, config, source=[{"source": a, "weight": 1}]) == one
    keys = {
        one,
        key_of(config_values, config, source=[a, b]),
        key_of(config_values, config, source=[a, {"source": b, "weight": 2}]),
        key_of(config_values, config, source=a, test=b),
        key_of(config_values, config, source=a, validation=b),
    }
    assert len(keys) == 5
    before = key_of(config_values, config, source=[a, b])
    write(Path(b), "bumblebee", 5)
    assert key_of(config_values, config, source=[a, b]) != before


def test_keys_of_one_source_are_those_from_before_there_could_be_several(
    config_values: dict[str, Any], config_file: Path
) -> None:
    known = identity.by_content(load(config_file).data, "data")
    assert known["source"] == sha256_file(Path(config_values["data"]["source"]))
    assert not {"validation", "test"} & set(known)
