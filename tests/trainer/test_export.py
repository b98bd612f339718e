"""What an export promises: the artifact's own answers, in another server's format, or a refusal."""

import json
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedTokenizerFast

from tests.support.trainer import model_of
from trainer.cli import main
from trainer.config_file import load
from trainer.identity import config_hash
from trainer.ship.manifest import write_manifest

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/artifact.schema.json").read_text())
IDENTIFIER = "tiny-00000000"


@pytest.fixture
def artifact(
    tmp_path: Path,
    config_file: Path,
    chatml_tokenizer: PreTrainedTokenizerFast,
    manifest: dict[str, Any],
) -> Path:
    """A finished artifact of `config_file`, under tmp_path / artifacts / models."""
    directory = tmp_path / "artifacts/models" / IDENTIFIER
    model_of(chatml_tokenizer).save_pretrained(directory)
    chatml_tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text("A card.\n")
    (directory / "LICENSE").write_text("A licence.\n")
    write_manifest(
        directory,
        {**manifest, "id": IDENTIFIER, "name": "tiny", "config_hash": config_hash(load(config_file))},
    )
    return directory


def run_export(config_file: Path, artifact: Path, *formats: str) -> Path:
    """Run the verb; the directory of the artifact's exports."""
    chosen = [part for name in formats for part in ("--format", name)]
    artifacts = artifact.parents[1]
    assert main(["export", "--config", str(config_file), "--artifacts", str(artifacts), *chosen]) == 0
    return artifacts / "exports" / IDENTIFIER


@torch.inference_mode()
def logits_of(model: Any) -> Any:
    ids = torch.randint(3, 250, (4, 48), generator=torch.Generator().manual_seed(3))
    return model(input_ids=ids).logits.float()


def read_back(file: Path) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32,
        quantization_config=GgufConfig(dequantize=True),
    )  # fmt: skip
    return model.eval()


@pytest.mark.parametrize(
    ("matrices", "bound", "agreement"), [("f16", 1e-3, 1.0), ("q8_0", 0.5, 0.85), ("q4_k_m", 8.0, 0.4)]
)
def test_gguf_read_back_by_transformers_gives_the_artifacts_logits(
    artifact: Path, config_file: Path, matrices: str, bound: float, agreement: float
) -> None:
    directory = run_export(config_file, artifact, f"gguf-{matrices}") / f"gguf-{matrices}"
    wanted = logits_of(AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32))
    got = logits_of(read_back(directory / f"tiny-{matrices}.gguf"))
    assert wanted.std() > 1  # else a bound says nothing; random weights have near ties, hence 0.85
    assert (wanted - got).abs().max() <= bound
    assert (wanted.argmax(-1) == got.argmax(-1)).float().mean() >= agreement


def test_gguf_has_norms_in_float32_matrices_in_blocks_and_no_tied_output(
    artifact: Path, config_file: Path
) -> None:
    directory = run_export(config_file, artifact, "gguf-q8_0")
    tensors = gguf.GGUFReader(directory / "gguf-q8_0/tiny-q8_0.gguf").tensors
    kinds = {tensor.name: tensor.tensor_type.name for tensor in tensors}
    assert "output.weight" not in kinds
    assert kinds["blk.0.attn_norm.weight"] == kinds["output_norm.weight"] == "F32"
    assert kinds["blk.1.ffn_down.weight"] == kinds["token_embd.weight"] == "Q8_0"


def test_modelfile_of_chatml_has_its_turns_and_stops(artifact: Path, config_file: Path) -> None:
    text = (run_export(config_file, artifact, "gguf-q8_0") / "gguf-q8_0/Modelfile").read_text()
    assert text == (
        "FROM ./tiny-q8_0.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}'
        '{{ range .Messages }}{{ if eq .Role "user" }}<|im_start|>user\n{{ .Content }}<|im_end|>\n'
        '{{ else if eq .Role "assistant" }}<|im_start|>assistant\n{{ .Content }}<|im_end|>\n{{ end }}'
        '{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'LICENSE """llama3.2"""\n'
    )


