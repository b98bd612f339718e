"""Exports of the adapter alone: base and export together are the artifact, or there is no export."""

import importlib.util
import json
import re
import sys
from pathlib import Path
from typing import Any

import gguf
import pytest
import torch
from huggingface_hub import ModelCard
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.gguf_models import save_model
from trainer.cli import main
from trainer.config_file import load
from trainer.errors import ArtifactError, GateError, MissingError
from trainer.identity import config_hash
from trainer.ship.adapter import adapter_of
from trainer.ship.gguf_check import TOLERANCE, check_gguf, llama_cpp
from trainer.ship.gguf_file import write_gguf
from trainer.ship.gguf_lora import write_gguf_lora
from trainer.ship.manifest import write_manifest

ARM = "r2-lr0.01-s7-0123abcd/steps-6/adapter"
needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, which is llama.cpp, is not installed"
)


@pytest.fixture(scope="session")
def base_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base whose tokenizer has merges, without which llama.cpp loads none."""
    return save_model("llama", tmp_path_factory.mktemp("base"), hidden_size=64)


def make(
    base: Path, config_file: Path, artifacts: Path, manifest: dict[str, Any], dtype: Any, **more: Any
) -> Path:
    """Write a random adapter of the base among the runs, and the artifact that is their sum."""
    settings = {"r": 2, "lora_alpha": 4, "target_modules": ["q_proj", "k_proj", "down_proj"], **more}
    torch.manual_seed(3)
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = get_peft_model(model, LoraConfig(init_lora_weights=False, **settings))
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(std=0.3)
    adapted.save_pretrained(artifacts / "runs" / ARM)
    directory = artifacts / "models/tiny-00000000"
    adapted.merge_and_unload().to(dtype).save_pretrained(directory)
    AutoTokenizer.from_pretrained(base).save_pretrained(directory)
    (directory / "README.md").write_text("A card.\n")
    (directory / "LICENSE").write_text("A licence.\n")
    made = {"id": "tiny-00000000", "name": "tiny", "config_hash": config_hash(load(config_file))}
    write_manifest(directory, {**manifest, **made, "examples": ["Say word1.", "Why?"]})
    return directory


@pytest.fixture
def artifact(base_directory: Path, config_file: Path, tmp_path: Path, manifest: dict[str, Any]) -> Path:
    return make(base_directory, config_file, tmp_path / "artifacts", manifest, torch.bfloat16)


def exported(config_file: Path, artifact: Path, *more: str) -> Path:
    artifacts = artifact.parents[1]
    assert main(["export", "--config", str(config_file), "--artifacts", str(artifacts), *more]) == 0
    return artifacts / "exports" / artifact.name


@torch.inference_mode()
def logits_of(model: Any) -> Any:
    return model(input_ids=torch.arange(3, 43)[None]).logits.float()


def test_base_and_exported_adapter_are_the_merged_model(
    base_directory: Path, config_file: Path, tmp_path: Path, manifest: dict[str, Any]
) -> None:
    artifact = make(base_directory, config_file, tmp_path / "a", manifest, torch.float32)
    directory = exported(config_file, artifact, "--format", "adapter") / "adapter"
    base: Any = AutoModelForCausalLM.from_pretrained(base_directory, dtype=torch.float32)
    plain = logits_of(base)
    found = logits_of(PeftModel.from_pretrained(base, directory).eval())
    wanted = logits_of(AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32))
    assert (found - wanted).abs().max() < 1e-3 < 0.5 < (plain - wanted).abs().max()
    assert AutoTokenizer.from_pretrained(directory).chat_template


def test_the_adapter_names_its_base_and_its_library(artifact: Path, config_file: Path) -> None:
    directory = exported(config_file, artifact, "--format", "adapter", "--format", "gguf-lora")
    settings = json.loads((directory / "adapter/adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == "tests/tiny" and settings["revision"] is None
    for name, library in (("adapter", "peft"), ("gguf-lora", "gguf")):
        card = ModelCard.load(directory / name / "README.md").data
        assert (card.base_model, card.base_model_relation) == ("tests/tiny", "adapter")
        assert card.library_name == library and card.license == "llama3.2"
        assert (directory / name / "LICENSE").exists()
    assert "--lora tiny-lora.gguf" in (directory / "gguf-lora/README.md").read_text()


def test_the_gguf_of_an_adapter_says_so_and_has_two_matrices_for_each_weight(
    artifact: Path, config_file: Path
) -> None:
    directory = exported(config_file, artifact, "--format", "gguf-lora") / "gguf-lora"
    reader = gguf.GGUFReader(directory / "tiny-lora.gguf")
    fields = {name: field.contents() for name, field in reader.fields.items()}
    assert (fields["general.type"], fields["adapter.type"]) == ("adapter", "lora")
    assert fields["general.architecture"] == "llama" and fields["adapter.lora.alpha"] == 4
    shapes = {tensor.name: list(map(int, tensor.shape)) for tensor in reader.tensors}
    assert len(shapes) == 2 * 3 * 2
    assert shapes["blk.1.ffn_down.weight.lora_a"] == [96, 2] and shapes["blk.0.attn_k.weight.lora_b"] == [
        2,
        32,
    ]


def test_the_scale_of_rslora_is_in_alpha(
    base_directory: Path, config_file: Path, tmp_path: Path, manifest: dict[str, Any]
) -> None:
    made = make(
        base_directory,
        config_file,
        tmp_path / "a",
        manifest,
        torch.float32,
        r=4,
        use_rslora=True,
        lora_alpha=6,
    )
    write_gguf_lora(made.parents[1] / "runs" / ARM, base_directory, "n", "b", "l", tmp_path / "x.gguf")
    field = gguf.GGUFReader(tmp_path / "x.gguf").get_field("adapter.lora.alpha")
    assert field is not None and field.contents() == pytest.approx(6 / 2 * 4)


def test_an_adapter_that_is_not_the_artifacts_is_not_exported(
    artifact: Path, config_file: Path, base_directory: Path, tmp_path: Path, manifest: dict[str, Any]
) -> None:
    config, artifacts = load(config_file), artifact.parents[1]
    content = json.loads((artifact / "manifest.json").read_text())
    found, base = adapter_of(config, artifacts, artifact, content)
    assert (found, base) == (artifacts / "runs" / ARM, base_directory)
    other: Any = AutoModelForCausalLM.from_pretrained(base_directory, dtype=torch.float32)
    torch.manual_seed(9)
    names = ["q_proj", "k_proj", "down_proj"]
    get_peft_model(
        other, LoraConfig(r=2, lora_alpha=4, target_modules=names, init_lora_weights=False)
    ).save_pretrained(found)
    with pytest.raises(ArtifactError, match=r"1 adapters of .* are there, and with none of them"):
        adapter_of(config, artifacts, artifact, content)


def test_a_model_that_was_trained_whole_has_no_adapter(artifact: Path, config_file: Path) -> None:
    content = {**json.loads((artifact / "manifest.json").read_text()), "adapter": None}
    with pytest.raises(ArtifactError, match="the whole model was trained"):
        adapter_of(load(config_file), artifact.parents[1], artifact, content)


def test_dora_is_exported_for_peft_and_refused_for_llama_cpp_by_name(
    base_directory: Path,
    config_file: Path,
    tmp_path: Path,
    manifest: dict[str, Any],
    capsys: pytest.CaptureFixture[str],
) -> None:
    made = make(base_directory, config_file, tmp_path / "a", manifest, torch.bfloat16, use_dora=True)
    directory = exported(config_file, made)
    assert (directory / "adapter/adapter_model.safetensors").exists()
    assert (
        "not written: gguf-lora: llama.cpp adds LoRA alone, and the adapter has use_dora"
        in capsys.readouterr().out
    )


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("rslora", [False, True])
def test_llama_cpp_adds_the_adapter_to_the_base_as_the_merge_did(
    base_directory: Path, config_file: Path, tmp_path: Path, manifest: dict[str, Any], rslora: bool
) -> None:
    made = make(base_directory, config_file, tmp_path / "a", manifest, torch.float32, use_rslora=rslora)
    write_gguf(base_directory, "f32", "base", "l", tmp_path / "base.gguf")
    write_gguf(made, "f32", "sum", "l", tmp_path / "sum.gguf")
    write_gguf_lora(made.parents[1] / "runs" / ARM, base_directory, "n", "b", "l", tmp_path / "lora.gguf")
    prompt, answers, tokenizer = list(range(5, 45)), [], AutoTokenizer.from_pretrained(made)
    for model, adapter in (("base", None), ("sum", None), ("base", tmp_path / "lora.gguf")):
        with llama_cpp(tmp_path / f"{model}.gguf", adapter) as runtime:
            answers.append(runtime.following(prompt, len(tokenizer) + 2))
    base, merged, added = answers
    assert set(merged) == set(added) and max(abs(merged[t] - added[t]) for t in merged) < 1e-4
    assert max(abs(merged[t] - base[t]) for t in merged) > 0.1


@needs_llama_cpp
@pytest.mark.slow
def test_check_compares_llama_cpps_answers_with_the_artifacts(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    exported(config_file, artifact, "--check", "--format", "gguf-f16", "--format", "gguf-lora")
    lines = [line for line in capsys.readouterr().out.splitlines() if "in llama.cpp:" in line]
    counts = [re.search(r": (\d+) of the first (\d+) tokens of 2 greedy answers", line) for line in lines]
    assert len(counts) == 2 and all(count and count[1] == count[2] != "0" for count in counts), lines


@needs_llama_cpp
@pytest.mark.slow
def test_check_refuses_a_gguf_of_other_weights(artifact: Path, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(artifact)
    model.lm_head.weight.data.neg_()
    model.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(artifact).save_pretrained(tmp_path / "other")
    write_gguf(tmp_path / "other", "f16", "other", "l", tmp_path / "x.gguf")
    with pytest.raises(GateError, match=r"llama\.cpp's answers are not the artifact's"):
        check_gguf("gguf-f16", tmp_path / "x.gguf", artifact)


def test_check_without_llama_cpp_says_what_to_install(
    artifact: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    with pytest.raises(MissingError, match="pip install xllamacpp"):
        check_gguf("gguf-f16", tmp_path / "x.gguf", artifact)
    assert set(TOLERANCE) == {"gguf-f16", "gguf-lora", "gguf-q8_0", "gguf-q4_k_m"}
