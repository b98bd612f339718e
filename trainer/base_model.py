"""Provide the base model as a Hugging Face directory, from a path, a GGUF in a package, or the Hub.

A GGUF is converted once, to bf16, into `artifacts/bases/`, with its tokenizer, chat template and licence.
No code here knows a model's name; the YAML file states what differs.
"""

import contextlib
import functools
import importlib.metadata
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config import BaseModelConfig
from trainer.errors import BaseModelError
from trainer.files import only_writer, read_json, sha256_file, whole_directory, write_json
from trainer.identity import base_hashes, fingerprint

LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A base model on disk.

    directory: loadable by transformers. sha256: of all that decides what the model does, its tokenizer and
    chat template included. weights_sha256: of its weights alone, as contract 1 states it.
    """

    directory: Path
    revision: str
    sha256: str
    weights_sha256: str

    def licence_files(self) -> list[Path]:
        return sorted(p for pattern in LICENCE_FILES for p in self.directory.glob(pattern))


def fetch(config: BaseModelConfig, artifacts: Path) -> BaseModel:
    """Return the base model, downloaded or converted if need be. Raises: BaseModelError."""
    if config.gguf_package:
        return _converted(config, artifacts)
    if config.path:
        directory, revision = config.path, config.revision
        if not (directory / "config.json").is_file():
            raise BaseModelError(f"base.path {directory} has no config.json: not a model directory")
    else:
        directory = _download(config)
        revision = directory.name  # the hub cache names a snapshot by its commit
    _require_safetensors(directory)
    return BaseModel(directory, revision, *base_hashes(directory))


def local(config: BaseModelConfig, artifacts: Path) -> BaseModel | None:
    """Return the base model if nothing has to be downloaded or converted for it. Raises: BaseModelError."""
    if config.path:
        return fetch(config, artifacts)
    if config.gguf_package:
        directory = _place_of_conversion(config, artifacts)
        hashes = _whole(directory)
        return BaseModel(directory, config.revision, *hashes) if hashes else None
    try:
        directory = _snapshot(config, local_files_only=True)
    except Exception:  # as in `_download`
        return None
    return BaseModel(directory, directory.name, *base_hashes(directory))


def load_tokenizer(directory: Path, chat_template: Path | None = None) -> Any:
    """Return the tokenizer. chat_template: a file in place of its own template. Raises: BaseModelError."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    if chat_template:
        tokenizer.chat_template = _read_template(chat_template)
        try:
            tokenizer.apply_chat_template(
                [{"role": "user", "content": "x"}], tokenize=False, add_generation_prompt=True
            )
        except Exception as error:  # a template is a program: it may raise anything
            reason = " ".join(str(error).split()) or type(error).__name__
            raise BaseModelError(
                f"data.chat_template {chat_template} cannot render a question: {reason}"
            ) from None
    return tokenizer


