"""Find the GGUF that holds a base model, and convert it to a Hugging Face directory in bf16.

A GGUF is in an installed package, a file of the user or the one in a folder (LM Studio keeps such folders),
or in Ollama's store (`ollama:NAME:TAG`). Quantised weights are used as they are rounded, which the console
says.
"""

import contextlib
import importlib.metadata
import os
import re
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer import ollama_store
from trainer.base_place import GGUF, place
from trainer.config import OLLAMA, BaseModelConfig
from trainer.errors import BaseModelError
from trainer.files import only_writer, read_json, whole_directory, write_json
from trainer.hashes import known_sha256
from trainer.identity import base_hashes, fingerprint
from trainer.progress import say

PART = re.compile(r"-\d{5}-of-\d{5}$")  # ends the names of one model's files
NAME_CHARACTERS = 40


@dataclass(frozen=True, slots=True)
class Gguf:
    """A base model in one file. name: begins that of its directory. licences: files that it comes with."""

    file: Path
    name: str
    sha256: str
    revision: str
    licences: Sequence[Path] = ()


def gguf_of(config: BaseModelConfig) -> Gguf | None:
    """Return the GGUF that a configuration names, or None if it names none. Raises: BaseModelError."""
    if config.gguf_package:
        return _in_package(config, config.gguf_package)
    if config.path is None:
        return None
    if str(config.path).startswith(OLLAMA):
        return _in_ollama(config, str(config.path).removeprefix(OLLAMA))
    found = place(config, config.path)
    file = found.path
    if file.suffix.lower() != GGUF or file.is_dir():
        return None
    if not file.is_file():
        raise BaseModelError(f"base.path {file}: there is no such file")
    if PART.search(file.stem):
        raise BaseModelError(
            f"base.path {file} is one part of a model; join them with llama.cpp's `llama-gguf-split --merge`"
        )
    licences = sorted(file.parent.glob("LICENSE*"))
    return Gguf(file, file.stem, known_sha256(file), found.revision, licences)


def _in_ollama(config: BaseModelConfig, name: str) -> Gguf:
    """Return the model that Ollama has under this name. Raises: BaseModelError."""
    file, licences = ollama_store.find(name)
    safe = "".join(c if c.isalnum() or c in "._-" else "-" for c in name)
    return Gguf(file, f"ollama-{safe}", file.name.removeprefix("sha256-"), config.revision, licences)


def convert(gguf: Gguf, config: BaseModelConfig, artifacts: Path) -> tuple[Path, tuple[str, str]]:
    """Return the model's directory and its `base_hashes`. Convert it unless a whole conversion exists."""
    directory = place_of(gguf, config, artifacts)
    hashes = whole(directory)
    if hashes is None:
        with only_writer(directory):
            hashes = whole(directory) or _convert(gguf, config, directory)
    return directory, hashes


def place_of(gguf: Gguf, config: BaseModelConfig, artifacts: Path) -> Path:
    return artifacts / "bases" / f"{gguf.name[:NAME_CHARACTERS]}-{fingerprint(config.id, gguf.sha256)[:8]}"


def whole(directory: Path) -> tuple[str, str] | None:
    """Return the `base_hashes` of a converted model, or None if its weights are missing or have changed.

    A user may edit the other files, such as the chat template; they are hashed as they are now.
    """
    record = read_json(directory / "base.json")
    if record is None:
        return None
    hashes = base_hashes(directory)
    return hashes if record["weights_sha256"] == hashes[1] else None


def _in_package(config: BaseModelConfig, package: str) -> Gguf:
    """Return the package's one GGUF; `gguf_sha256` is checked when it is read."""
    try:
        files = importlib.metadata.files(package) or []
    except importlib.metadata.PackageNotFoundError:
        raise BaseModelError(f"base.gguf_package {package!r} is not installed; run `make setup`") from None
    found = [Path(str(f.locate())) for f in files if f.suffix == ".gguf"]
    if len(found) != 1 or not found[0].is_file():
        raise BaseModelError(f"package {package} carries {len(found)} GGUF files, expected one")
    licences = [Path(str(f.locate())) for f in files if f.name.startswith("LICENSE")]
    digest = config.gguf_sha256 or known_sha256(found[0])
    return Gguf(found[0], package, digest, config.revision, licences)


def _convert(gguf: Gguf, config: BaseModelConfig, directory: Path) -> tuple[str, str]:
    """Write the model directory and return its `base_hashes`. Raises: BaseModelError."""
    if gguf.sha256 != (digest := known_sha256(gguf.file)):
        raise BaseModelError(
            f"{gguf.file.name} has SHA-256 {digest[:12]}…, expected {gguf.sha256[:12]}…: the download was "
            "cut or changed; fetch it again (of a package: remove .venv/trainer and run `make up`)"
        )
    model, tokenizer = _read(gguf)
    model.config._name_or_path = config.id  # the GGUF holds a working title
    with whole_directory(directory) as scratch:
        model.save_pretrained(scratch)
        for part in scratch.glob("*.safetensors"):
            os.chmod(part, 0o644)
        tokenizer.save_pretrained(scratch)
        for number, file in enumerate(gguf.licences):
            shutil.copy(file, scratch / ("LICENSE" if not number else f"LICENSE.{number + 1}"))
        hashes = base_hashes(scratch)
        write_json(scratch / "base.json", {"weights_sha256": hashes[1]})
    return hashes


def check_header(gguf: Gguf) -> None:
    """Check what can be told without reading the weights. Raises: BaseModelError."""
    with _named(gguf) as file:
        from trainer import gguf_reading  # it imports torch and transformers, which takes seconds

        gguf_reading.read_config(file)


def _read(gguf: Gguf) -> tuple[Any, Any]:
    """Return the model in bf16 and its tokenizer. Raises: BaseModelError if they cannot be read right."""
    with _named(gguf) as file:
        from trainer import gguf_reading

        model, tokenizer, kinds = gguf_reading.read(file)
    rounded = {name: count for name, count in kinds.items() if name not in ("F32", "F16", "BF16")}
    if rounded:
        named_kinds = ", ".join(f"{count} in {name}" for name, count in sorted(rounded.items()))
        say(f"  {gguf.name}: quantised weights ({named_kinds}) are used as they are rounded, in bf16")
    return model, tokenizer


@contextlib.contextmanager
def _named(gguf: Gguf) -> Iterator[Path]:
    """Yield a link to the file with the ending that transformers goes by. Raises: BaseModelError."""
    try:
        with tempfile.TemporaryDirectory() as named:
            file = Path(named) / "model.gguf"
            file.symlink_to(gguf.file.resolve())
            yield file
    except BaseModelError as problem:
        raise BaseModelError(f"{gguf.file} {problem}; give the model's own directory or its id") from None
    except Exception as error:  # gguf's, transformers' and the tokenizer's errors share no base
        said = " ".join(re.sub(r"\S+/model\.gguf", "it", str(error)).split())[:200]
        raise BaseModelError(
            f"{gguf.file} cannot be read as a base model ({type(error).__name__}: {said})"
        ) from None
