"""Read a GGUF by transformers, with what transformers leaves out.

It takes sizes, weights and the tokenizer from the file. It leaves out, in silence, how RoPE is scaled,
Gemma's frequencies and scale of scores, the size of heads of most families, and biases. Here they are read;
what cannot be is refused, with the end of a sentence that begins with the file.
"""

import contextlib
import functools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import torch
from gguf import GGUFReader
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GgufConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trainer.errors import BaseModelError

CONTROL = 3  # GGUF's kind of a control token
# Llama 3's scaling, of which a GGUF has the result alone. The rest is found from it.
LOW, HIGH, ORIGINAL = 1.0, 4.0, 8192
# Settings of config.json by their keys in GGUF.
SETTINGS = {
    "attention.key_length": "head_dim",
    "attention.sliding_window": "sliding_window",
    "attn_logit_softcapping": "attn_logit_softcapping",
    "final_logit_softcapping": "final_logit_softcapping",
}
BIASES = {"attn_q.bias": "attention_bias", "ffn_up.bias": "mlp_bias"}
# Layers of the one size of Gemma 2 and of Gemma 3 whose scores are scaled by the width of a head's share of
# the hidden states, not of the head (llama.cpp goes by them, too).
GEMMAS_27B = {"gemma2": 46, "gemma3_text": 62}


def read(file: Path) -> tuple[Any, Any, Counter[str]]:
    """Return the model in bf16, its tokenizer, and how many tensors are stored in which type.

    Raises: BaseModelError; and gguf's, transformers' and the tokenizer's own errors.
    """
    with read_once():
        config, reader, source = _config(file)
        model = AutoModelForCausalLM.from_pretrained(
            file.parent,
            config=config,
            dtype=torch.bfloat16,
            quantization_config=GgufConfig(dequantize=True),
            **source,
        )
        tokenizer = AutoTokenizer.from_pretrained(file.parent, **source)
    weights = [tensor for tensor in reader.tensors if not tensor.name.startswith("rope_")]
    held, taken = sum(int(t.n_elements) for t in weights), sum(p.numel() for p in model.parameters())
    if held != taken:
        raise BaseModelError(
            f"holds {held:,} weights, and transformers reads {taken:,} as a {config.model_type}"
        )
    _require_tokens(config, tokenizer, reader)
    return model, tokenizer, Counter(tensor.tensor_type.name for tensor in reader.tensors)


def read_config(file: Path) -> Any:
    """Return the model's configuration, by the header alone. Raises: as `read`."""
    with read_once():
        return _config(file)[0]


def _config(file: Path) -> tuple[Any, GGUFReader, dict[str, Any]]:
    """Return the configuration, the reader, and how transformers is told the file."""
    source = {"gguf_file": file.name, "local_files_only": True}
    config, reader = AutoConfig.from_pretrained(file.parent, **source), gguf.GGUFReader(str(file))
    _complete(config, reader)
    return config, reader, source


def _complete(config: Any, reader: GGUFReader) -> None:
    """Set what transformers leaves out. Raises: BaseModelError."""
    names = {tensor.name for tensor in reader.tensors}
    for key, name in SETTINGS.items():
        if (value := _value(reader, key)) is not None and hasattr(config, name):
            setattr(config, name, value or None)  # a window of 0 is none
    for ending, name in BIASES.items():
        if hasattr(config, name):
            setattr(config, name, any(tensor.endswith(ending) for tensor in names))
    if layers := GEMMAS_27B.get(config.model_type):
        share = config.hidden_size // config.num_attention_heads
        config.query_pre_attn_scalar = share if config.num_hidden_layers == layers else config.head_dim
    rope = _rope(config, reader)
    if config.model_type == "gemma3_text":
        near = {"rope_type": "default", "rope_theta": _value(reader, "rope.freq_base_swa") or 10_000.0}
        config.rope_parameters = {"sliding_attention": near, "full_attention": rope}
    elif rope["rope_type"] != "default":
        config.rope_parameters = {**config.rope_parameters, **rope}


