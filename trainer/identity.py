"""Decide what a result is known by: the keys of bases, data, runs, merged models, evaluations and artifacts.

A key is a hash of content. Every path of a configuration is replaced by the hash of its content. So
clones in different folders, or a host and a container, have the same keys, and an edited file has another.

Code and packages decide results as well, but they are no part of a key. `made_by` describes them, and data
and runs keep that description next to their key. Results of other code are in separate directories: they
never mix with ours, and they can be found.
"""

import contextlib
import functools
import hashlib
import importlib.metadata
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from trainer.adapter_file import WEIGHTS as ADAPTER_WEIGHTS
from trainer.base_place import place
from trainer.config import BaseModelConfig, RunConfig
from trainer.config_data import DataConfig, SourceConfig
from trainer.config_lora import LoraConfig
from trainer.data_card import configs_of
from trainer.errors import MissingError
from trainer.files import data_files, read_json, sha256_file, write_json
from trainer.hashes import known_sha256
from trainer.source_name import is_local

ROOM = Path(__file__).parent
RECORD = "made_by.json"
KEEP_OLDER = "--keep-older-runs"
CODE = "trainer code"
PACKAGES = ("accelerate", "peft", "tokenizers", "torch", "transformers", "trl")
ENGINE_PACKAGES = ("bitsandbytes", "unsloth", "unsloth_zoo")  # recorded where they are installed
# Code that cannot change a merged model or its evaluation.
ONLY_SHOWS = (
    "__main__.py",
    "arguments.py",
    "auto_profile.py",
    "cli.py",
    "config_adapter.py",
    "config_file.py",
    "config_words.py",
    "pages",
    "preflight.py",
)
# Code that cannot change a run, because none imports it (tests/trainer/test_identity.py).
OUTSIDE_A_RUN = (*ONLY_SHOWS, "pipeline.py", "fit/choose", "judge", "knowable.py", "ship")
# The files of a model directory that transformers reads. Licences, cards and our own record decide nothing.
READ = ("*.json", "*.jinja", "*.model", "*.safetensors", "*.tiktoken", "*.txt", "additional_chat_templates/*")
NOT_READ = (".", "base.json", "LICENSE", "NOTICE", "README", "USE_POLICY")
NEWER_OF_LORA = ("rslora", "dora", "modules_to_save", "adapter")
# Settings of `train` that do not change the weights of a run after a given step.
NOT_IN_A_RUN = {"epochs", "max_steps", "logging_steps", "trackers", "shard_base"}


@dataclass(frozen=True, slots=True)
class Older:
    """A result that other code or packages made. differs: what they are, and what ours are."""

    directory: Path
    differs: str


def fingerprint(*parts: Any) -> str:
    """Return the SHA-256 of JSON-able parts, independent of the order of keys."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def by_content(value: Any, setting: str) -> Any:
    """Return settings as JSON-able values, each path replaced by the hash of what lies there.

    Of the base it returns what names it: its content is known by `base_hashes`.
    setting: the name of `value`, for the error. Raises: MissingError if a file does not exist.
    """
    if isinstance(value, BaseModelConfig):
        return value.model_dump(mode="json", exclude={"path"})
    if isinstance(value, BaseModel):
        inner = f"{setting}." if setting else ""
        found = {name: by_content(getattr(value, name), inner + name) for name in type(value).model_fields}
        if isinstance(value, SourceConfig):
            if is_local(value.source):
                found["source"] = _source_sha256(Path(value.source), setting)
            return found["source"] if isinstance(value.plain(), str) else found
        if isinstance(value, DataConfig):
            return _data_by_content(found)
        if isinstance(value, LoraConfig):  # so the keys are those from before these settings
            return {name: own for name, own in found.items() if own or name not in NEWER_OF_LORA}
        return found
    if isinstance(value, Path):
        value = value / ADAPTER_WEIGHTS if value.is_dir() else value  # `lora.adapter`
        return _file_sha256(value, setting)
    if isinstance(value, tuple):
        return [by_content(item, setting) for item in value]
    return value


def _data_by_content(found: dict[str, Any]) -> dict[str, Any]:
    """Return the settings with a single source by itself, and without held-out sources that are not given.

    So the keys of data with one source are those from before there could be more.
    """
    own = {side: found.pop(side) for side in ("validation", "test")}
    source = found["source"][0] if len(found["source"]) == 1 else found["source"]
    return {**found, "source": source, **{side: given for side, given in own.items() if given}}


def config_hash(config: RunConfig) -> str:
    """Return the hash of a configuration and of all that it points at. Raises: MissingError."""
    return fingerprint(by_content(config, ""), _base_content(config.base))


def _base_content(base: BaseModelConfig) -> str | None:
    """Return the hash of a directory or a GGUF; a name in Ollama's store as it is; None if the Hub has it.

    An entry of a Hub cache is what `base.id` names. Raises: BaseModelError if it is not.
    """
    if base.path is None:
        return None
    found = place(base, base.path)
    if found.in_cache:
        return None
    if found.path.is_dir():
        return base_hashes(found.path)[0]
    return known_sha256(found.path) if found.path.is_file() else str(base.path)


def artifact_id(config: RunConfig, base: str, data: str) -> str:
    """Return `<name>-<hash>`: the same configuration, base and rows make the same artifact.

    base: the first of its `base_hashes`. data: the fingerprint of the rows. Raises: MissingError.
    """
    return f"{config.name}-{fingerprint(by_content(config, ''), base, data)[:8]}"


def base_hashes(directory: Path) -> tuple[str, str]:
    """Return the hash of all that decides what a model does, and contract 1's hash of its weights alone."""
    names = {file.relative_to(directory).as_posix() for pattern in READ for file in directory.glob(pattern)}
    files = [
        [name, known_sha256(directory / name)] for name in sorted(names) if not name.startswith(NOT_READ)
    ]
    return fingerprint(files), fingerprint([file for file in files if file[0].endswith(".safetensors")])


