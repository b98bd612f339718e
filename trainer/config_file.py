"""Read the YAML file of a run, and the overrides of the command line.

Overrides win over the file, and the file wins over the defaults of `config`. `config_words` describes what is
wrong with them.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from trainer.config import OLLAMA, RunConfig
from trainer.config_adapter import take_settings
from trainer.config_data import CONFIGS
from trainer.config_words import problems, short
from trainer.errors import ConfigError
from trainer.source_name import is_local


class _EachKeyOnce(yaml.SafeLoader):
    """Refuse a mapping that has a key twice: YAML's loader would drop the first value without a word."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[str] = set()
        for key in (key for key, _ in node.value if isinstance(key, yaml.ScalarNode)):
            if key.value in seen:
                twice = f"{key.value!r} is there twice"
                raise yaml.constructor.ConstructorError(None, None, twice, key.start_mark)
            seen.add(key.value)
        mapping: dict[Any, Any] = super().construct_mapping(node, deep)
        return mapping


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Read a YAML file and apply `a.b=value` overrides.

    Relative paths of the file start at its folder, those of overrides where the user stands.

    Raises: ConfigError naming every wrong key and value at once.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _EachKeyOnce)
    except FileNotFoundError:
        shipped = ", ".join(sorted(p.stem for p in CONFIGS.glob("*.yaml")))
        raise ConfigError(f"no config file {path}; the shipped profiles are {shipped}") from None
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {path}: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must be a mapping of settings, not {type(values).__name__}")
    for override in overrides:
        _apply(values, from_here(override))
    _anchor_paths(values, path.parent)
    take_settings(values)
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {problems(error)}") from None


def from_here(override: str) -> str:
    """Return an override with its relative paths made absolute, for a process that stands elsewhere.

    Raises: ConfigError if it is not `a.b=value`.
    """
    values: dict[str, Any] = {}
    _apply(values, override)
    _anchor_paths(values, Path.cwd())
    key, _, text = override.partition("=")
    value: Any = values
    for name in key.split("."):
        value = value[name]
    return (
        override
        if value == yaml.load(text, _EachKeyOnce)
        else f"{key}={json.dumps(value, ensure_ascii=False, default=str)}"
    )


def _apply(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    *parents, leaf = key.split(".")
    if not equals or not leaf:
        raise ConfigError(f"--set {override!r}: expected key.key=value, such as train.max_steps=5")
    target = values
    for name in parents:
        target = target.setdefault(name, {})
        if not isinstance(target, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, it has no keys")
    try:
        target[leaf] = yaml.load(text, _EachKeyOnce)
    except (ValueError, RecursionError, yaml.YAMLError):
        raise ConfigError(f"--set {short(override)}: {short(text)} is not a YAML value") from None


def _anchor_paths(values: dict[str, Any], folder: Path) -> None:
    """Make the file's relative paths absolute."""
    places = [(values.get("base"), "path"), (values.get("lora"), "adapter")]
    data = values.get("data")
    if isinstance(data, dict):
        places += [(data, "chat_template"), (data.get("general"), "prompts")]
        for side in ("source", "validation", "test"):
            _anchor_sources(data, side, folder)
        if isinstance(files := data.get("contamination"), list):
            data["contamination"] = [_anchored(f, folder) if isinstance(f, str) else f for f in files]
    evaluate = values.get("evaluate")
    if isinstance(evaluate, dict):
        places.append((evaluate, "prompts"))
        if isinstance(benchmarks := evaluate.get("benchmarks"), list):
            places += [(benchmark, "file") for benchmark in benchmarks]
    for mapping, key in places:
        if isinstance(mapping, dict) and isinstance(value := mapping.get(key), str):
            mapping[key] = value if value.startswith(OLLAMA) else _anchored(value, folder)


def _anchor_sources(data: dict[str, Any], side: str, folder: Path) -> None:
    """Make the relative paths of a side's sources absolute, each a text or a mapping with `source`."""
    given = data.get(side)
    items: list[tuple[Any, Any]] = [(data, side)]
    if isinstance(given, list):
        items = [(given, number) for number in range(len(given))]
    for holder, key in items if given is not None else ():
        if isinstance(holder[key], dict):
            holder, key = holder[key], "source"
        source = holder.get(key) if isinstance(holder, dict) else holder[key]
        if isinstance(source, str) and is_local(source):
            holder[key] = _anchored(source, folder)


def _anchored(path: str, folder: Path) -> str:
    try:
        return str(folder / Path(path).expanduser())
    except RuntimeError as error:
        raise ConfigError(f"{path}: {error}") from None
