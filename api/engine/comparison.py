"""Read and verify the comparison models: the base of the merged model, and adapters of that base.

An adapter changes the base's weights only, so base and adapters share a second engine, and the merged model
keeps the engine that it has without them. This module decides whether they may be loaded. It reads JSON and
the headers of safetensors files. It unpickles nothing and loads no weights.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from api.engine.artifact import Artifact
from api.errors import AdapterError

BASE = "base"  # the name under which the base is served
MAX_RANK = 256
CONFIG, WEIGHTS, TRAINED_ON = "adapter_config.json", "adapter_model.safetensors", "base.json"

_PICKLES = frozenset({".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle"})
_FLOATS = frozenset({"F32", "F16", "BF16"})
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_[AB]\.weight")
# Fields of PEFT that do not change base + alpha/r · B·A. Any other field must be off: every version of PEFT
# adds more of them, and vLLM ignores those that it does not know.
_HARMLESS = frozenset(
    ("peft_type", "r", "lora_alpha", "target_modules", "task_type", "inference_mode", "peft_version",
     "base_model_name_or_path", "revision", "auto_mapping", "lora_dropout", "megatron_core",
     "qalora_group_size")
)  # fmt: skip
_OFF: tuple[Any, ...] = (None, False, "none", [], {})
_PLAIN_INITS: tuple[Any, ...] = (True, False, "gaussian")  # other init_lora_weights also change the base

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter on disk. base_sha256: hash of the weights that it was trained on. created: Unix time."""

    name: str
    directory: Path
    rank: int
    base_sha256: str
    created: int


@dataclass(frozen=True, slots=True)
class ComparisonModels:
    """The base and its adapters, served under `names` for comparison with the merged model."""

    base: Path
    adapters: tuple[Adapter, ...]

    @property
    def names(self) -> list[str]:
        return [BASE, *(adapter.name for adapter in self.adapters)]

    def verify(self, artifact: Artifact) -> None:
        """Check that the artifact and the adapters were made from the base's weights.

        Raises: AdapterError naming the model that was not.
        """
        if artifact.name in self.names:
            raise AdapterError(f"API_ADAPTERS: {artifact.name!r} is the name of the merged model")
        found = _weights_sha256(self.base)
        wanted = artifact.manifest.base_model.weights_sha256
        if found != wanted:
            raise AdapterError(
                f"API_BASE_DIR {self.base} has weights {found[:12]}…, and {artifact.directory} was made "
                f"from {str(wanted)[:12]}…"
            )
        for adapter in self.adapters:
            if adapter.base_sha256 != found:
                raise AdapterError(
                    f"{adapter.directory / TRAINED_ON} names weights {adapter.base_sha256[:12]}…, and "
                    f"{self.base} has {found[:12]}…: the adapter belongs to another base"
                )


def read_comparison_models(base: Path | None, adapters: Mapping[str, Path]) -> ComparisonModels | None:
    """Read the base and the adapters; return None without a base. `verify` hashes the base's weights later.

    Raises: AdapterError naming the file that cannot be served, and why.
    """
    if base is None:
        return None
    base = base.resolve()
    shapes: Shapes = {}
    for file in sorted(base.glob("*.safetensors")):
        shapes |= _shapes(file)
    if not shapes or not (base / "config.json").is_file():
        raise AdapterError(f"API_BASE_DIR {base} holds no model: it has no config.json with *.safetensors")
    return ComparisonModels(base, tuple(_read(name, adapters[name].resolve(), shapes) for name in adapters))