def data_key(config: RunConfig, base: str) -> str:
    """Return the key of the prepared rows. Raises: MissingError."""
    answers = [config.train.dtype, config.train.device] if config.data.general else None  # the base's own
    library = platform.python_version() if uses_stdlib_docs(config.data) else None
    return fingerprint(by_content(config.data, "data"), config.seed, base, answers, library)


def run_key(
    config: RunConfig, base: str, data: str, rank: int | None, learning_rate: float, seed: int
) -> str:
    """Return the key of an arm's runs, whatever their length."""
    train = config.train.model_dump(mode="json", exclude=NOT_IN_A_RUN)
    return fingerprint(by_content(config.lora, "lora"), train, base, data, rank, learning_rate, seed)


def sweep_key(config: RunConfig, runs: Sequence[str]) -> str:
    """Return the key of a sweep's choice. runs: the names of its arms' directories."""
    return fingerprint(list(runs), by_content(config.sweep, "sweep"))


def merged_key(config: RunConfig, run: str, adapter: Path) -> str:
    """Return the key of the model that is made of what a run trained. run: its `run_key`."""
    weights = [sha256_file(file) for file in sorted(adapter.glob("*.safetensors"))]
    parts = [run, *weights, config.ship_dtype, made_by(ONLY_SHOWS)]
    if template := config.data.chat_template:  # other templates can render the same rows
        parts.append(by_content(template, "data.chat_template"))
    return fingerprint(*parts)


def evaluation_key(config: RunConfig, merged: str) -> str:
    """Return the key of a merged model's evaluation. Raises: MissingError."""
    return fingerprint(merged, by_content(config.evaluate, "evaluate"))


@functools.cache
def made_by(without: tuple[str, ...] = OUTSIDE_A_RUN) -> dict[str, str]:
    """Return the versions of the packages and of the trainer's own code. without: code to leave out."""
    code = hashlib.sha256()
    for file in sorted([*ROOM.rglob("*.py"), *ROOM.rglob("*.jinja")]):
        path = file.relative_to(ROOM)
        if not any(path.is_relative_to(part) for part in without):
            code.update(f"{path.as_posix()} {sha256_file(file)}\n".encode())
    found = {name: importlib.metadata.version(name) for name in PACKAGES}
    for name in ENGINE_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return {**found, CODE: code.hexdigest()[:8]}


def differences(made: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return what differs, such as `trl 1.2.0 (now 1.3.0)`, or an empty text."""
    return ", ".join(
        f"{name} {made.get(name, 'absent')} (now {now.get(name, 'absent')})"
        for name in sorted({*made, *now})
        if made.get(name) != now.get(name)
    )


def own_directory(folder: Path, name: str, key: str) -> Path:
    """Return where this code keeps what `key` determines: `folder/<name>-<hash>`, or `folder/<hash>`."""
    digest = fingerprint(key, made_by())
    return folder / (f"{name}-{digest[:8]}" if name else digest[:16])


def older_directory(folder: Path, name: str, key: str) -> Older | None:
    """Return the newest directory of `key` that other code or packages made."""
    found = [
        (record.stat().st_mtime, Older(record.parent, differs))
        for record in folder.glob(f"{name}*/{RECORD}")
        if (content := read_json(record))
        and content["key"] == key
        and (differs := differences(content["made_by"], made_by()))
    ]
    return max(found, key=lambda pair: pair[0])[1] if found else None


def older_line(subject: str, differs: str, kept: bool) -> str:
    """Return the line that describes results of other code. subject: with its verb, such as `2 arms were`."""
    then = f"used because of {KEEP_OLDER}" if kept else f"made again; {KEEP_OLDER} would use what exists"
    return f"  {subject} made by {differs}: {then}"


def write_record(directory: Path, key: str) -> None:
    """Write a record of what determined a result and what made it, unless the directory has one."""
    if not (directory / RECORD).exists():
        write_json(directory / RECORD, {"key": key, "made_by": made_by()})


def uses_stdlib_docs(data: DataConfig) -> bool:
    """Return whether rows are made from the standard library of this Python."""
    return any(s.source == "stdlib-docs" for s in (*data.source, *data.validation, *data.test))


def _source_sha256(path: Path, setting: str) -> str:
    """Return the hash of a data file, or of a folder's data files with their names in it.

    What the folder's README says of its splits belongs to it.
    """
    if path.is_dir():
        files = [[f.relative_to(path).as_posix(), known_sha256(f)] for f in data_files(path)]
        configs = configs_of(path)
        return fingerprint(files, json.dumps(configs, default=str)) if configs else fingerprint(files)
    return _file_sha256(path, setting)


def _file_sha256(path: Path, setting: str) -> str:
    if not path.is_file():
        raise MissingError(f"{setting} {path} does not exist, and what it holds decides the result")
    return known_sha256(path)
