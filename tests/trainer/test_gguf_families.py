"""GGUF files of every family, against transformers in llama.cpp, which `pip install xllamacpp` brings.

test_gguf_reading.py reads them back, which needs no llama.cpp.
"""

import importlib.util
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from tests.support.gguf_models import SHAPES, TEXTS, apart_in_llama_cpp, save_model
from trainer.errors import ArtifactError
from trainer.ship.gguf_check import llama_cpp
from trainer.ship.gguf_families import family_of
from trainer.ship.gguf_file import write_gguf
from trainer.ship.gguf_tokenizer import name_for

needs_llama_cpp = pytest.mark.skipif(
    importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp, which is llama.cpp, is not installed"
)
# llama.cpp's GELU looks its values up in a table in float16.
EXACT = {"gemma2": 5e-3, "gemma3": 5e-3}


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_computes_what_transformers_computes(tmp_path: Path, name: str) -> None:
    model = save_model(name, tmp_path / "m")
    write_gguf(model, "f32", "n", "l", tmp_path / "x.gguf")
    assert apart_in_llama_cpp(model, tmp_path / "x.gguf") <= EXACT.get(name, 5e-5)


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", ["qwen2", "gemma3", "phi3"])
@pytest.mark.parametrize(("matrices", "bound"), [("f16", 0.05), ("q8_0", 0.8)])
def test_llama_cpp_computes_nearly_the_same_from_rounded_weights(
    tmp_path: Path, name: str, matrices: Any, bound: float
) -> None:
    model = save_model(name, tmp_path / "m")
    write_gguf(model, matrices, "n", "l", tmp_path / "x.gguf")
    assert 1e-5 < apart_in_llama_cpp(model, tmp_path / "x.gguf") <= bound


@needs_llama_cpp
@pytest.mark.slow
def test_llama_cpp_loads_the_mix_q4_k_m(tmp_path: Path) -> None:
    wide = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 9, "initializer_range": 0.06}
    model = save_model("llama", tmp_path / "m", **wide)
    write_gguf(model, "q4_k_m", "n", "l", tmp_path / "x.gguf")
    kinds = {t.name: t.tensor_type.name for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors}
    assert kinds["output.weight"] == kinds["blk.0.ffn_down.weight"] == "Q6_K"
    assert kinds["blk.1.attn_v.weight"] == kinds["blk.0.attn_q.weight"] == "Q4_K"
    assert apart_in_llama_cpp(model, tmp_path / "x.gguf") <= 5.0


@needs_llama_cpp
@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_llama_cpp_reads_the_tokens_of_the_chat_template(tmp_path: Path, name: str) -> None:
    model = save_model(name, tmp_path / "m")
    write_gguf(model, "f16", "n", "l", tmp_path / "x.gguf")
    tokenizer: Any = AutoTokenizer.from_pretrained(model)
    with llama_cpp(tmp_path / "x.gguf") as runtime:
        for text in TEXTS:
            said = [text, "the dog", text]
            turns = [
                {"role": role, "content": c}
                for role, c in zip(("user", "assistant", "user"), said, strict=True)
            ]
            prompt = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
            assert runtime.tokenize(prompt) == tokenizer(prompt, add_special_tokens=False)["input_ids"]


@pytest.mark.parametrize("name", SHAPES)
def test_every_weight_of_a_family_has_a_place_in_its_gguf(tmp_path: Path, name: str) -> None:
    directory = save_model(name, tmp_path / "m")
    write_gguf(directory, "f32", "n", "l", tmp_path / "x.gguf")
    model: Any = AutoModelForCausalLM.from_pretrained(directory)
    wanted = sum(p.numel() for p in model.parameters())
    tensors = [t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if not t.name.startswith("rope_")]
    assert sum(int(np.prod(t.shape)) for t in tensors) == wanted
    assert len({t.name for t in tensors}) == len(list(model.parameters()))


UNKNOWN: list[tuple[str, dict[str, Any], str]] = [
    ("llama", {"hidden_act": "relu"}, "has the activation 'silu', and this model has 'relu'"),
    ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'"),
    ("smollm3", {"no_rope_layers": [1, 0, 1, 0, 1]}, "leaves RoPE out of each fourth layer only"),
    ("gemma2", {"query_pre_attn_scalar": 99}, "query_pre_attn_scalar is 99"),
    ("gemma3", {"layer_types": ["full_attention"] * 7}, "full attention in each layer of 6 only"),
]


@pytest.mark.parametrize(("name", "settings", "said"), UNKNOWN)
def test_what_llama_cpp_would_compute_otherwise_is_refused(
    tmp_path: Path, name: str, settings: dict[str, Any], said: str
) -> None:
    directory = save_model(name, tmp_path / "m", **settings)
    with pytest.raises(ArtifactError, match=said):
        write_gguf(directory, "f16", "n", "l", tmp_path / "x.gguf")


def test_an_architecture_that_gguf_does_not_know_here_is_named(tmp_path: Path) -> None:
    config = AutoConfig.for_model("olmo2")
    with pytest.raises(ArtifactError, match=r"knows llama, mistral, .*, and this model is of type 'olmo2'"):
        family_of(config)


def context_of(file: Path, arch: str) -> int:
    field = gguf.GGUFReader(file).get_field(f"{arch}.context_length")
    assert field is not None
    return int(field.contents())


def test_the_context_ends_where_llama_cpp_would_see_more_than_the_model(tmp_path: Path) -> None:
    windowed = save_model("mistral-tekken", tmp_path / "m", sliding_window=100)
    write_gguf(windowed, "f16", "n", "l", tmp_path / "w.gguf")
    assert context_of(tmp_path / "w.gguf", "llama") == 100
    longrope = save_model("phi4-mini", tmp_path / "p")
    write_gguf(longrope, "f16", "n", "l", tmp_path / "l.gguf")
    assert context_of(tmp_path / "l.gguf", "phi3") == 256


def test_a_name_of_phi_3_is_written_only_where_control_tokens_take_blanks_with_them(tmp_path: Path) -> None:
    for shape, name, wanted in (
        ("phi3", "mine", "mine (Phi-3)"), ("phi4-mini", "my-phi-3-tune", "my-Phi 3-tune"),
        ("llama", "mine", "mine"),
    ):  # fmt: skip
        tokenizer = AutoTokenizer.from_pretrained(save_model(shape, tmp_path / shape))
        assert name_for(tokenizer, name) == wanted
