"""Base models that are on the machine already: GGUF files, Ollama's store, and directories that are none."""

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.gguf_models import save_model
from tests.support.trainer import model_of
from trainer.base_model import fetch, load_model, load_tokenizer, local, missing, require_base
from trainer.cli import main
from trainer.config import BaseModelConfig
from trainer.config_file import load
from trainer.errors import BaseModelError
from trainer.ship.gguf_file import write_gguf

LICENCE = "A licence.\n"


@pytest.fixture
def directory(tmp_path_factory: pytest.TempPathFactory, chatml_tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("model")
    model_of(chatml_tokenizer).save_pretrained(made)
    chatml_tokenizer.save_pretrained(made)
    return made


@pytest.fixture
def gguf(tmp_path_factory: pytest.TempPathFactory, directory: Path) -> Path:
    file = tmp_path_factory.mktemp("gguf") / "Tiny-F16.gguf"
    write_gguf(directory, "f16", "n", "l", file)
    (file.parent / "LICENSE").write_text(LICENCE)
    return file


def config(path: Path | str) -> BaseModelConfig:
    return BaseModelConfig(id="tests/tiny", licence="apache-2.0", path=Path(path))


def logits(directory: Path) -> torch.Tensor:
    with torch.inference_mode():
        found: torch.Tensor = load_model(directory, "float32", "cpu")(torch.arange(3, 40)[None]).logits
    return found


def ollama(root: Path, gguf: Path, name: str = "registry.ollama.ai/library/tiny/1b") -> Path:
    """Write a store as Ollama lays it out; return it."""
    layers = []
    for kind, content in (
        ("model", gguf.read_bytes()),
        ("template", b"{{ .Prompt }}"),
        ("license", LICENCE.encode()),
    ):
        digest = hashlib.sha256(content).hexdigest()
        (root / "blobs").mkdir(parents=True, exist_ok=True)
        (root / "blobs" / f"sha256-{digest}").write_bytes(content)
        layers.append({"mediaType": f"application/vnd.ollama.image.{kind}", "digest": f"sha256:{digest}"})
    manifest = root / "manifests" / name
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"schemaVersion": 2, "layers": layers}))
    return root


def test_a_gguf_file_is_a_base_with_its_licence_and_template(
    tmp_path: Path, gguf: Path, directory: Path
) -> None:
    assert local(config(gguf), tmp_path) is None
    base = fetch(config(gguf), tmp_path)
    assert torch.allclose(logits(base.directory), logits(directory), atol=0.05)
    assert load_tokenizer(base.directory).chat_template == load_tokenizer(directory).chat_template
    assert [file.read_text() for file in base.licence_files()] == [LICENCE]
    assert local(config(gguf), tmp_path) == fetch(config(gguf), tmp_path) == base


def test_quantised_weights_are_told(
    tmp_path: Path, directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "tiny.gguf"
    write_gguf(directory, "q8_0", "n", "l", file)
    fetch(config(file), tmp_path)
    assert "in Q8_0) are used as they are rounded" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("place", "name"),
    [
        ("registry.ollama.ai/library/tiny/1b", "tiny:1b"),
        ("registry.ollama.ai/library/tiny/latest", "tiny"),
        ("registry.ollama.ai/me/tiny/1b", "me/tiny:1b"),
        ("example.org/me/tiny/1b", "example.org/me/tiny:1b"),
        ("hf.co/me/Tiny-GGUF/Q4_K_M", "hf.co/me/Tiny-GGUF:Q4_K_M"),
        ("localhost:5000/library/tiny/latest", "localhost:5000/library/tiny"),
    ],
)
def test_a_model_of_ollama_is_a_base(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch, place: str, name: str
) -> None:
    monkeypatch.setenv("OLLAMA_MODELS", str(ollama(tmp_path / "store", gguf, place)))
    base = fetch(config(f"ollama:{name}"), tmp_path)
    assert torch.equal(logits(base.directory), logits(fetch(config(gguf), tmp_path).directory))
    assert [file.read_text() for file in base.licence_files()] == [LICENCE]


