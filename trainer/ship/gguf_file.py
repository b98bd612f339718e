"""Write a Llama model directory as one GGUF file, for llama.cpp and the programs that are built on it.

Weights are written one at a time, so memory holds one tensor. Vectors stay in float32; matrices become
float16 or Q8_0. The rotary halves of q and k are interleaved, as llama.cpp's Llama expects them. An output
that is tied to the embeddings is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trainer.base_model import load_tokenizer
from trainer.errors import ArtifactError
from trainer.ship.gguf_tokenizer import add_tokenizer

Matrices = Literal["f16", "q8_0"]
_TYPES = {
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "q8_0": (gguf.GGMLQuantizationType.Q8_0, gguf.LlamaFileType.MOSTLY_Q8_0),
}


def write_gguf(model: Path, matrices: Matrices, name: str, licence: str, destination: Path) -> None:
    """Write `destination` from a Hugging Face model directory. Raises: ArtifactError."""
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    require_llama(config)
    tokenizer = load_tokenizer(model)
    matrix_type, file_type = _TYPES[matrices]
    writer = gguf.GGUFWriter(destination, gguf.MODEL_ARCH_NAMES[gguf.MODEL_ARCH.LLAMA])
    writer.add_name(name)
    writer.add_license(licence)
    writer.add_file_type(file_type)
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    _add_shape(writer, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    for tensor_name, values in _tensors(model, config):
        kind = _type_of(values, matrix_type)
        shape = gguf.quant_shape_to_byte_shape(values.shape, kind) if _is_block(kind) else values.shape
        stored = np.dtype(np.uint8) if _is_block(kind) else np.dtype(_STORED[kind])
        writer.add_tensor_info(
            tensor_name, shape, stored, int(np.prod(shape)) * stored.itemsize, raw_dtype=kind
        )
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor_name, values in _tensors(model, config):
        data = gguf.quantize(values, _type_of(values, matrix_type))
        if data.dtype == np.float16 and not np.isfinite(data).all():
            raise ArtifactError(f"{tensor_name} has values that float16 cannot hold; export to fp8 instead")
        writer.write_tensor_data(data)
    writer.close()


_STORED = {gguf.GGMLQuantizationType.F32: np.float32, gguf.GGMLQuantizationType.F16: np.float16}


def _is_block(kind: gguf.GGMLQuantizationType) -> bool:
    return kind not in _STORED


def _type_of(values: Any, matrix_type: gguf.GGMLQuantizationType) -> gguf.GGMLQuantizationType:
    """Return float32 for vectors, float16 for matrices whose rows do not fill blocks, as llama.cpp does."""
    if values.ndim == 1:
        return gguf.GGMLQuantizationType.F32
    block_size, _ = gguf.GGML_QUANT_SIZES[matrix_type]
    return matrix_type if values.shape[-1] % block_size == 0 else gguf.GGMLQuantizationType.F16


def require_llama(config: Any) -> None:
    """Raise ArtifactError if GGUF's Llama cannot hold a model of this config.json."""
    if config.model_type != "llama":
        raise ArtifactError(f"GGUF export knows the Llama architecture, and this is {config.model_type!r}")
    kind = config.rope_parameters["rope_type"]
    if kind not in ("default", "llama3"):
        raise ArtifactError(f"GGUF export knows RoPE of type default and llama3, and this is {kind!r}")


def _head_size(config: Any) -> int:
    return int(getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads)


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(_head_size(config))
    writer.add_value_length(_head_size(config))
    writer.add_rope_dimension_count(_head_size(config))
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _tensors(model: Path, config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the GGUF name and the float32 values of every tensor, always in the same order."""
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    if config.rope_parameters["rope_type"] == "llama3":
        yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", rope_divisors(config)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                wanted = names.get_name(name, try_suffixes=(".weight", ".bias"))
                if wanted is None:
                    raise ArtifactError(f"GGUF's Llama has no tensor for {name}")
                yield wanted, _interleaved(name, opened.get_tensor(name).float().numpy(), config)


def _interleaved(name: str, values: Any, config: Any) -> Any:
    """Interleave the two rotary halves of each head of q and k; return other tensors unchanged.

    values: (heads * head_size, ...). llama.cpp has a pair at 2i and 2i + 1 of a head, Hugging Face at i and
    i + head_size / 2.
    """
    projection = name.split(".")[-2]
    if projection not in ("q_proj", "k_proj"):
        return values
    halves = values.reshape(-1, 2, _head_size(config) // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def rope_divisors(config: Any) -> Any:
    """Return llama.cpp's divisor of each rotary frequency for Llama 3's scaling: (head_size / 2,) float32."""
    plain, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return (plain / LlamaRotaryEmbedding(config).inv_freq).float().numpy()
