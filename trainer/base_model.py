"""Provide the base model as a Hugging Face directory, from a path, a GGUF, or the Hub and its cache.

A GGUF is converted once, to bf16, into `artifacts/bases/`, with its tokenizer, chat template and licence.
No code here knows a model's name; the YAML file states what differs.
"""

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.base_place import GGUF, INDEX, MODELS, missing_files, place
from trainer.config import BaseModelConfig
from trainer.errors import BaseModelError
from trainer.files import read_json
from trainer.gguf_base import check_header, convert, gguf_of, place_of, whole
from trainer.identity import base_hashes

LICENCE_FILES = ("LICENSE*", "NOTICE*", "USE_POLICY*")
TOKENIZERS = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


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
    if gguf := gguf_of(config):
        directory, hashes = convert(gguf, config, artifacts)
        return BaseModel(directory, gguf.revision, *hashes)
    if config.path:
        found = place(config, config.path)
        directory, revision = found.path, found.revision
    else:
        directory = _download(config)
        revision = directory.name  # the hub cache names a snapshot by its commit
    require_base(directory)
    return BaseModel(directory, revision, *base_hashes(directory))


def local(config: BaseModelConfig, artifacts: Path) -> BaseModel | None:
    """Return the base model if nothing has to be downloaded or converted for it. Raises: BaseModelError."""
    if gguf := gguf_of(config):
        directory = place_of(gguf, config, artifacts)
        hashes = whole(directory)
        return BaseModel(directory, gguf.revision, *hashes) if hashes else None
    if config.path:
        return fetch(config, artifacts)
    snapshot = cached(config)
    return BaseModel(snapshot, snapshot.name, *base_hashes(snapshot)) if snapshot else None


def missing(config: BaseModelConfig) -> str:
    """Return what is still to be done for a base that is not `local`. Raises: BaseModelError."""
    if gguf := gguf_of(config):
        check_header(gguf)
        return f"{gguf.file.name} is not converted yet"
    return f"{config.id} is not downloaded yet"


def cached(config: BaseModelConfig) -> Path | None:
    """Return the base's snapshot in this machine's Hub cache if all of it is there."""
    try:
        directory = _snapshot(config, local_files_only=True)
    except Exception:  # as in `_download`
        return None
    whole = _has_weights(directory) and not missing_files(directory)
    return directory if whole and (directory / "config.json").is_file() else None


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


def attention_of(config: Any) -> str:
    """Return which attention of transformers computes this base: torch's own (SDPA) has no soft caps."""
    return "eager" if getattr(config, "attn_logit_softcapping", None) else "sdpa"


def load_model(directory: Path, dtype: str, device: str) -> Any:
    """Return the causal language model in `dtype` on `device`, in evaluation mode.

    Attention is `attention_of` the base, or transformers' choice for the few families that lack SDPA.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    open_model = functools.partial(
        AutoModelForCausalLM.from_pretrained, directory, dtype=getattr(torch, dtype), local_files_only=True
    )
    attention = attention_of(AutoConfig.from_pretrained(directory, local_files_only=True))
    try:
        model: Any = open_model(attn_implementation=attention)
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


def require_base(directory: Path) -> None:
    """Require a directory that holds a whole model which transformers can train. Raises: BaseModelError."""
    if missing := missing_files(directory):
        raise BaseModelError(
            f"the base model {directory} is not whole: it lacks {', '.join(missing)}; download it again"
        )
    if of := _base_of_adapter(directory):
        raise BaseModelError(f"{directory} is an adapter, not a base model: its base is {of}")
    config = read_json(directory / "config.json")
    if not isinstance(config, dict):
        raise BaseModelError(f"the base model {directory} has no config.json: {_what_it_is(directory)}")
    if quantization := config.get("quantization_config"):
        method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization
        raise BaseModelError(
            f"the base model {directory} is quantised ({method}); give the model that it was made from, and "
            "set train.quantization to save memory"
        )
    if config.get("auto_map") and not _is_known(str(config.get("model_type"))):
        raise BaseModelError(
            f"the base model {directory} of type {config.get('model_type')!r} comes with code of its own, "
            "which is not run here; transformers does not know the type"
        )
    if not any((directory / name).is_file() for name in TOKENIZERS):
        raise BaseModelError(f"the base model {directory} has no tokenizer ({', '.join(TOKENIZERS)})")
    _require_safetensors(directory)


def _what_it_is(directory: Path) -> str:
    """Return what a directory that holds no model is, as far as the models below it say."""
    if entries := sorted(folder.name for folder in directory.glob(f"{MODELS}*")):
        return f"it is a Hub cache; give one of {', '.join(entries)} in it"
    found = {file.parent for depth in ("*", "*/*") for file in directory.glob(f"{depth}/*{GGUF}")}
    if folders := sorted(folder.relative_to(directory).as_posix() for folder in found):
        return f"it holds folders of GGUF files; give one of {', '.join(folders)} in it"
    return "it is not a model directory"


def _base_of_adapter(directory: Path) -> str:
    """Return the base that an adapter's directory names; empty if it is no adapter."""
    config = read_json(directory / "adapter_config.json")
    return str(config.get("base_model_name_or_path") or "") if isinstance(config, dict) else ""


def _is_known(model_type: str) -> bool:
    from transformers import CONFIG_MAPPING

    return model_type in CONFIG_MAPPING


def _has_weights(directory: Path) -> bool:
    return any((directory / name).is_file() for name in ("model.safetensors", INDEX))


def _require_safetensors(directory: Path) -> None:
    """Raise BaseModelError if transformers would load weights that are not safetensors."""
    if _has_weights(directory):
        return
    found = ", ".join(sorted(file.name for file in directory.glob("*.bin"))) or "no weights"
    model = f"AutoModelForCausalLM.from_pretrained({str(directory)!r}, dtype='auto')"
    code = f"from transformers import AutoModelForCausalLM; {model}.save_pretrained({str(directory)!r})"
    raise BaseModelError(
        f"the base model {directory} has {found}, expected model.safetensors; to write it, run "
        f'`.venv/trainer/bin/python -c "{code}"`'
    )