def test_a_model_that_ollama_lacks_is_refused_with_those_that_it_has(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ollama(tmp_path / "store", gguf)
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path / "nowhere"))
    with pytest.raises(
        BaseModelError, match=r"Ollama has no store at .*nowhere; OLLAMA_MODELS names another"
    ):
        fetch(config("ollama:tiny:1b"), tmp_path)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    with pytest.raises(BaseModelError, match=r"ollama:other: Ollama has no such model .* it has tiny:1b"):
        fetch(config("ollama:other"), tmp_path)
    ollama(store, gguf, "hf.co/library/other/latest")
    with pytest.raises(BaseModelError, match=r"it has hf\.co/library/other:latest, tiny:1b"):
        fetch(config("ollama:other"), tmp_path)
    shutil.rmtree(store / "blobs")
    with pytest.raises(BaseModelError, match="holds no file of its weights"):
        fetch(config("ollama:tiny:1b"), tmp_path)


@pytest.mark.parametrize("name", ["", "a/b/c/d:1b", "tiny:1b:2b", "/tiny"])
def test_a_name_that_is_none_of_ollama_is_refused_with_the_form(tmp_path: Path, name: str) -> None:
    with pytest.raises(BaseModelError, match=r"expected ollama:\[\[HOST/\]OWNER/\]NAME\[:TAG\]"):
        fetch(config(f"ollama:{name}"), tmp_path)


def test_a_changed_blob_of_ollama_is_refused(
    tmp_path: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = ollama(tmp_path / "store", gguf)
    monkeypatch.setenv("OLLAMA_MODELS", str(store))
    largest = max((store / "blobs").iterdir(), key=lambda file: file.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-1])
    with pytest.raises(BaseModelError, match="the download was cut or changed"):
        fetch(config("ollama:tiny:1b"), tmp_path)


@pytest.mark.parametrize(
    ("content", "reason"),
    [(b"", "cannot be read as a base model"), (b"GGUF" + bytes(40), "cannot be read as a base model")],
)
def test_a_file_that_is_no_gguf_is_refused_in_one_sentence(
    tmp_path: Path, content: bytes, reason: str
) -> None:
    file = tmp_path / "x.gguf"
    file.write_bytes(content)
    for use in (lambda: missing(config(file)), lambda: fetch(config(file), tmp_path)):  # at `check`, too
        with pytest.raises(BaseModelError, match=reason) as refused:
            use()
        assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("files", "reason"),
    [
        ({}, "has no config.json"),
        ({"config.json": "{"}, "has no config.json"),
        (
            {"adapter_config.json": {"base_model_name_or_path": "org/base"}},
            "is an adapter, not a base model: its base is org/base",
        ),
        ({"config.json": {"quantization_config": {"quant_method": "gptq"}}}, r"is quantised \(gptq\)"),
        (
            {"config.json": {"model_type": "odd", "auto_map": {"AutoModelForCausalLM": "m.M"}}},
            "comes with code of its own, which is not run here",
        ),
        ({"config.json": {"model_type": "llama"}}, "has no tokenizer"),
        ({"config.json": {"model_type": "llama"}, "tokenizer.json": {}}, "expected model.safetensors"),
    ],
)
def test_a_directory_that_is_no_base_is_refused_with_what_it_is(
    tmp_path: Path, files: dict[str, Any], reason: str
) -> None:
    for name, content in files.items():
        (tmp_path / name).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(BaseModelError, match=reason):
        require_base(tmp_path)


def test_check_refuses_a_base_that_is_none(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "org/base"}')
    place = f"base.path={tmp_path / 'adapter'}"
    assert main(["check", "--config", str(config_file), "--set", place]) == 1
    assert "is an adapter, not a base model: its base is org/base" in capsys.readouterr().err


def test_a_name_of_ollama_is_no_relative_path(config_file: Path) -> None:
    assert load(config_file, ["base.path=ollama:tiny:1b"]).base.path == Path("ollama:tiny:1b")


def test_a_gguf_that_would_be_misread_is_refused_with_the_way_out(tmp_path: Path) -> None:
    write_gguf(save_model("phi3", tmp_path / "m"), "f16", "n", "l", tmp_path / "x.gguf")
    with pytest.raises(BaseModelError, match="a GGUF does not say; give the model's own directory or its id"):
        fetch(config(tmp_path / "x.gguf"), tmp_path)
