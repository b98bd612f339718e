"""Wrong settings, one sentence each: the setting, what was expected, the value; never pydantic's words."""

import json
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from trainer.cli import main
from trainer.config import RunConfig
from trainer.config_file import from_here, load
from trainer.config_words import EXPECTED
from trainer.errors import ConfigError

CASES = {
    "greater_than_equal": ("sweep.ranks=[0]", "sweep.ranks.0: expected a number of at least 1, got 0"),
    "greater_than": ("train.epochs=0", "train.epochs: expected a number above 0.0, got 0"),
    "less_than_equal": (
        "evaluate.min_stopped=2", "evaluate.min_stopped: expected a number of at most 1.0, got 2",
    ),
    "less_than": ("lora.dropout=1", "lora.dropout: expected a number below 1.0, got 1"),
    "int_type": ("data.test_rows=[4]", "data.test_rows: expected a whole number, got [4]"),
    "int_parsing": ("seed=x", 'seed: expected a whole number, got "x"'),
    "int_parsing_size": (
        f"seed='{'9' * 4301}'", f'seed: expected a whole number of fewer digits, got "{"9" * 56}...',
    ),
    "int_from_float": ("seed=1.5", "seed: expected a whole number, got 1.5"),
    "float_type": ("train.epochs={}", "train.epochs: expected a number, got {}"),
    "float_parsing": ("train.epochs=many", 'train.epochs: expected a number, got "many"'),
    "finite_number": ("train.epochs=.inf", "train.epochs: expected a finite number, got Infinity"),
    "bool_type": ("train.restore_best=[]", "train.restore_best: expected true or false, got []"),
    "bool_parsing": ("train.restore_best=maybe", 'train.restore_best: expected true or false, got "maybe"'),
    "string_type": ("name=3", "name: expected a text; put it in quotes, got 3"),
    "string_unicode": (
        r'description="\ud800"', r'description: expected a text without half surrogate pairs, got "\ud800"',
    ),
    "string_too_short": ("description=''", 'description: expected a text that is not empty, got ""'),
    "string_pattern_mismatch": (
        "name=a b", 'name: expected a text of the form ^[A-Za-z0-9][A-Za-z0-9._-]*$, got "a b"',
    ),
    "path_type": ("evaluate.prompts=5", "evaluate.prompts: expected a path, got 5"),
    "literal_error": ("train.device=gpu", "train.device: expected 'auto', 'cpu' or 'cuda', got \"gpu\""),
    "tuple_type": ("sweep.ranks=8", "sweep.ranks: expected a list, such as [8], got 8"),
    "too_short": ("sweep.ranks=[]", "sweep.ranks: expected a list of at least 1, got []"),
    "too_long": (
        "train.adam_betas=[0, 0, 0]", "train.adam_betas: expected a list of at most 2, got [0, 0, 0]",
    ),
    "dict_type": ("data.roles=5", "data.roles: expected keys with values, such as {a: b}, got 5"),
    "model_type": ("data=5", "data: expected a section with settings of its own, got 5"),
    "missing": (
        "data.columns={prompt: a}", "data.columns.response: expected a value, because it has no default",
    ),
    "missing in a list": ("train.adam_betas=[0.9]", "train.adam_betas: expected a list of more than 1"),
    "value_error": ("lora.alpha=3", "lora: give either `alpha` or `scaling`"),
    "true for a number": ("data.near_duplicates=true", "data.near_duplicates: expected a number, got true"),
}  # fmt: skip
PYDANTIC = ("Input should", "Extra inputs", "Field required", "Value error", "should have at", "valid ")


