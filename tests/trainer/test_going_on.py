"""Going on from an adapter that was made elsewhere: what is taken from it, and what is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from tests.support import ROOT
from tests.support.trainer import row_of
from trainer import base_model, identity
from trainer.cli import main
from trainer.config import TrainConfig
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.engines import compiled, plain
from trainer.errors import ConfigError
from trainer.files import sha256_file
from trainer.fit.arm import Arm, Setting
from trainer.fit.run.train import train
from trainer.objective import sft

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Make = Callable[..., Path]
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def made(tmp_path: Path, base_directory: Path) -> Make:
    """Make an adapter with PEFT alone, as any other program does."""

    def make(name: str = "other", **settings: Any) -> Path:
        torch.manual_seed(5)
        base = AutoModelForCausalLM.from_pretrained(base_directory)
        given = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "up_proj"], **settings}
        model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **given))
        with torch.no_grad():
            for tensor_name, tensor in model.named_parameters():
                if "lora_B" in tensor_name or "modules_to_save" in tensor_name:
                    tensor.add_(0.05 * torch.randn(tensor.shape))
        model.save_pretrained(tmp_path / name)
        edit(tmp_path / name, base_model_name_or_path="tests/tiny")
        return tmp_path / name

    return make


@pytest.fixture
def verb(config_values: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    """Run a verb with this adapter, and with two learning rates and no ranks."""

    def go(name: str, adapter: Path, *settings: str) -> tuple[int, str, str]:
        file = tmp_path / "on.yaml"
        data = {**config_values["data"], "general": None}
        file.write_text(
            yaml.safe_dump(
                {
                    **config_values,
                    "data": data,
                    "lora": {"adapter": str(adapter)},
                    "sweep": {"learning_rates": [0.001, 0.01]},
                }
            )
        )
        flags = [part for setting in settings for part in ("--set", setting)]
        capsys.readouterr()  # progress bars of what was made before
        status = main([name, "--config", str(file), "--artifacts", str(tmp_path / "a"), *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


def edit(adapter: Path, **values: Any) -> None:
    file = adapter / CONFIG
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


def test_a_run_begins_with_the_adapters_weights_rank_and_scaling(
    verb: Verb, made: Make, tmp_path: Path, base_directory: Path
) -> None:
    adapter = made(use_rslora=True)
    status, console, error = verb("run", adapter)
    assert status == 0, error
    assert "goes on from other, which names tests/tiny" in console
    manifest = json.loads((tmp_path / "a/models/current/manifest.json").read_text())
    jsonschema.validate(manifest, json.loads((ROOT / "docs/artifact.schema.json").read_text()))
    said = manifest["adapter"]
    assert (said["rank"], said["alpha"], said["rslora"], said["scaling"]) == (4, 6, True, 3)
    assert said["target_modules"] == ["q_proj", "up_proj"]
    assert said["started_from"] == {"name": "other", "weights_sha256": sha256_file(adapter / WEIGHTS)}
    assert {s["name"] for s in manifest["selection"]["settings"]} == {"r4-lr0.001", "r4-lr0.01"}
    assert "| went on from | the adapter `other`" in (tmp_path / "a/models/current/README.md").read_text()


@pytest.mark.parametrize(
    "settings",
    [{}, {"use_dora": True}, {"modules_to_save": ["embed_tokens"], "ensure_weight_tying": True}],
    ids=["lora", "dora", "embeddings"],
)
@pytest.mark.parametrize("engine", [plain, compiled])
def test_an_engine_starts_with_the_scores_of_the_adapter(
    made: Make, config_file: Path, base_directory: Path, tokenizer: Any, settings: dict[str, Any], engine: Any
) -> None:
    if engine is compiled and settings:
        pytest.skip("plain trains these")
    adapter = made(**settings)
    config = load(config_file, [f"lora={{adapter: {adapter}}}", "sweep.ranks=null"])
    assert config.lora and config.sweep.ranks
    rows = [row_of(tokenizer, ("Say word1.", "word1"), ("Say it.", "it"))]
    model = engine.load(base_directory, config.train, config.lora, config.sweep.ranks[0], 7, "cpu")
    base = AutoModelForCausalLM.from_pretrained(base_directory)
    from peft import PeftModel

    wanted = sft.scores(PeftModel.from_pretrained(base, adapter).get_base_model(), rows, 0)[0].total
    alone = sft.scores(AutoModelForCausalLM.from_pretrained(base_directory), rows, 0)[0].total
    assert sft.scores(model.get_base_model(), rows, 0)[0].total == pytest.approx(wanted, rel=1e-6)
    assert abs(wanted - alone) > 1e-3
    assert isinstance(config.train, TrainConfig)


def test_an_adapter_of_ours_goes_on_only_on_the_weights_that_it_was_trained_on(
    verb: Verb, config_file: Path, tmp_path: Path, base_directory: Path
) -> None:
    config = load(config_file, ["data.general=null"])
    base = base_model.fetch(config.base, tmp_path)
    prepared = prepare(config, base, tmp_path)
    adapter = train(config, base, prepared, Arm(Setting(2, 0.01), 7), 2, tmp_path).adapter
    status, console, _ = verb("check", adapter)
    assert status == 0 and "note: goes on from adapter, which was trained on these weights" in console
    other = tmp_path / "other-base"
    shutil.copytree(base_directory, other)
    weights = load_file(other / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    status, _, error = verb("check", adapter, f"base.path={other}")
    assert status == 1 and "it belongs to another base" in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["lora.alpha=32"], "lora.alpha: the adapter {adapter} has alpha 6; leave alpha out"),
        (["lora.scaling=2"], "lora.scaling: the adapter {adapter} has alpha 6; leave scaling out"),
        (["lora.rslora=true"], "lora.rslora: the adapter {adapter} has rslora false; leave rslora out"),
        (["lora.target_modules=all-linear"], 'has target_modules ["q_proj", "up_proj"]; leave'),
        (["sweep.ranks=[4, 8]"], "sweep.ranks: the adapter {adapter} has rank 4, and only learning rates"),
        (
            ["base.id=tests/other"],
            "names the base tests/tiny, and base.id is tests/other. If the weights are",
        ),
    ],
)
def test_settings_that_are_not_the_adapters_are_refused(
    verb: Verb, made: Make, settings: list[str], sentence: str
) -> None:
    adapter = made()
    status, _, error = verb("check", adapter, *settings)
    assert status == 1 and sentence.format(adapter=adapter) in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"peft_type": "IA3"}, 'peft_type is "IA3", and only LORA is trained'),
        ({"r": 0}, "r is 0, expected a rank of 1 or more"),
        ({"lora_alpha": "16"}, 'lora_alpha is "16", expected a number above 0'),
        ({"bias": "all"}, 'bias is "all", and only adapters without it can be trained on'),
        (
            {"rank_pattern": {"q_proj": 2}, "lora_bias": True},
            'rank_pattern is {"q_proj": 2}, and only adapters',
        ),
        ({"init_lora_weights": "pissa"}, "belongs to a base that it changed"),
        (
            {"r": 8},
            "8 tensors differ, such as base_model.model.model.layers.0.mlp.up_proj.lora_A.weight, which ",
        ),
        ({"use_dora": True}, "lora_magnitude_vector, which is absent in the adapter and (64) for the base"),
        ({"modules_to_save": ["lm_head"]}, "does not fit this base"),
    ],
)
def test_an_adapter_that_cannot_be_trained_on_is_refused_in_one_sentence(
    verb: Verb, made: Make, fields: dict[str, Any], sentence: str
) -> None:
    adapter = made()
    edit(adapter, **fields)
    status, _, error = verb("check", adapter)
    assert status == 1 and sentence in error and error.count("\n") == 1 and "lora.adapter" in error


def test_all_that_is_wrong_with_an_adapter_is_named_at_once(verb: Verb, made: Make) -> None:
    adapter = made()
    edit(adapter, bias="all", lora_alpha=0, alpha_pattern={"q_proj": 3})
    error = verb("check", adapter)[2]
    assert all(name in error for name in ("bias is", "lora_alpha is 0", "alpha_pattern is"))


def test_an_adapter_of_some_layers_only_does_not_fit(verb: Verb, made: Make) -> None:
    adapter = made()
    tensors = load_file(adapter / WEIGHTS)
    save_file({name: t for name, t in tensors.items() if ".layers.1." not in name}, adapter / WEIGHTS)
    error = verb("check", adapter)[2]
    assert "4 tensors differ, such as base_model.model.model.layers.1." in error


def test_a_directory_that_holds_no_adapter_is_refused(
    verb: Verb, made: Make, base_directory: Path, tmp_path: Path
) -> None:
    assert "it is a whole model, which base.path takes" in verb("check", base_directory)[2]
    assert "has no readable adapter_config.json" in verb("check", tmp_path / "nowhere")[2]
    adapter = made()
    whole = (adapter / WEIGHTS).read_bytes()
    (adapter / WEIGHTS).write_bytes(whole[:-9])
    assert "is no whole safetensors file" in verb("check", adapter)[2]
    (adapter / WEIGHTS).rename(adapter / "adapter_model.bin")
    assert "adapter_model.bin is a pickle, which can run code" in verb("check", adapter)[2]


def test_a_pattern_for_target_modules_is_read_by_the_layers_that_it_reached(verb: Verb, made: Make) -> None:
    adapter = made(target_modules=r".*\.(q_proj|up_proj)")
    status, console, error = verb("check", adapter)
    assert status == 0, error
    assert json.loads(console[: console.rindex("}") + 1])["lora"]["target_modules"] == ["q_proj", "up_proj"]


def test_other_adapters_of_the_same_settings_have_runs_of_their_own(made: Make, config_file: Path) -> None:
    def keys(adapter: Path) -> tuple[str, str]:
        config = load(config_file, [f"lora={{adapter: {adapter}}}", "sweep.ranks=null"])
        return identity.run_key(config, "base", "rows", 4, 0.01, 7), identity.config_hash(config)

    one, same, other = made("one"), made("same"), made("other")
    tensors = load_file(other / WEIGHTS)
    save_file({name: tensor * 2 for name, tensor in tensors.items()}, other / WEIGHTS)
    assert keys(one) == keys(same)
    assert not {*keys(one)} & {*keys(other)}


def test_an_adapter_beside_the_configuration_is_found(made: Make, config_values: dict[str, Any]) -> None:
    adapter = made()
    config_values["lora"], config_values["sweep"] = {"adapter": adapter.name}, {"learning_rates": [0.1]}
    file = adapter.parent / "relative.yaml"
    file.write_text(yaml.safe_dump(config_values))
    config = load(file)
    assert config.lora and config.lora.adapter == adapter and config.sweep.ranks == (4,)
    (adapter / CONFIG).unlink()
    with pytest.raises(ConfigError, match="has no readable"):
        load(file)
