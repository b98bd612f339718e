"""Write a model directory as one GGUF file, for llama.cpp and the programs that are built on it.

Weights are written one at a time, so memory holds one tensor. Vectors stay in float32; matrices become
float16, Q8_0, or the mix that llama.cpp calls Q4_K_M. An output that is tied to the embeddings is left out.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
from gguf import GGMLQuantizationType as Kind
from gguf import LlamaFileType
from safetensors import safe_open
from transformers import AutoConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from trainer.base_model import load_tokenizer
from trainer.errors import ArtifactError
from trainer.ship.gguf_families import Family, add_shape, family_of, head_size, rope_of
from trainer.ship.gguf_quants import quantize_k
from trainer.ship.gguf_tokenizer import add_tokenizer, name_for

Matrices = Literal["f32", "f16", "q8_0", "q4_k_m"]
_FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
}
_STORED = {Kind.F32: np.float32, Kind.F16: np.float16}
_K_BITS = {Kind.Q4_K: 4, Kind.Q6_K: 6}
# Where a row does not fill the blocks of a kind, llama.cpp takes the next one.
_NEXT = {Kind.Q4_K: Kind.Q5_0, Kind.Q6_K: Kind.Q8_0, Kind.Q5_0: Kind.F16, Kind.Q8_0: Kind.F16}


def write_gguf(model: Path, matrices: Matrices, name: str, licence: str, destination: Path) -> None:
    """Write `destination` from a Hugging Face model directory. Raises: ArtifactError."""
    config = AutoConfig.from_pretrained(model, local_files_only=True)
    family = family_of(config)
    tokenizer = load_tokenizer(model)
    writer = gguf.GGUFWriter(destination, gguf.MODEL_ARCH_NAMES[family.arch])
    writer.add_name(name_for(tokenizer, name))
    writer.add_license(licence)
    writer.add_file_type(_FILE_TYPES[matrices])
    writer.add_quantization_version(gguf.GGML_QUANT_VERSION)
    add_shape(writer, family, config)
    add_tokenizer(writer, tokenizer, config.vocab_size)
    kinds = {}
    for tensor, values in _tensors(model, family, config):
        kind = kinds[tensor] = _kind_of(tensor, values.shape, matrices, config)
        stored = np.dtype(_STORED.get(kind, np.uint8))
        shape = values.shape if kind in _STORED else gguf.quant_shape_to_byte_shape(values.shape, kind)
        writer.add_tensor_info(tensor, shape, stored, int(np.prod(shape)) * stored.itemsize, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor, values in _tensors(model, family, config):
        writer.write_tensor_data(_rounded(tensor, values, kinds[tensor]))
    writer.close()


def gguf_name(family: Family, config: Any, name: str) -> str:
    """Return the name of a tensor in GGUF. Raises: ArtifactError if llama.cpp has none for it."""
    names = gguf.get_tensor_name_map(family.arch, config.num_hidden_layers)
    found = names.get_name(name, try_suffixes=(".weight", ".bias"))
    if found is None:
        raise ArtifactError(f"llama.cpp has no tensor for {name} of a {config.model_type}")
    return str(found)


def arranged(family: Family, config: Any, name: str, values: Any) -> Any:
    """Return the rows of a projection in the order in which llama.cpp reads them.

    values: (heads * head_size, ...). Where a family is interleaved, llama.cpp has a rotary pair of q and k at
    2i and 2i + 1 of a head, and transformers at i and i + head_size / 2.
    """
    if not family.interleaved or name.split(".")[-2] not in ("q_proj", "k_proj"):
        return values
    halves = values.reshape(-1, 2, head_size(config) // 2, *values.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2)).reshape(values.shape)


def rope_divisors(config: Any) -> Any:
    """Return llama.cpp's divisor of each rotary frequency for Llama 3's scaling: (head_size / 2,) float32."""
    plain, _ = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    return (plain / LlamaRotaryEmbedding(config).inv_freq).float().numpy()


def _tensors(model: Path, family: Family, config: Any) -> Iterator[tuple[str, Any]]:
    """Yield the GGUF name and the float32 values of every tensor, always in the same order."""
    rope = rope_of(config)
    if rope["rope_type"] == "llama3":
        yield gguf.TENSOR_NAMES[gguf.MODEL_TENSOR.ROPE_FREQS] + ".weight", rope_divisors(config)
    for side in ("long", "short") if rope["rope_type"] == "longrope" else ():
        yield f"rope_factors_{side}.weight", np.array(rope[f"{side}_factor"], np.float32)
    for file in sorted(model.glob("*.safetensors")):
        with safe_open(file, "pt") as opened:
            for name in sorted(opened.keys()):
                if name == "lm_head.weight" and config.tie_word_embeddings:
                    continue
                values = opened.get_tensor(name).float().numpy()
                if name.endswith("norm.weight"):
                    values = values + np.float32(family.norm_offset)
                yield gguf_name(family, config, name), arranged(family, config, name, values)


def _kind_of(tensor: str, shape: tuple[int, ...], matrices: Matrices, config: Any) -> Kind:
    """Return how a tensor is stored. Vectors are in float32, as llama.cpp has them."""
    if len(shape) == 1 or matrices == "f32":
        return Kind.F32
    kind = {"f16": Kind.F16, "q8_0": Kind.Q8_0}.get(matrices) or _kind_in_mix(tensor, config)
    while kind not in _STORED and shape[-1] % gguf.GGML_QUANT_SIZES[kind][0]:
        kind = _NEXT[kind]
    return kind


def _kind_in_mix(tensor: str, config: Any) -> Kind:
    """Return the kind of a matrix in Q4_K_M: more bits for what rounding hurts most.

    That is the output, and the values and the last projection of half of the layers. Values that are one
    matrix with queries and keys get more bits everywhere.
    """
    output = "token_embd.weight" if config.tie_word_embeddings else "output.weight"
    if tensor == output or ".attn_qkv." in tensor:
        return Kind.Q6_K
    if ".attn_v." not in tensor and ".ffn_down." not in tensor:
        return Kind.Q4_K
    layer, layers = int(tensor.split(".")[1]), config.num_hidden_layers
    edge = layer < layers // 8 or layer >= 7 * layers // 8 or (layer - layers // 8) % 3 == 2
    return Kind.Q6_K if edge else Kind.Q4_K


def _rounded(tensor: str, values: Any, kind: Kind) -> Any:
    """Return the bytes of a tensor. Raises: ArtifactError if float16 cannot hold its values."""
    if kind in _K_BITS:
        return quantize_k(values, _K_BITS[kind])
    with np.errstate(over="ignore"):
        data = gguf.quantize(values, kind)
    if data.dtype == np.float16 and not np.isfinite(data).all():
        raise ArtifactError(f"{tensor} has values that float16 cannot hold")
    return data