def refusal(file: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(file, overrides)
    return str(caught.value).removeprefix(f"{file}: ")


def test_each_kind_of_rule_has_a_sentence_that_is_tried() -> None:
    assert set(EXPECTED) <= set(CASES)


@pytest.mark.parametrize("kind", CASES)
def test_a_value_against_a_rule_is_refused_in_one_sentence(config_file: Path, kind: str) -> None:
    override, sentence = CASES[kind]
    assert refusal(config_file, override) == sentence


def fields(model: type[BaseModel], above: str = "") -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield above + name
        for inner in (field.annotation, *typing.get_args(field.annotation)):
            if isinstance(inner, type) and issubclass(inner, BaseModel):
                yield from fields(inner, f"{above}{name}.")


@pytest.mark.parametrize("field", list(fields(RunConfig)))
def test_no_setting_answers_a_wrong_value_in_the_words_of_pydantic(config_file: Path, field: str) -> None:
    refused = 0
    for value in (
        "[]",
        "{}",
        "[{}]",
        "{a: {}}",
        "word",
        "-1",
        "1.5",
        "null",
        "true",
        ".nan",
        "9" * 400,
        "''",
    ):
        try:
            load(config_file, [f"{field}={value}"])
        except ConfigError as error:
            refused += 1
            assert field.partition(".")[0] in str(error), "it names the setting"
            assert not [words for words in PYDANTIC if words in str(error)], str(error)
    assert refused, "a setting that takes everything has no rule"


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("train.max_step=5", "train.max_step: no such setting; did you mean max_steps?"),
        ("trian={}", "trian: no such setting; did you mean train?"),
        ("train.learning_rate=1", "train.learning_rate: no such setting; did you mean sweep.learning_rates?"),
        ("train.max_length=5", "train.max_length: no such setting here; max_length belongs under data"),
        ("train.name=a", "train.name: no such setting here; name belongs under the top level"),
        (
            "sweep.max_new_tokens=5",
            "sweep.max_new_tokens: no such setting here; max_new_tokens belongs under data.general or "
            "evaluate",
        ),
        (
            "evaluate.benchmarks=[{task: mmlu, max_drop: 0, limits: 3}]",
            "evaluate.benchmarks.0.limits: no such setting; did you mean limit?",
        ),
        (
            "lora.zzz=1",
            "lora.zzz: no such setting; lora has alpha, scaling, dropout, target_modules, rslora, dora, "
            "modules_to_save, adapter",
        ),
    ],
)
def test_an_unknown_setting_is_answered_by_the_one_that_is_meant(
    config_file: Path, override: str, sentence: str
) -> None:
    assert refusal(config_file, override) == sentence


def test_paths_of_an_override_count_from_where_the_user_stands(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = tmp_path / "hé re"
    here.mkdir()
    monkeypatch.chdir(here)
    overrides = [
        "data.source=rows.jsonl", "base.path=base", "evaluate.prompts=p.txt", "data.general.prompts=g.txt",
        "data.contamination=[exam.jsonl]", "evaluate.benchmarks=[{task: mmlu, max_drop: 0, file: m.jsonl}]",
    ]  # fmt: skip
    loaded = load(config_file, overrides)
    assert loaded.data.general
    assert loaded.data.source[0].source == str(here / "rows.jsonl")
    assert loaded.base.path == here / "base"
    assert loaded.evaluate.prompts == here / "p.txt"
    assert loaded.data.general.prompts == here / "g.txt"
    assert loaded.data.contamination == (here / "exam.jsonl",)
    assert loaded.evaluate.benchmarks[0].file == here / "m.jsonl"


def test_an_arm_that_starts_elsewhere_reads_the_same_files(
    config_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An arm on another machine has another working directory, so the command names whole paths."""
    monkeypatch.chdir(tmp_path)
    given = ["data.source=rows.jsonl", "train.epochs=1e-1", "data.test=[{source: t.csv}]", "seed=3"]
    handed_on = [from_here(override) for override in given]
    test = json.dumps([{"source": str(tmp_path / "t.csv")}])
    whole = [
        f"data.source={json.dumps(str(tmp_path / 'rows.jsonl'))}",
        given[1],
        f"data.test={test}",
        given[3],
    ]
    assert handed_on == whole and from_here("data.source=stdlib-docs") == "data.source=stdlib-docs"
    first = load(config_file, given)
    monkeypatch.chdir("/")
    assert load(config_file, handed_on) == first


def test_paths_of_the_file_count_from_its_folder_wherever_the_user_stands(
    tmp_path: Path, config_values: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    config_values["data"]["source"] = "rows.jsonl"
    (tmp_path / "profiles").mkdir()
    (tmp_path / "profiles" / "my.yaml").write_text(yaml.safe_dump(config_values))
    monkeypatch.chdir(tmp_path)
    loaded = load(Path("profiles/my.yaml"), ["seed=8"])
    assert Path(loaded.data.source[0].source).absolute() == tmp_path / "profiles" / "rows.jsonl"


def test_the_command_line_shows_the_sentence(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--config", str(config_file), "--set", "train.max_step=5"]) == 1
    assert capsys.readouterr().err == (
        f"trainer: {config_file}: train.max_step: no such setting; did you mean max_steps?\n"
    )