def _read_template(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise BaseModelError(f"data.chat_template {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise BaseModelError(f"data.chat_template {file} is not UTF-8 text") from None


def load_model(directory: Path, dtype: str, device: str) -> Any:
    """Return the causal language model in `dtype` on `device`, in evaluation mode.

    Attention is torch's own (SDPA), or transformers' choice for the few families that lack it.
    """
    import torch
    from transformers import AutoModelForCausalLM

    open_model = functools.partial(
        AutoModelForCausalLM.from_pretrained, directory, dtype=getattr(torch, dtype), local_files_only=True
    )
    try:
        model: Any = open_model(attn_implementation="sdpa")
    except ValueError as error:
        if "scaled_dot_product_attention" not in str(error):
            raise
        model = open_model()
    return model.to(device).eval()


def _snapshot(config: BaseModelConfig, local_files_only: bool = False) -> Path:
    from huggingface_hub import snapshot_download

    found = snapshot_download(
        config.id,
        revision=config.revision,
        allow_patterns=["*.json", "*.jinja", "*.safetensors", "*.txt", "*.md", *LICENCE_FILES],
        local_files_only=local_files_only,
    )
    return Path(found)


def _download(config: BaseModelConfig) -> Path:
    try:
        return _snapshot(config)
    except Exception as error:  # the hub's, the network's and the disk's errors share no base
        raise BaseModelError(
            f"{config.id}@{config.revision} cannot be fetched ({type(error).__name__}); "
            "set HF_TOKEN to an account with access, or give base.path"
        ) from None


def gguf_file(config: BaseModelConfig) -> Path:
    """Return the package's one GGUF, checked against `gguf_sha256`. Raises: BaseModelError."""
    package = config.gguf_package
    assert package is not None
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise BaseModelError(f"base.gguf_package {package!r} is not installed; run `make setup`") from None
    found = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise BaseModelError(f"package {package} carries {len(found)} GGUF files, expected one")
    if config.gguf_sha256 and (digest := sha256_file(found[0])) != config.gguf_sha256:
        raise BaseModelError(
            f"{found[0].name} has SHA-256 {digest[:12]}…, expected {config.gguf_sha256[:12]}…: "
            "the download was cut or changed; remove .venv/trainer and run `make up` again"
        )
    return found[0]


def _converted(config: BaseModelConfig, artifacts: Path) -> BaseModel:
    """Return the model of the package's GGUF. Convert it unless a whole conversion exists."""
    directory = _place_of_conversion(config, artifacts)
    hashes = _whole(directory)
    if hashes is None:
        with only_writer(directory):
            hashes = _whole(directory) or _convert(config, directory)
    return BaseModel(directory, config.revision, *hashes)


def _place_of_conversion(config: BaseModelConfig, artifacts: Path) -> Path:
    content = config.gguf_sha256 or sha256_file(gguf_file(config))
    return artifacts / "bases" / f"{config.gguf_package}-{fingerprint(config.id, content)[:8]}"


def _convert(config: BaseModelConfig, directory: Path) -> tuple[str, str]:
    """Write the model directory and return its `base_hashes`."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

    gguf = gguf_file(config)
    source = {"gguf_file": gguf.name, "local_files_only": True}
    with _read_once():
        model = AutoModelForCausalLM.from_pretrained(
            gguf.parent,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(gguf.parent, **source)
    model.config._name_or_path = config.id  # the GGUF holds a working title
    with whole_directory(directory) as scratch:
        model.save_pretrained(scratch)
        tokenizer.save_pretrained(scratch)
        os.chmod(scratch / "model.safetensors", 0o644)
        for file in importlib.metadata.files(str(config.gguf_package)) or []:
            if file.name.startswith("LICENSE"):
                shutil.copy(str(file.locate()), scratch / "LICENSE")
        hashes = base_hashes(scratch)
        write_json(scratch / "base.json", {"weights_sha256": hashes[1]})
    return hashes


@contextlib.contextmanager
def _read_once() -> Iterator[None]:
    """Keep what transformers asks of `gguf` while the block lasts.

    It reads the header three times, 2.4 s each for 98,000 strings, and makes the map of names once a module.
    """
    import gguf

    own = {name: getattr(gguf, name) for name in ("GGUFReader", "get_tensor_name_map")}
    for name, function in own.items():
        setattr(gguf, name, functools.cache(function))
    try:
        yield
    finally:
        for name, function in own.items():
            setattr(gguf, name, function)


def _whole(directory: Path) -> tuple[str, str] | None:
    """Return the `base_hashes` of a converted model, or None if its weights are missing or have changed.

    A user may edit the other files, such as the chat template; they are hashed as they are now.
    """
    record = read_json(directory / "base.json")
    if record is None:
        return None
    hashes = base_hashes(directory)
    return hashes if record["weights_sha256"] == hashes[1] else None


def _require_safetensors(directory: Path) -> None:
    """Raise BaseModelError if transformers would load weights that are not safetensors."""
    if any((directory / name).is_file() for name in ("model.safetensors", "model.safetensors.index.json")):
        return
    found = ", ".join(sorted(file.name for file in directory.glob("*.bin"))) or "no weights"
    model = f"AutoModelForCausalLM.from_pretrained({str(directory)!r}, dtype='auto')"
    code = f"from transformers import AutoModelForCausalLM; {model}.save_pretrained({str(directory)!r})"
    raise BaseModelError(
        f"the base model {directory} has {found}, expected model.safetensors; to write it, run "
        f'`.venv/trainer/bin/python -c "{code}"`'
    )
