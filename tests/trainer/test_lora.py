"""What an adapter is trained on and how it is scaled, from the configuration to the merged weights."""

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import transformers
import yaml
from safetensors import safe_open

from tests.support import ROOT
from tests.support.families import model_of
from trainer import base_model, identity
from trainer.cli import main
from trainer.config import RunConfig
from trainer.config_file import load
from trainer.config_lora import LoraConfig
from trainer.data.prepare import prepare
from trainer.engines.adapters import reach
from trainer.errors import ConfigError
from trainer.fit.arm import Arm, Run, Setting
from trainer.fit.run.train import train
from trainer.ship.card_parts import method_of
from trainer.ship.manifest import _adapter
from trainer.ship.merge import merge

ARM = Arm(Setting(4, 0.01), 7)
Configured = Callable[..., RunConfig]
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def configured(tmp_path: Path, config_values: dict[str, Any]) -> Configured:
    """Return the tiny configuration with these settings of `lora`, for this base."""

    def make(lora: dict[str, Any], base: Path | None = None) -> RunConfig:
        values = {**config_values, "lora": lora, "data": {**config_values["data"], "general": None}}
        if base:
            values["base"] = {**values["base"], "path": str(base)}
        file = tmp_path / "lora.yaml"
        file.write_text(yaml.safe_dump(values))
        return load(file)

    return make


@pytest.fixture
def untied(tmp_path: Path, base_directory: Path, tiny_model: Any) -> Path:
    """The tiny base with an output of its own."""
    directory = tmp_path / "untied"
    shutil.copytree(base_directory, directory)
    config = tiny_model.config.to_dict() | {"tie_word_embeddings": False}
    torch.manual_seed(3)
    transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).save_pretrained(directory)
    return directory


