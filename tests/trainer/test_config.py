import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer.cli import main
from trainer.config_data import CONFIGS
from trainer.config_file import load
from trainer.errors import ConfigError
from trainer.identity import fingerprint
from trainer.source_name import public_source


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_every_shipped_profile_loads(path: Path) -> None:
    assert load(path).name


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda p: p.stem)
def test_a_shipped_profile_that_compares_ranks_can_call_one_better(path: Path) -> None:
    """With one seed it never could. The quickstart has one nevertheless, because it must end in minutes."""
    sweep = load(path).sweep
    assert len(sweep.ranks or ()) == 1 or len(set(sweep.seeds)) >= 2 or path.stem == "quickstart"


def test_unknown_key_is_refused_by_its_name(config_file: Path) -> None:
    with pytest.raises(ConfigError, match=r"train\.learning_rat"):
        load(config_file, ["train.learning_rat=1"])


def test_rank_of_zero_is_refused_with_the_value_seen(config_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config_file, ["sweep.ranks=[0]"])
    found = str(caught.value).removeprefix(f"{config_file}: ")
    assert found == "sweep.ranks.0: expected a number of at least 1, got 0"


def test_every_problem_is_reported_at_once(config_file: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config_file, ["sweep.ranks=[0]", "lora.scaling=-1", "nonsense=1"])
    assert all(word in str(caught.value) for word in ("sweep.ranks", "lora.scaling", "nonsense"))


@pytest.mark.parametrize("override", ["train.max_steps", "=5", "name.deep=1", "train.max_steps=[1"])
def test_malformed_override_is_refused(config_file: Path, override: str) -> None:
    with pytest.raises(ConfigError, match="--set"):
        load(config_file, [override])


def test_missing_file_names_the_shipped_profiles(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="quickstart"):
        load(tmp_path / "none.yaml")


@pytest.mark.parametrize(
    "override",
    [
        "train.epochs=.inf", "train.weight_decay=.inf", "evaluate.max_general_loss_increase=.inf",
        "evaluate.max_loss_increase=.nan", "data.filters.min_score=.nan", "seed=-1",
        "sweep.seeds=[4294967296]", "lora.target_modules=[]", f"seed={'9' * 5000}", "seed=" + "[" * 5000,
        "data.source=~no_such_user/rows.jsonl",
    ],
    ids=lambda override: override[:40],
)  # fmt: skip
def test_a_value_that_no_run_could_use_is_refused_in_one_line(config_file: Path, override: str) -> None:
    """An infinite limit would switch a gate off, and JSON cannot write it into the manifest."""
    with pytest.raises(ConfigError) as caught:
        load(config_file, [override])
    assert override.partition("=")[0].partition(".")[0] in str(caught.value) or "no_such_user" in str(
        caught.value
    )
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 300


def test_a_key_that_is_there_twice_is_refused(config_file: Path, config_values: dict[str, Any]) -> None:
    """Of two `train:` sections YAML's loader takes the last and drops the first without a word."""
    text = config_file.read_text()
    config_file.write_text(text + yaml.safe_dump({"train": config_values["train"]}))
    with pytest.raises(ConfigError, match=r"tiny\.yaml: 'train' is there twice .*line \d+"):
        load(config_file)
    config_file.write_text(text)
    with pytest.raises(ConfigError, match="--set"):
        load(config_file, ["train={max_steps: 1, max_steps: 2}"])


@pytest.mark.parametrize("text", ["a: [", "- 1\n- 2\n", "", "[" * 5000, f"seed: {'9' * 5000}"])
def test_file_that_is_no_mapping_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match="bad"):
        load(path)


def test_relative_paths_count_from_the_file(tmp_path: Path, config_values: dict[str, Any]) -> None:
    config_values["data"]["source"] = "rows.jsonl"
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(config_values))
    assert load(path).data.source[0].source == str(tmp_path / "rows.jsonl")


def test_a_published_source_names_no_folder_of_this_machine() -> None:
    assert public_source("/home/someone/rows.jsonl") == "rows.jsonl"
    assert public_source("hub:a/b@c") == "hub:a/b@c" and public_source("stdlib-docs") == "stdlib-docs"


def test_fingerprint_ignores_the_order_of_keys() -> None:
    assert fingerprint({"a": 1, "b": 2}) == fingerprint({"b": 2, "a": 1}) != fingerprint({"a": 2})


def test_artifacts_that_cannot_be_written_are_reported(
    config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prepare", "--config", str(config_file), "--artifacts", "/proc/nowhere"]) == 1
    assert "set ARTIFACTS_DIR" in capsys.readouterr().err


def test_a_mistake_costs_one_line_and_exit_1(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", str(config_file), "--set", "sweep.ranks=[0]"]) == 1
    found = capsys.readouterr().err
    assert found.count("\n") == 1 and "sweep.ranks" in found


def test_a_reader_of_the_output_that_ends_early_is_one_line() -> None:
    talkative = (
        "from trainer import cli; cli._run = lambda _: print('x' * 2**20, flush=True); cli.main(['run'])"
    )
    command = [sys.executable, "-c", talkative]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout and process.stderr
        process.stdout.close()
        assert process.stderr.read() == "trainer: what read the output has ended\n"
