"""What a GGUF says of a model, and what is read of it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.gguf_models import SHAPES, TEXTS, save_model
from trainer.errors import BaseModelError
from trainer.gguf_reading import read
from trainer.ship import gguf_families, gguf_file
from trainer.ship.gguf_file import write_gguf

UNKNOWN = ("granite", "smollm3")  # to transformers' reader
REFUSED = ("phi3",)


def written(directory: Path, shape: str, **more: Any) -> tuple[Path, Path]:
    """A model with weights in bf16, and its GGUF."""
    model = save_model(shape, directory / "m", torch.bfloat16, **more)
    write_gguf(model, "f32", "n", "l", directory / "x.gguf")
    return model, directory / "x.gguf"


@pytest.mark.parametrize("shape", [name for name in SHAPES if name not in (*UNKNOWN, *REFUSED)])
@torch.inference_mode()
def test_a_model_read_from_its_gguf_has_the_same_logits_and_tokens(tmp_path: Path, shape: str) -> None:
    directory, file = written(tmp_path, shape)
    wanted: Any = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    found, tokenizer, kinds = read(file)
    found.float().set_attn_implementation("eager")  # which knows Gemma's caps
    ids = torch.randint(3, 300, (2, 80), generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(found(input_ids=ids).logits, wanted(input_ids=ids).logits, atol=1e-4, rtol=0)
    own: Any = AutoTokenizer.from_pretrained(directory)
    for text in TEXTS:
        turns = [{"role": "user", "content": text}]
        assert tokenizer.apply_chat_template(turns) == own.apply_chat_template(turns)
    assert set(kinds) == {"F32"}


@pytest.mark.parametrize("shape", UNKNOWN)
def test_a_family_that_transformers_does_not_read_is_an_error(tmp_path: Path, shape: str) -> None:
    _, file = written(tmp_path, shape)
    with pytest.raises(ValueError, match=f"architecture {shape} is not supported"):
        read(file)


def test_blanks_that_control_tokens_take_are_not_in_a_gguf(tmp_path: Path) -> None:
    _, file = written(tmp_path, "phi3")
    with pytest.raises(BaseModelError, match="take the blanks behind them"):
        read(file)


def _odd_divisors(_: Any) -> Any:
    return np.array([1.0, 3.0, 1.0, 2.0, 5.0, 1.0, 8.0, 1.0, 1.0, 8.0, 2.0, 1.0], np.float32)


def _dynamic(writer: gguf.GGUFWriter, config: Any, rope: dict[str, Any]) -> None:
    writer.add_string(f"{writer.arch}.rope.scaling.type", "dynamic")


def _doubled(inner: Callable[..., Any]) -> Callable[..., Any]:
    """Every tensor of `_tensors`, and one that no model has a place for."""

    def tensors(*args: Any) -> Any:
        yield from inner(*args)
        yield "blk.0.attn_sinks.weight", np.zeros(4, np.float32)

    return tensors


def test_what_cannot_be_read_right_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(gguf_file, "rope_divisors", _odd_divisors)
        _, file = written(tmp_path / "a", "llama3")
        with pytest.raises(BaseModelError, match="otherwise than Llama 3"):
            read(file)
    with monkeypatch.context() as patched:
        patched.setattr(gguf_families, "_add_scaling", _dynamic)
        _, file = written(tmp_path / "b", "qwen2")
        with pytest.raises(BaseModelError, match="scales RoPE by 'dynamic'"):
            read(file)
    with monkeypatch.context() as patched:
        patched.setattr(gguf_file, "_tensors", _doubled(gguf_file._tensors))
        _, file = written(tmp_path / "c", "qwen2")
        with pytest.raises(
            BaseModelError, match=r"holds [\d,]+ weights, and transformers reads [\d,]+ as a qwen2"
        ):
            read(file)
