"""The parts of a GGUF file that no logit shows: tokenizer and rotary scaling."""

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.trainer import model_of
from trainer.errors import ArtifactError
from trainer.gguf_reading import read_once
from trainer.ship.gguf_file import write_gguf
from trainer.ship.gguf_tokenizer import pre_tokenizer_name

TEXTS = ("Hello, it's 123 a\n\n x 4567!", "<|im_start|>user\nhé 日本 <|im_end|>", " a 12345 'RE\r\n\t")
ROPE = {
    "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip


def saved(tokenizer: Any, directory: Path, **more: Any) -> Path:
    model_of(tokenizer, **more).save_pretrained(directory)
    tokenizer.save_pretrained(directory)
    return directory


def test_a_gguf_is_read_once_however_often_it_is_asked_for(
    tmp_path: Path, chatml_tokenizer: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_gguf(saved(chatml_tokenizer, tmp_path / "m"), "f16", "n", "l", tmp_path / "x.gguf")
    read: list[str] = []

    class Counted(gguf.GGUFReader):
        def __init__(self, path: Any, *more: Any) -> None:
            read.append(path)
            super().__init__(path, *more)

    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    with read_once():
        AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="x.gguf")
        AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    assert read == [str(tmp_path / "x.gguf")]
    assert gguf.GGUFReader is Counted


@pytest.mark.parametrize("shape", ["chatml_tokenizer", "llama3_tokenizer"])
def test_tokenizer_read_back_from_gguf_gives_the_same_ids_and_template(
    tmp_path: Path, request: pytest.FixtureRequest, shape: str
) -> None:
    tokenizer = request.getfixturevalue(shape)
    write_gguf(saved(tokenizer, tmp_path / "m"), "f16", "n", "l", tmp_path / "x.gguf")
    again = AutoTokenizer.from_pretrained(tmp_path, gguf_file="x.gguf")
    for text in TEXTS:
        plain = {"add_special_tokens": False}
        assert again(text, **plain)["input_ids"] == tokenizer(text, **plain)["input_ids"]
    assert again.chat_template == tokenizer.chat_template
    assert (again.bos_token, again.eos_token) == (tokenizer.bos_token, tokenizer.eos_token)


def test_gguf_says_whether_the_tokenizer_puts_a_bos_in_front(
    tmp_path: Path, chatml_tokenizer: Any, llama3_tokenizer: Any
) -> None:
    for wanted, tokenizer in ((False, chatml_tokenizer), (True, llama3_tokenizer)):
        file = tmp_path / f"{wanted}.gguf"
        write_gguf(saved(tokenizer, tmp_path / str(wanted)), "f16", "n", "l", file)
        field = gguf.GGUFReader(file).get_field("tokenizer.ggml.add_bos_token")
        assert field is not None and field.contents() is wanted


def test_llama_3_rope_scaling_is_in_the_gguf_as_divisors_of_the_plain_frequencies(
    tmp_path: Path, llama3_tokenizer: Any
) -> None:
    model = saved(llama3_tokenizer, tmp_path / "m", rope_parameters=ROPE)
    write_gguf(model, "f16", "n", "l", tmp_path / "x.gguf")
    (found,) = (t for t in gguf.GGUFReader(tmp_path / "x.gguf").tensors if t.name == "rope_freqs.weight")
    plain = 10000.0 ** (-np.arange(0, 16, 2) / 16)
    loaded: Any = AutoModelForCausalLM.from_pretrained(model)
    assert found.data.dtype == np.float32 and found.data.max() == ROPE["factor"]
    np.testing.assert_allclose(plain / found.data, loaded.model.rotary_emb.inv_freq.numpy(), rtol=1e-5)


def test_rope_scaling_that_gguf_cannot_say_is_refused(tmp_path: Path, chatml_tokenizer: Any) -> None:
    rope = {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 2.0}
    model = saved(chatml_tokenizer, tmp_path / "m", rope_parameters=rope)
    with pytest.raises(ArtifactError, match="'dynamic'"):
        write_gguf(model, "f16", "n", "l", tmp_path / "x.gguf")


def rules_of(*parts: Any) -> Any:
    inner = Tokenizer(models.BPE(vocab={"a": 0}, merges=[]))
    inner.pre_tokenizer = pre_tokenizers.Sequence(list(parts))
    return json.loads(inner.to_str())


def test_single_digits_before_gpt_2s_cut_are_called_smollm() -> None:
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert pre_tokenizer_name(rules_of(pre_tokenizers.Digits(True), byte_level)) == "smollm"


@pytest.mark.parametrize("part", [pre_tokenizers.Digits(False), pre_tokenizers.Whitespace()], ids=repr)
def test_cut_that_llama_cpp_has_no_name_for_is_refused(part: Any) -> None:
    with pytest.raises(ArtifactError, match="GGUF has no name for this tokenizer"):
        pre_tokenizer_name(rules_of(part, pre_tokenizers.ByteLevel(add_prefix_space=False)))