def test_fp8_is_a_whole_artifact_under_contract_1(artifact: Path, config_file: Path) -> None:
    directory = run_export(config_file, artifact, "fp8") / "fp8"
    manifest = json.loads((directory / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["export"]["artifact"] == IDENTIFIER
    assert manifest["id"] == f"{IDENTIFIER}-fp8"
    assert {path.name for path in directory.iterdir()} == {"manifest.json", *manifest["files"]}
    config = json.loads((directory / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "compressed-tensors"


def test_fp8_weights_times_their_scales_give_the_artifacts_logits(artifact: Path, config_file: Path) -> None:
    directory = run_export(config_file, artifact, "fp8") / "fp8"
    written = load_file(directory / "model.safetensors")
    scales = {n.removesuffix("_scale"): written.pop(n) for n in list(written) if n.endswith("_scale")}
    assert all((weight.dtype == torch.float8_e4m3fn) == (n in scales) for n, weight in written.items())
    assert "model.embed_tokens.weight" not in scales and len(scales) == 2 * 7
    model: Any = AutoModelForCausalLM.from_pretrained(artifact, dtype=torch.float32)
    wanted = logits_of(model)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    weights = {n: w.float() * scales[n].float() if n in scales else w for n, w in written.items()}
    for name in scales:  # three bits of mantissa: half a step is a sixteenth, and less near zero
        step = before[name].abs().amax(1, keepdim=True) / 448 * 2**-6
        assert ((weights[name] - before[name]).abs() <= before[name].abs() / 16 + step).all()
    model.load_state_dict(weights, strict=False)
    got = logits_of(model)
    assert 0 < (wanted - got).abs().max()
    assert (wanted.argmax(-1) == got.argmax(-1)).float().mean() >= 0.8


def test_a_second_export_finds_the_first_finished_and_mends_an_altered_one(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_export(config_file, artifact)
    first = {path: path.stat().st_mtime_ns for path in directory.glob("*/*")}
    capsys.readouterr()
    run_export(config_file, artifact)
    assert capsys.readouterr().out.count("skipped") == 4
    assert first == {path: path.stat().st_mtime_ns for path in directory.glob("*/*")}
    file = directory / "gguf-f16/tiny-f16.gguf"
    whole = file.read_bytes()
    file.write_bytes(b"cut")
    run_export(config_file, artifact)
    assert file.read_bytes() == whole


def test_without_a_finished_artifact_the_export_says_how_to_make_one(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--config", str(config_file), "--artifacts", str(tmp_path / "none")]) == 1
    found = capsys.readouterr().err
    assert "no finished artifact of tiny" in found and found.count("\n") == 1


def test_an_altered_artifact_is_not_exported(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "README.md").write_text("Another.\n")
    arguments = ["export", "--config", str(config_file), "--artifacts", str(artifact.parents[1])]
    assert main(arguments) == 1
    found = capsys.readouterr().err
    assert "README.md is missing or altered" in found and found.count("\n") == 1
    assert not (artifact.parents[1] / "exports").exists()


def test_without_formats_all_that_can_be_written_is_and_the_others_are_named(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    directory = run_export(config_file, artifact)
    assert {p.name for p in directory.iterdir() if p.is_dir()} == {
        "gguf-f16",
        "gguf-q8_0",
        "gguf-q4_k_m",
        "fp8",
    }
    found = capsys.readouterr().out.splitlines()[-2:]
    assert [line.split(":")[1].strip() for line in found] == ["gguf-lora", "adapter"]
    assert all("does not hold the adapter of tiny-00000000 any more" in line for line in found)


def test_a_format_that_was_asked_for_and_cannot_be_is_an_error(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ["--config", str(config_file), "--artifacts", str(artifact.parents[1])]
    assert main(["export", *where, "--format", "adapter"]) == 1
    assert "0 adapters of r2-lr0.01-s7 are there" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("wrong", "said"), [("q4_k_m", "did you mean gguf-q4_k_m?"), ("onnx", "there are gguf-f16, gguf-q8_0")]
)
def test_an_unknown_format_is_refused_with_the_nearest_one(
    wrong: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--format", wrong])
    assert f"no such format '{wrong}'; {said}" in capsys.readouterr().err


def test_a_template_that_ollama_cannot_have_costs_the_modelfile_only(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = artifact / "chat_template.jinja"
    file.write_text(file.read_text() + "{{ messages|length }}")
    manifest = json.loads((artifact / "manifest.json").read_text())
    write_manifest(artifact, manifest)
    directory = run_export(config_file, artifact, "gguf-f16") / "gguf-f16"
    assert (directory / "tiny-f16.gguf").exists() and not (directory / "Modelfile").exists()
    assert "no Modelfile for Ollama: the chat template is not made of" in capsys.readouterr().out
