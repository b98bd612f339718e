"""Find a model in Ollama's store: the file of its weights, and its licences."""

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from trainer.config import OLLAMA
from trainer.errors import BaseModelError
from trainer.files import read_json

STORES = (Path.home() / ".ollama" / "models", Path("/usr/share/ollama/.ollama/models"))
HOST, OWNER, TAG = "registry.ollama.ai", "library", "latest"
KIND = "application/vnd.ollama.image."
_NAME = re.compile(
    r"(?:(?:(?P<host>[\w.-]+(?::\d+)?)/)?(?P<owner>[\w.-]+)/)?(?P<model>[\w.-]+)(?::(?P<tag>[\w.-]+))?"
)


def find(name: str) -> tuple[Path, Sequence[Path]]:
    """Return the weights and the licences of the model that Ollama has under this name.

    Raises: BaseModelError if it has none, or more than a model of its own.
    """
    parts = _NAME.fullmatch(name)
    if parts is None:
        raise BaseModelError(f"base.path {OLLAMA}{name}: expected {OLLAMA}[[HOST/]OWNER/]NAME[:TAG]")
    place = Path(parts["host"] or HOST, parts["owner"] or OWNER, parts["model"], parts["tag"] or TAG)
    own = os.environ.get("OLLAMA_MODELS")
    stores = [Path(own)] if own else [store for store in STORES if store.is_dir()]
    for store in stores:
        file = store / "manifests" / place
        if file.is_file() and (manifest := read_json(file)) is not None:
            return _weights(name, store, manifest)
    if not any(map(Path.is_dir, stores)):
        looked = " or ".join(map(str, stores or STORES))
        raise BaseModelError(
            f"base.path {OLLAMA}{name}: Ollama has no store at {looked}; OLLAMA_MODELS names another place"
        )
    raise BaseModelError(
        f"base.path {OLLAMA}{name}: Ollama has no such model on this machine; it has "
        f"{', '.join(_names(stores)) or 'none'} (in {' or '.join(map(str, stores))})"
    )


def _weights(name: str, store: Path, manifest: dict[str, Any]) -> tuple[Path, Sequence[Path]]:
    blobs: dict[str, list[Path]] = {}
    for layer in manifest.get("layers") or []:
        kind, digest = str(layer.get("mediaType")).removeprefix(KIND), str(layer.get("digest"))
        blobs.setdefault(kind, []).append(store / "blobs" / digest.replace(":", "-"))
    models = blobs.get("model", [])
    if len(models) != 1 or not models[0].is_file():
        count = "no file" if not any(map(Path.is_file, models)) else f"{len(models)} files"
        raise BaseModelError(
            f"base.path {OLLAMA}{name}: Ollama's store holds {count} of its weights, expected one"
        )
    if "adapter" in blobs:
        raise BaseModelError(f"base.path {OLLAMA}{name} is an adapter on another model: give that one")
    return models[0], blobs.get("license", [])


def _names(stores: Sequence[Path]) -> Iterator[str]:
    for store in stores:
        for file in sorted((store / "manifests").glob("*/*/*/*")):
            host, owner, model, tag = file.parts[-4:]
            above = (
                "" if (host, owner) == (HOST, OWNER) else f"{owner}/" if host == HOST else f"{host}/{owner}/"
            )
            yield f"{above}{model}:{tag}"
