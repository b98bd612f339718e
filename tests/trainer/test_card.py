import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from huggingface_hub import ModelCard, ModelCardData, metadata_load

from trainer.cli import main
from trainer.config_file import load
from trainer.errors import ConfigError
from trainer.licence import llama_terms
from trainer.objective import sft
from trainer.ship.card import card_data, write_card

NOTICE = (
    "Llama 3.2 is licensed under the Llama 3.2 Community License, Copyright © Meta Platforms, Inc. "
    "All Rights Reserved."
)


def test_made_manifest_keeps_the_schema(artifact: Path) -> None:
    schema = json.loads((Path(__file__).parents[2] / "docs/artifact.schema.json").read_text())
    jsonschema.validate(json.loads((artifact / "manifest.json").read_text()), schema)


def test_front_matter_comes_back_from_huggingface_hub_as_it_was_written(
    artifact: Path, manifest: dict[str, Any]
) -> None:
    front = metadata_load(artifact / "README.md")
    assert front is not None
    assert front == yaml.safe_load(card_data(manifest, sft, "LICENSE").to_yaml())
    again: Any = ModelCardData(**front)
    assert again.to_dict() == front
    results = ModelCard.load(artifact / "README.md").data.eval_results
    assert [r.metric_value for r in results or []] == [0.5, 0.5, 0.5]
    assert {r.dataset_revision for r in results or []} == {"abc"}
    found = {key: front[key] for key in ("license", "license_link", "base_model", "base_model_relation")}
    assert found == {
        "license": "llama3.2", "license_link": "LICENSE", "base_model": "tests/tiny",
        "base_model_relation": "finetune",
    }  # fmt: skip
    assert front["datasets"] == ["tests/rows"] and "language" not in front


def test_a_source_that_is_not_on_the_hub_is_no_data_set_of_the_hub(manifest: dict[str, Any]) -> None:
    manifest["data"]["source"] = "stdlib-docs"
    data: Any = card_data(manifest, sft, None)
    front = data.to_dict()
    assert "datasets" not in front and "license_link" not in front


def test_every_data_set_of_the_hub_among_several_sources_is_named(manifest: dict[str, Any]) -> None:
    manifest["data"]["source"] = "a.jsonl, hub:o/n:en@v1#train (weight 0.5); test: hub:p/q, hub:o/n#test"
    data: Any = card_data(manifest, sft, None)
    assert data.datasets == ["o/n", "p/q"]
    assert {result.dataset_revision for result in data.eval_results} == {None}


def test_one_data_set_of_the_hub_is_named_with_its_revision(manifest: dict[str, Any]) -> None:
    manifest["data"]["source"] = "hub:o/n:en@v1#train"
    data: Any = card_data(manifest, sft, None)
    assert data.datasets == ["o/n"]
    assert {(result.dataset_type, result.dataset_revision) for result in data.eval_results} == {("o/n", "v1")}


def test_llama_is_named_on_top_of_the_card_and_in_notice(artifact: Path) -> None:
    card = ModelCard.load(artifact / "README.md").text
    assert card.index("**Built with Llama**") < card.index("A test.") < card.index("## ")
    assert (artifact / "NOTICE").read_text() == f"{NOTICE}\n"
    assert {"NOTICE", "LICENSE", "README.md"} <= set(
        json.loads((artifact / "manifest.json").read_text())["files"]
    )


def test_a_notice_of_the_base_is_kept_and_not_doubled(tmp_path: Path, manifest: dict[str, Any]) -> None:
    (tmp_path / "NOTICE").write_text("Of the base.\n")
    for _ in range(2):
        write_card(tmp_path, manifest, sft)
        assert (tmp_path / "NOTICE").read_text() == f"Of the base.\n{NOTICE}\n"


def test_another_licence_gets_no_words_of_llama(tmp_path: Path, manifest: dict[str, Any]) -> None:
    manifest["base_model"]["licence"] = "apache-2.0"
    write_card(tmp_path, manifest, sft)
    assert not (tmp_path / "NOTICE").exists()
    assert "Built with" not in (tmp_path / "README.md").read_text()


def test_older_versions_have_their_own_words() -> None:
    three, two = llama_terms("llama3"), llama_terms("llama2")
    assert three and three.built_with == "Built with Meta Llama 3" and three.name_prefix == "Llama 3"
    assert two and not two.built_with and "LLAMA 2 Community License" in two.notice


@pytest.mark.parametrize(
    "licence, name, fits",
    [
        ("llama3.2", "tiny", False),
        ("llama3.2", "My-Llama", False),
        ("llama3.2", "Llama-3.2-mine", True),
        ("llama3", "Llama-mine", False),
        ("llama3", "Llama-3-mine", True),
        ("llama2", "tiny", True),
        ("apache-2.0", "tiny", True),
    ],
)
def test_the_licence_decides_how_the_name_begins(
    config_file: Path, licence: str, name: str, fits: bool
) -> None:
    overrides = [f"base.licence={licence}", f"name={name}"]
    if fits:
        assert load(config_file, overrides).name == name
    else:
        with pytest.raises(ConfigError, match=f"base: .*{licence} asks for a model name that begins"):
            load(config_file, overrides)


def test_a_wrong_name_costs_one_line(config_file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["run", "--config", str(config_file), "--set", "base.licence=llama3.2"]) == 1
    assert capsys.readouterr().err.count("\n") == 1


def test_the_card_states_measurements_procedure_and_limits(artifact: Path) -> None:
    card = (artifact / "README.md").read_text()
    for found in (
        "| train | 60 |", "| steps | 6 |", "A\\|B, 2 cores; no GPU", "torch 2.0",
        "| merged, float32 | 2e-05 |",
        "+0.500 [+0.250, +0.750]", "test loss passed (-0.1)", "`cccccccccccccccc`",
        "from openai import OpenAI",
        "Safety, bias and truthfulness were not measured",
    ):  # fmt: skip
        assert found in card


def test_general_chat_that_was_not_measured_is_said_not_to_be(
    tmp_path: Path, manifest: dict[str, Any]
) -> None:
    manifest["evaluation"]["metrics"].pop()
    write_card(tmp_path, manifest, sft)
    assert "general chat was not measured" in (tmp_path / "README.md").read_text()
