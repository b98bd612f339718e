"""Read the files of a PEFT directory: the base that it names, and its tensors by the header of their file.

It unpickles nothing and loads no weights.
"""

from pathlib import Path

from safetensors import SafetensorError, safe_open

from trainer.errors import ConfigError
from trainer.files import read_json

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Shapes = dict[str, tuple[int, ...]]


def base_of(directory: Path) -> tuple[str, str | None]:
    """Return the base that an adapter names, and the SHA-256 of its weights if finechat made the adapter."""
    named = (read_json(directory / CONFIG) or {}).get("base_model_name_or_path")
    made = read_json(directory / "base.json")
    return str(named or ""), made.get("weights_sha256") if isinstance(made, dict) else None


def tensors(directory: Path) -> Shapes:
    """Return the shapes of an adapter's tensors, by the header of its file. Raises: ConfigError."""
    file = directory / WEIGHTS
    if not file.is_file():
        found = sorted(other.name for other in directory.glob("*.bin"))
        pickled = f"; {found[0]} is a pickle, which can run code: save it as safetensors" if found else ""
        raise ConfigError(f"lora.adapter {directory} has no {WEIGHTS}{pickled}")
    try:
        with safe_open(file, "np") as opened:
            return {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"lora.adapter: {file} is no whole safetensors file: {error}") from None