def _rope(config: Any, reader: GGUFReader) -> dict[str, Any]:
    """Return transformers' `rope_parameters` of all layers, or of Gemma 3's global ones.

    Raises: BaseModelError.
    """
    tensors = {tensor.name: np.array(tensor.data) for tensor in reader.tensors if "rope_" in tensor.name}
    kind = _value(reader, "rope.scaling.type") or "none"
    found: dict[str, Any] = {"rope_type": "default", "rope_theta": _value(reader, "rope.freq_base") or 1e4}
    original = _value(reader, "rope.scaling.original_context_length")
    if "rope_freqs.weight" in tensors:
        found |= _llama3(config, found["rope_theta"], tensors["rope_freqs.weight"])
    elif "rope_factors_long.weight" in tensors:
        config.original_max_position_embeddings = original
        found |= {
            "rope_type": "longrope",
            "long_factor": tensors["rope_factors_long.weight"].tolist(),
            "short_factor": tensors["rope_factors_short.weight"].tolist(),
            "attention_factor": _value(reader, "rope.scaling.attn_factor"),
            "original_max_position_embeddings": original,
        }
    elif kind in ("linear", "yarn"):
        found |= {"rope_type": kind, "factor": _value(reader, "rope.scaling.factor")}
        if original is not None:
            found["original_max_position_embeddings"] = original
    elif kind != "none":
        raise BaseModelError(f"scales RoPE by {kind!r}, which cannot be read here")
    return found


def _llama3(config: Any, theta: float, divisors: Any) -> dict[str, Any]:
    """Return Llama 3's scaling. divisors: of each frequency, (head size / 2,). Raises: BaseModelError."""
    factor = float(divisors.max())
    waves = 2 * np.pi * theta ** (np.arange(len(divisors)) / len(divisors))
    between = (divisors > 1.001) & (divisors < 0.999 * factor)
    original = ORIGINAL
    if between.any():
        smooth = (1 / divisors[between] - 1 / factor) / (1 - 1 / factor)
        original = round(float(np.median(waves[between] * (LOW + smooth * (HIGH - LOW)))))
    found = {
        "rope_type": "llama3", "rope_theta": theta, "factor": factor, "low_freq_factor": LOW,
        "high_freq_factor": HIGH, "original_max_position_embeddings": original,
    }  # fmt: skip
    shape = type(config)(
        hidden_size=config.hidden_size,
        num_attention_heads=config.num_attention_heads,
        head_dim=2 * len(divisors),
        rope_parameters=found,
    )
    meant = 2 * np.pi / waves / LlamaRotaryEmbedding(shape).inv_freq.numpy()
    if not np.allclose(meant, divisors, rtol=1e-3):
        raise BaseModelError("scales RoPE's frequencies otherwise than Llama 3 does")
    return found


def _require_tokens(config: Any, tokenizer: Any, reader: GGUFReader) -> None:
    """Raises: BaseModelError if texts would be cut into other tokens than the model's."""
    if config.model_type == "phi3" and _value(reader, "tokenizer.ggml.model", own=False) == "llama":
        raise BaseModelError("has control tokens that take the blanks behind them, which a GGUF does not say")
    kinds = _value(reader, "tokenizer.ggml.token_type", own=False) or []
    marks = [id_ for id_, kind in enumerate(kinds) if kind == CONTROL]
    texts = tokenizer.convert_ids_to_tokens(marks)
    read = tokenizer([f"a{text}b" for text in texts], add_special_tokens=False)["input_ids"] if texts else []
    if cut := [text for text, id_, ids in zip(texts, marks, read, strict=True) if id_ not in ids]:
        raise BaseModelError(
            f"has {len(cut)} control tokens that transformers reads as text, such as {cut[0]!r}"
        )


def _value(reader: GGUFReader, key: str, own: bool = True) -> Any:
    """Return the value of a key, None if there is none. own: it begins with the architecture."""
    if own:
        key = f"{_value(reader, 'general.architecture', own=False)}.{key}"
    field = reader.get_field(key)
    return None if field is None else field.contents()


@contextlib.contextmanager
def read_once() -> Iterator[None]:
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
