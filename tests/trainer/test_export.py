"""What an export promises: the artifact's own answers, in another server's format, or a refusal."""

import json
from pathlib import Path
from typing import Any

import gguf
import jsonschema
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GgufConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from conftest import CHATML, CONTROLS
from trainer.cli import main
from trainer.config import fingerprint, load
from trainer.errors import ArtifactError
from trainer.ship.artifact import write_manifest
from trainer.ship.gguf_file import write_gguf
from trainer.ship.gguf_tokenizer import pre_tokenizer_name
from trainer.ship.modelfile import go_template

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/artifact.schema.json").read_text())
IDENTIFIER = "tiny-00000000"
TEXTS = ("Hello, it's 123 a\n\n x 4567!", "<|im_start|>user\nhé 日本 <|im_end|>", " a 12345 'RE\r\n\t")
ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


@pytest.fixture(scope="module")
def chatml_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level with merges, cut as GPT-2 does, with control tokens first."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("1", "2"), ("Ġ", "a"), ("l", "l"), ("ll", "o")]
    vocab = {t: i for i, t in enumerate([*CONTROLS, *alphabet, *map("".join, merges)])}
    inner = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.add_special_tokens(list(CONTROLS))
    made: PreTrainedTokenizerFast = PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token=CONTROLS[0], bos_token=CONTROLS[1], eos_token=CONTROLS[2]
    )
    made.chat_template = CHATML
    return made


def model_of(tokenizer: Any, **more: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer) + 2, hidden_size=64, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, initializer_range=0.2, **more,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [tokenizer.eos_token_id]
    return model.to(torch.bfloat16).eval()


@pytest.fixture
def artifact(tmp_path: Path, config_file: Path, chatml_tokenizer: PreTrainedTokenizerFast) -> Path:
    """A finished artifact of `config_file`, under tmp_path / artifacts / models."""
    directory = tmp_path / "artifacts/models" / IDENTIFIER
    model_of(chatml_tokenizer).save_pretrained(directory)
    chatml_tokenizer.save_pretrained(directory)
    (directory / "README.md").write_text("A card.\n")
    (directory / "LICENSE").write_text("A licence.\n")
    write_manifest(directory, manifest_of(fingerprint(load(config_file))))
    return directory


def manifest_of(config_hash: str) -> dict[str, Any]:
    agreement = {"dtype": "float32", "max_logit_difference": 0.0, "top1_agreement": 1.0}
    interval = {"value": 1.0, "low": 0.9, "high": 1.1}
    metric = {"name": "loss", "split": "test", "unit": "nats", "n": 1}
    return {
        "schema_version": 1, "id": IDENTIFIER, "name": "tiny", "description": "A test.",
        "created_at": "2026-11-24T10:00:00+00:00",
        "base_model": {"id": "b", "revision": "r", "licence": "apache-2.0", "weights_sha256": "0" * 64},
        "adapter": {"rank": 2, "alpha": 4, "target_modules": ["q_proj"], "learning_rate": 0.01},
        "data": {"source": "made", "fingerprint": "0" * 64, "rows": {"train": 1}},
        "config_hash": config_hash, "seed": 7, "packages": {},
        "hardware": {"processor": "p", "cores": 2, "memory_gib": 4.0, "accelerator": None},
        "selection": {"metric": "loss", "winner": "r2", "reason": "alone", "arms": [{}]},
        "merge_check": {"positions": 1, "fp32": agreement, "shipped": agreement, "passed": True},
        "evaluation": {
            "passed": True, "gates": [],
            "metrics": [metric | dict.fromkeys(("base", "tuned", "difference"), interval)],
        },
    }  # fmt: skip


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


@pytest.mark.parametrize(("matrices", "bound", "agreement"), [("f16", 1e-3, 1.0), ("q8_0", 0.5, 0.85)])
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


def saved(tokenizer: Any, directory: Path, **more: Any) -> Path:
    model_of(tokenizer, **more).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


@pytest.mark.parametrize("shape", ["chatml_tokenizer", "llama3_tokenizer"])
def test_tokenizer_read_back_from_gguf_gives_the_same_ids_and_template(
    tmp_path: Path, request: pytest.FixtureRequest, shape: str
) -> None:
    tokenizer = request.getfixturevalue(shape)
    write_gguf(saved(tokenizer, tmp_path / "m"), "f16", "n", "l", tmp_path / "x.gguf")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS:
        plain = {"add_special_tokens": False}
        assert again(text, **plain)["input_ids"] == tokenizer(text, **plain)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token, again.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)


