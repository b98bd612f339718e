"""Q4_K and Q6_K of our own, read back by the package `gguf`."""

from typing import Any

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from trainer.ship.gguf_quants import quantize_k

KINDS = {4: Kind.Q4_K, 6: Kind.Q6_K}


def error(values: Any, bits: int) -> float:
    """Return the error of the values read back, in units of their own size."""
    again = gguf.dequantize(quantize_k(values, bits), KINDS[bits])
    return float(np.sqrt(((again - values) ** 2).mean() / (values**2).mean()))


def weights(kind: str) -> Any:
    draw = np.random.default_rng(7)
    values = {
        "normal": draw.normal(size=(32, 768)) * 0.02,
        "positive": np.abs(draw.normal(size=(32, 768))),
        "outliers": draw.normal(size=(32, 768)) * 1e-3 + (draw.random((32, 768)) > 0.999),
    }[kind]
    return values.astype(np.float32)


@pytest.mark.parametrize("kind", ["normal", "positive"])
def test_four_bits_round_less_than_four_bits_without_offsets_and_six_bits_less_again(kind: str) -> None:
    values = weights(kind)
    plain = gguf.dequantize(gguf.quantize(values, Kind.Q4_0), Kind.Q4_0)
    with_32_scales = float(np.sqrt(((plain - values) ** 2).mean() / (values**2).mean()))
    assert error(values, 6) < error(values, 4) < with_32_scales


def test_normal_weights_round_as_well_as_their_bits_allow() -> None:
    values = weights("normal")
    assert error(values, 4) < 0.075  # ggml itself: 0.0715
    assert error(values, 6) < 0.0185


def test_one_large_weight_among_small_ones_costs_no_more_than_in_ggml() -> None:
    values = weights("outliers")
    assert error(values, 4) < 0.034  # ggml itself: 0.0326
    assert error(values, 6) < 0.0155  # and 0.0149


@pytest.mark.parametrize("bits", [4, 6])
def test_zeros_stay_zero(bits: int) -> None:
    assert not gguf.dequantize(quantize_k(np.zeros((3, 512), np.float32), bits), KINDS[bits]).any()


@pytest.mark.parametrize("bits", [4, 6])
def test_a_row_that_does_not_fill_a_block_is_an_error(bits: int) -> None:
    with pytest.raises(ValueError, match="blocks of 256"):
        quantize_k(np.zeros((2, 300), np.float32), bits)