@pytest.fixture
def verb(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    def go(name: str, *settings: str) -> tuple[int, str, str]:
        flags = [part for setting in settings for part in ("--set", setting)]
        status = main([name, "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


def trained(config: RunConfig, artifacts: Path, steps: int = 6) -> Run:
    base = base_model.fetch(config.base, artifacts)
    return train(config, base, prepare(config, base, artifacts), ARM, steps, artifacts)


def weights(directory: Path) -> dict[str, Any]:
    with safe_open(directory / "model.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


EMBED, HEAD = "model.embed_tokens.weight", "lm_head.weight"
SETTINGS: dict[str, dict[str, Any]] = {
    "rslora": {"alpha": 8, "rslora": True},
    "dora": {"alpha": 8, "dora": True, "target_modules": ["q_proj", "down_proj"]},
    "all-linear": {"scaling": 2, "target_modules": "all-linear"},
    "embeddings": {"alpha": 8, "modules_to_save": ["embed_tokens", "lm_head"]},
    "input": {"alpha": 8, "modules_to_save": ["model.embed_tokens"], "rslora": True, "dora": True},
}  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("kind", SETTINGS)
def test_what_was_trained_is_merged_exactly_and_the_tie_stays(
    tmp_path: Path, configured: Configured, untied: Path, base_directory: Path, kind: str, tied: bool
) -> None:
    config = configured(SETTINGS[kind], None if tied else untied)
    run = trained(config, tmp_path)
    assert run.diverged is None
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("test")
    check = merge(base, run.adapter, rows, "float32", "float32", "cpu", tmp_path / "merged")
    assert check["fp32"]["max_logit_difference"] <= 1e-4 and check["fp32"]["top1_agreement"] == 1
    before, after = weights(base.directory), weights(tmp_path / "merged")
    assert before.keys() == after.keys() and (HEAD in after) != tied
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert config.lora
    whole = set(config.lora.modules_to_save)
    assert (EMBED in moved) == any("embed_tokens" in name for name in whole)
    assert (HEAD in moved) == ("lm_head" in whole and not tied)
    assert "model.layers.0.self_attn.q_proj.weight" in moved


def test_rslora_divides_alpha_by_the_root_of_the_rank(tmp_path: Path, configured: Configured) -> None:
    config = configured(SETTINGS["rslora"])
    run = trained(config, tmp_path)
    said = json.loads((run.adapter / "adapter_config.json").read_text())
    assert (said["use_rslora"], said["lora_alpha"], said["r"]) == (True, 8, 4)
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("test")
    merge(base, run.adapter, rows, "float32", "float32", "cpu", tmp_path / "merged")
    name = "model.layers.1.mlp.up_proj"
    with safe_open(run.adapter / "adapter_model.safetensors", "pt") as opened:
        a, b = (opened.get_tensor(f"base_model.model.{name}.lora_{side}.weight") for side in "AB")
    wanted = weights(base.directory)[f"{name}.weight"] + 8 / math.sqrt(4) * b @ a
    torch.testing.assert_close(weights(tmp_path / "merged")[f"{name}.weight"], wanted)
    assert config.lora and config.lora.scaling_at(4) == 8 / math.sqrt(4)


@pytest.mark.parametrize("kind", ["dora", "embeddings"])
def test_a_resumed_run_of_more_than_lora_is_the_run_that_was_never_stopped(
    tmp_path: Path, configured: Configured, kind: str
) -> None:
    config = configured(SETTINGS[kind])
    whole = trained(config, tmp_path / "whole", 12)
    trained(config, tmp_path / "rungs", 6)
    resumed = trained(config, tmp_path / "rungs", 12)
    assert resumed.record["resumed_from"] == "trunk-5"
    assert resumed.record["train_curve"] == whole.record["train_curve"]
    assert resumed.validation == whole.validation


ALL = LoraConfig(scaling=1, target_modules="all-linear")
DEFAULT = LoraConfig(scaling=1)
# By family: layers that have an adapter with all-linear, and all that have none.
HYBRIDS: dict[str, tuple[set[str], dict[str, int]]] = {
    "FalconH1": ({"in_proj", "q_proj"}, {"mamba.out_proj": 2, "lm_head": 1}),
    "Lfm2": ({"in_proj", "out_proj", "w1"}, {}),
    "Phi3": ({"qkv_proj", "gate_up_proj"}, {"lm_head": 1}),
    # PEFT takes the names of the shared experts for the fused ones.
    "Qwen3Next": (
        {"in_proj_qkvz", "gate_up_proj", "gate"},
        {f"shared_expert.{name}_proj": 2 for name in ("gate", "up", "down")} | {"lm_head": 1},
    ),
}


def without_weights(family: str) -> Any:
    with torch.device("meta"):
        return type(model_of(family))(model_of(family).config)


@pytest.mark.parametrize("family", HYBRIDS)
def test_all_linear_reaches_every_layer_but_those_that_it_names(family: str) -> None:
    reached, left = HYBRIDS[family]
    found = reach(without_weights(family), ALL, 2)
    assert reached <= set(found.names) and dict(found.without) == left


def test_layers_that_the_default_names_do_not_match_are_counted() -> None:
    without = reach(without_weights("Qwen3Next"), DEFAULT, 2).without
    assert without["linear_attn.in_proj_qkvz"] == without["linear_attn.out_proj"] == 1
    assert without["mlp.gate"] == 2 and "self_attn.q_proj" not in without
    assert dict(reach(without_weights("Llama"), DEFAULT, 2).without) == {"lm_head": 1}


def test_the_layers_without_an_adapter_are_on_the_console_and_in_the_manifest(
    verb: Verb, configured: Configured, base_directory: Path
) -> None:
    one = "lora={scaling: 2, target_modules: [q_proj, v_proj, o_proj]}"
    line = "no adapter on 8 layers: self_attn.k_proj ×2, mlp.gate_proj ×2, mlp.up_proj ×2, mlp.down_proj ×2\n"
    assert f"note: {line}" in verb("check", "data.general=null", one)[1]
    assert verb("prepare", "data.general=null", one)[1].count(line) == 1
    assert "no adapter" not in verb("check", "data.general=null", "lora={scaling: 2}")[1]
    lora = configured(yaml.safe_load(one.partition("=")[2])).lora
    assert lora
    said = _adapter(lora, base_directory, ARM.setting)
    assert said["without_adapter"]["mlp.up_proj"] == 2 and said["scaling"] == 2.0
    assert _adapter(ALL, base_directory, ARM.setting)["target_modules"] == sorted(DEFAULT.target_modules)


def test_a_tied_base_says_that_its_embeddings_are_trained_as_one(verb: Verb) -> None:
    status, console, _ = verb("check", "data.general=null", "lora.modules_to_save=[lm_head]")
    assert status == 0 and "note: input and output embeddings of this base are one matrix" in console


@pytest.mark.parametrize(
    ("lora", "sentence"),
    [
        (
            "{scaling: 2, target_modules: [q_prj, nothing]}",
            "the base has no layer 'q_prj'; did you mean q_proj or v_proj or o_proj? It has down_proj, "
            "gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj; lora.target_modules: the base has no layer "
            "'nothing'; it has down_proj",
        ),
        ("{scaling: 2, target_modules: [embed_tokens]}", "the base has no layer 'embed_tokens'"),
        ("{scaling: 2, modules_to_save: [embed]}", "the base has no module 'embed'; did you mean"),
        ("{scaling: 2, modules_to_save: [mlp]}", "'mlp' holds layers that get an adapter"),
        (
            "{scaling: 2, modules_to_save: [norm]}",
            "PEFT would take input_layernorm, post_attention_layernorm for 'norm'; give the whole name, "
            "such as model.norm",
        ),
    ],
)
def test_names_that_the_base_does_not_have_are_answered_by_the_nearest(
    verb: Verb, lora: str, sentence: str
) -> None:
    status, _, error = verb("check", "data.general=null", f"lora={lora}")
    assert status == 1 and sentence in error and error.count("\n") == 1


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["lora={scaling: 2, rslora: true}"], "lora: `rslora` needs `alpha`"),
        (["lora={scaling: 2, target_modules: [all-linear, q_proj]}"], "names all-linear and others"),
        (["lora={scaling: 2, modules_to_save: [q_proj]}"], "q_proj cannot have an adapter"),
        (["lora.dora=true", "train.engine=compiled"], "`lora.dora` needs `train.engine: plain`"),
        (["lora.modules_to_save=[lm_head]", "train.engine=unsloth"], "`lora.modules_to_save` needs `train"),
        (["lora.modules_to_save=[lm_head]", "train.shard_base=true"], "and no `train.shard_base`"),
        (["lora.dora=true", "train.quantization=4bit"], "`train.quantization: none`"),
        (["lora.rs_lora=true"], "lora.rs_lora: no such setting; did you mean rslora?"),
        (["lora.target_modules=q_proj"], "lora.target_modules: expected a list"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(
    config_file: Path, settings: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config_file, settings)
    assert sentence in str(caught.value)


def test_a_layer_that_kernels_read_without_calling_it_gets_no_adapter(
    tmp_path: Path, base_directory: Path, verb: Verb
) -> None:
    base = tmp_path / "mamba"
    shutil.copytree(base_directory, base)
    model_of("FalconH1").config.save_pretrained(base)
    settings = (f"base.path={base}", "data.general=null", "data.max_length=64", "sweep.ranks=[2]")
    status, _, error = verb("check", *settings, "lora.target_modules=[in_proj, out_proj]")
    assert status == 1 and "kernels of this base read 'out_proj' without calling it" in error
    status, console, _ = verb("check", *settings, "lora.target_modules=all-linear")
    assert status == 0 and "mamba.out_proj ×2" in console


def test_whole_modules_in_16_bits_need_a_gpu(verb: Verb) -> None:
    settings = ("data.general=null", "train.dtype=bfloat16", "lora.modules_to_save=[embed_tokens]")
    status, _, error = verb("check", *settings)
    assert status == 1 and "train.dtype=float32 for `lora.modules_to_save` on a CPU" in error


def test_settings_that_are_new_leave_the_keys_of_older_configurations(configured: Configured) -> None:
    old = identity.by_content(configured({"scaling": 2.0}).lora, "lora")
    assert set(old) == {"alpha", "scaling", "dropout", "target_modules"}
    new = identity.by_content(configured({"alpha": 2, "rslora": True}).lora, "lora")
    assert new["rslora"] is True and "dora" not in new


def test_a_card_says_how_the_adapter_is_scaled() -> None:
    assert method_of({}) == "LoRA"
    assert method_of({"rslora": True}) == "LoRA, scaled by alpha / √rank (rsLoRA),"
    assert method_of({"dora": True, "rslora": False}) == "DoRA"


def test_manifest_and_card_of_a_run_say_what_was_trained_and_how(tmp_path: Path, verb: Verb) -> None:
    lora = "lora={alpha: 4, rslora: true, dora: true, target_modules: [q_proj], modules_to_save: [lm_head]}"
    status, console, _ = verb("run", "data.general=null", "sweep.ranks=[4]", lora)
    assert status == 0 and console.count("no adapter on 12 layers: self_attn.k_proj ×2") == 1
    manifest = json.loads((tmp_path / "a/models/current/manifest.json").read_text())
    jsonschema.validate(manifest, json.loads((ROOT / "docs/artifact.schema.json").read_text()))
    said = manifest["adapter"]
    assert (said["alpha"], said["scaling"], said["rslora"], said["dora"]) == (4, 2, True, True)
    assert (said["target_modules"], said["modules_to_save"]) == (["q_proj"], ["lm_head"])
    card = (tmp_path / "a/models/current/README.md").read_text()
    assert (
        "| method | DoRA, scaled by alpha / √rank (rsLoRA), on the answers' tokens, merged in fp32 |" in card
    )
    assert "| trained whole | lm_head |" in card and "| not trained | self_attn.k_proj ×2, " in card