def _read(name: str, directory: Path, base_shapes: Shapes) -> Adapter:
    if name == BASE:
        raise AdapterError(f"API_ADAPTERS: {BASE!r} is reserved for the base itself")
    if not directory.is_dir():
        raise AdapterError(f"API_ADAPTERS: {name}: {directory} is not a directory")
    for file in sorted(directory.iterdir()):
        if file.suffix in _PICKLES:
            raise AdapterError(f"{file} is a pickle, which can run code: an adapter is safetensors only")
    rank = _rank(directory / CONFIG)
    trained_on = _json(directory / TRAINED_ON).get("weights_sha256")
    if not isinstance(trained_on, str):
        raise AdapterError(f"{directory / TRAINED_ON} states no weights_sha256 of the base")
    _check_weights(_own_file(directory / WEIGHTS), rank, base_shapes)
    created = int((directory / WEIGHTS).stat().st_mtime)
    return Adapter(name, directory, rank, trained_on, created)


def _rank(file: Path) -> int:
    """Return the adapter's rank. Raises: AdapterError if its configuration asks for more than plain LoRA."""
    config = _json(file)
    if config.get("peft_type") != "LORA":
        raise AdapterError(f"{file}: peft_type is {config.get('peft_type')!r}, expected 'LORA'")
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or not 1 <= rank <= MAX_RANK:
        raise AdapterError(f"{file}: r is {rank!r}, expected a rank from 1 to {MAX_RANK}")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha) or alpha <= 0:
        raise AdapterError(f"{file}: lora_alpha is {alpha!r}, expected a number over 0")
    for field, value in config.items():
        served = _PLAIN_INITS if field == "init_lora_weights" else _OFF
        if field not in _HARMLESS and value not in served:
            raise AdapterError(f"{file}: {field} is {str(value)[:80]!r}, and only plain LoRA can be served")
    return rank


def _check_weights(file: Path, rank: int, base_shapes: Shapes) -> None:
    """Check that every tensor is one of a pair that fits a layer of the base. Raises: AdapterError."""
    found = _shapes(file)
    wanted: Shapes = {}
    for tensor in found:
        named = _TENSOR.fullmatch(tensor)
        layer = base_shapes.get(f"{named[1]}.weight", ()) if named else ()
        if named is None or len(layer) != 2:
            raise AdapterError(f"{file}: {tensor[:200]!r} belongs to no layer of the base")
        outputs, inputs = layer
        wanted[f"base_model.model.{named[1]}.lora_A.weight"] = (rank, inputs)
        wanted[f"base_model.model.{named[1]}.lora_B.weight"] = (outputs, rank)
    if not wanted:
        raise AdapterError(f"{file} holds no tensor")
    for tensor, shape in wanted.items():
        if found.get(tensor) != shape:
            raise AdapterError(f"{file}: {tensor} has shape {found.get(tensor)}, expected {shape}")


def _shapes(file: Path) -> Shapes:
    """Return all tensors' shapes from the file's header, whose length must match. Raises: AdapterError."""
    try:
        with safe_open(file, "np") as opened:
            slices = {name: opened.get_slice(name) for name in opened.keys()}
            for name, tensor in slices.items():
                if tensor.get_dtype() not in _FLOATS:
                    raise AdapterError(f"{file}: {name} is {tensor.get_dtype()}, expected F32, F16 or BF16")
            return {name: tuple(tensor.get_shape()) for name, tensor in slices.items()}
    except (OSError, SafetensorError) as error:
        raise AdapterError(f"{file} is no whole safetensors file: {error}") from None


def _json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(_own_file(file).read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise AdapterError(f"{file} cannot be read: {error}") from None
    if not isinstance(found, dict):
        raise AdapterError(f"{file} holds no JSON object")
    return found


def _own_file(file: Path) -> Path:
    """Return `file`. Raises: AdapterError unless it is a file in this directory and not a link."""
    if file.is_symlink():
        raise AdapterError(f"{file} is a symbolic link")
    if not file.is_file():
        raise AdapterError(f"{file} is missing")
    return file


def _weights_sha256(directory: Path) -> str:
    """Hash the JSON list of the safetensors files' names and SHA-256, as the trainer does."""
    digests = []
    for path in sorted(directory.glob("*.safetensors")):
        with path.open("rb") as file:
            digests.append([path.name, hashlib.file_digest(file, "sha256").hexdigest()])
    return hashlib.sha256(json.dumps([digests]).encode()).hexdigest()