def test_gguf_says_whether_the_tokenizer_puts_a_bos_in_front(
    tmp_path: Path, chatml_tokenizer: Any, llama3_tokenizer: Any
) -> None:
    for wanted, tokenizer in ((False, chatml_tokenizer), (True, llama3_tokenizer)):
        file = tmp_path / f"{wanted}.gguf"
        write_gguf(saved(tokenizer, tmp_path / str(wanted)), "f16", "n", "l", file)
        field = gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
        assert field is not None and field.contents() is wanted


def test_llama_3_rope_scaling_is_in_the_gguf_as_divisors_of_the_plain_frequencies(
    tmp_path: Path, llama3_tokenizer: Any
) -> None:
    model = saved(llama3_tokenizer, tmp_path / "m", rope_parameters=ROPE)
    write_gguf(model, "f16", "n", "l", tmp_path / "x.gguf")
    (found,) = (t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == "rope_freqs.weight")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    assert found.data.dtype == np.float32 and found.data.max() == ROPE["factor"]
    np.testing.assert_allclose(plain / found.data, loaded.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)


def test_rope_scaling_that_gguf_cannot_say_is_refused(tmp_path: Path, chatml_tokenizer: Any) -> None:
    rope = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
    model = saved(chatml_tokenizer, tmp_path / "m", rope_parameters=rope)
    with pytest.raises(ArtifactError, match="'linear'"):
        write_gguf(model, "f16", "n", "l", tmp_path / "x.gguf")


def rules_of(*parts: Any) -> Any:
    inner = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return json.loads(inner.to_str())


def test_single_digits_before_gpt_2s_cut_are_called_smollm() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pre_tokenizer_name(rules_of(pre_tokenizers.Digits(True), byte_level)) == "smollm"


@pytest.mark.parametrize("part", [pre_tokenizers.Digits(False), pre_tokenizers.Whitespace()], ids=repr)
def test_cut_that_llama_cpp_has_no_name_for_is_refused(part: Any) -> None:
    with pytest.raises(ArtifactError, match="GGUF has no name for this tokenizer"):
        pre_tokenizer_name(rules_of(part, pre_tokenizers.ByteLevel(add_prefix_space=False)))


def test_modelfile_of_chatml_has_its_turns_and_stops(artifact: Path, config_file: Path) -> None:
    text = (run_export(config_file, artifact, "gguf-q8_0") / "gguf-q8_0/Modelfile").read_text()
    assert text == (
        "FROM ./tiny-q8_0.gguf\n"
        'TEMPLATE """{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ else }}{{ end }}'
        '{{ range .Messages }}{{ if ne .Role "system" }}<|im_start|>{{ .Role }}\n{{ .Content }}<|im_end|>\n'
        '{{ end }}{{ end }}<|im_start|>assistant\n"""\n'
        'PARAMETER stop "<|im_end|>"\n'
        'LICENSE """apache-2.0"""\n'
    )


def test_go_template_of_llama_3_keeps_its_system_block_and_leaves_the_bos_to_the_tokenizer(
    llama3_tokenizer: Any,
) -> None:
    block = "<|start_header_id|>system<|end_header_id|>\n\nToday Date: 26 Jul 2024\n\n"
    assert go_template(llama3_tokenizer) == (
        "{{ if .System }}" + block + "{{ .System }}<|eot_id|>{{ else }}" + block + "<|eot_id|>{{ end }}"
        '{{ range .Messages }}{{ if ne .Role "system" }}<|start_header_id|>{{ .Role }}<|end_header_id|>\n\n'
        "{{ .Content }}<|eot_id|>{{ end }}{{ end }}<|start_header_id|>assistant<|end_header_id|>\n\n"
    )


def test_go_template_of_another_shape_is_refused(llama3_tokenizer: Any) -> None:
    llama3_tokenizer.chat_template = (
        "{% for m in messages %}{{ m['content'] + '<|eot_id|>' }}{{ loop.index }}{% endfor %}"
    )
    with pytest.raises(ArtifactError, match="cannot be written for Ollama"):
        go_template(llama3_tokenizer)


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
    assert capsys.readouterr().out.count("skipped") == 3
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
    told = capsys.readouterr().err
    assert "no finished artifact of tiny" in told and told.count("\n") == 1


def test_an_altered_artifact_is_not_exported(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (artifact / "README.md").write_text("Another.\n")
    arguments = ["export", "--config", str(config_file), "--artifacts", str(artifact.parents[1])]
    assert main(arguments) == 1
    told = capsys.readouterr().err
    assert "README.md is missing or altered" in told and told.count("\n") == 1
    assert not (artifact.parents[1] / "exports").exists()
