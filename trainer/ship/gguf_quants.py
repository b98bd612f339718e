"""Round matrices to llama.cpp's Q4_K and Q6_K, which the package `gguf` can only read.

A block has 256 weights. In Q4_K each 32 of them share a scale and an offset of 6 bits; in Q6_K each 16 share
a scale of 8 bits. Both have one float16 over all scales. The layout is ggml's; how the scales are found is a
least-squares search of our own, so files differ from llama.cpp's by rounding.
"""

from typing import Any

import numpy as np

BLOCK = 256
BLOCKS_AT_ONCE = 4096  # a megaweight: the search holds a dozen arrays of this size
_Q4_STEPS = np.linspace(-1.0, 1.0, 17, dtype=np.float32)
_Q6_STEPS = np.linspace(-0.9, 0.9, 19, dtype=np.float32)


def quantize_k(values: Any, bits: int) -> Any:
    """Return the bytes of a matrix in Q4_K or Q6_K: (rows, columns) float32 to (rows, bytes) uint8."""
    rows, columns = values.shape
    if columns % BLOCK:
        raise ValueError(f"a row of {columns} weights does not fill blocks of {BLOCK}")
    blocks = np.ascontiguousarray(values, np.float32).reshape(-1, BLOCK)
    write = {4: _q4_k, 6: _q6_k}[bits]
    parts = [write(blocks[i : i + BLOCKS_AT_ONCE]) for i in range(0, len(blocks), BLOCKS_AT_ONCE)]
    return np.concatenate(parts).reshape(rows, -1)


def _q4_k(blocks: Any) -> Any:
    """(n, 256) to (n, 144): d, dmin, eight pairs of 6 bits, and 4 bits a weight."""
    groups = blocks.reshape(-1, 8, 32)
    scales, offsets = _affine(groups)
    d, sixths = _six_bits(scales)
    dmin, minima = _six_bits(offsets)
    scale, offset = (d * sixths)[..., None], (dmin * minima)[..., None]
    levels = np.rint(_divided(groups + offset, scale)).clip(0, 15).astype(np.uint8)
    pairs = levels.reshape(-1, 4, 2, 32)
    packed = (pairs[:, :, 0] | pairs[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([_half(d), _half(dmin), _packed_scales(sixths, minima), packed], axis=1)


def _q6_k(blocks: Any) -> Any:
    """(n, 256) to (n, 210): the low 4 bits, the high 2 bits, sixteen scales of 8 bits, and d."""
    groups = blocks.reshape(-1, 16, 16)
    scales = _symmetric(groups)
    d = np.abs(scales).max(axis=1, keepdims=True) / 127
    d = d.astype(np.float16).astype(np.float32)
    eighths = np.rint(_divided(scales, d)).clip(-128, 127)
    levels = np.rint(_divided(groups, (d * eighths)[..., None])).clip(-32, 31).astype(np.int8) + 32
    parts = levels.astype(np.uint8).reshape(-1, 2, 4, 32)  # halves of a block, quarters of a half
    low, high = parts & 15, parts >> 4
    ql = np.concatenate([low[:, :, 0] | low[:, :, 2] << 4, low[:, :, 1] | low[:, :, 3] << 4], axis=2)
    qh = high[:, :, 0] | high[:, :, 1] << 2 | high[:, :, 2] << 4 | high[:, :, 3] << 6
    stored = eighths.astype(np.int8).view(np.uint8)
    return np.concatenate([ql.reshape(-1, 128), qh.reshape(-1, 64), stored, _half(d)], axis=1)


def _affine(groups: Any) -> tuple[Any, Any]:
    """Return scale and offset, both at least 0, with groups ~ scale * (0…15) - offset, of least error.

    A weight counts by its size, as the outputs of a layer feel it. Each step tries another first scale, and
    solves for scale and offset with the levels that it gives. groups: (n, 8, 32).
    """
    weight = np.sqrt((groups**2).mean(axis=-1, keepdims=True)) + np.abs(groups)
    low = np.minimum(groups.min(axis=-1, keepdims=True), 0)
    span = groups.max(axis=-1, keepdims=True) - low
    best = [np.full_like(low, np.inf), span / 15, -low]
    for step in _Q4_STEPS:
        levels = np.rint(_divided(groups - low, span / (15 + step))).clip(0, 15)
        scale, offset = _solved(groups, levels, weight)
        error = (weight * (scale * levels - offset - groups) ** 2).sum(axis=-1, keepdims=True)
        better = (error < best[0]) & (scale > 0)
        for kept, new in zip(best, (error, scale, offset), strict=True):
            np.copyto(kept, new, where=better)
    return best[1][..., 0], best[2][..., 0]


def _solved(groups: Any, levels: Any, weight: Any) -> tuple[Any, Any]:
    """Return the weighted least-squares scale, and an offset of at least 0, for given levels."""

    def total(values: Any) -> Any:
        return values.sum(axis=-1, keepdims=True)

    w, n, x = total(weight), total(weight * levels), total(weight * groups)
    nn, nx = total(weight * levels**2), total(weight * levels * groups)
    determinant = w * nn - n * n
    scale, offset = _divided(w * nx - n * x, determinant), _divided(n * nx - nn * x, determinant)
    positive = offset > 0
    return np.where(positive, scale, _divided(nx, nn)), np.where(positive, offset, 0)


def _symmetric(groups: Any) -> Any:
    """Return the scale with groups ~ scale * (-32…31) of least error. groups: (n, 16, 16)."""
    weight = groups**2
    largest = np.take_along_axis(groups, np.abs(groups).argmax(axis=-1)[..., None], axis=-1)
    found, gain = -largest / 32, np.full_like(largest, -1.0)
    for step in _Q6_STEPS:
        levels = np.rint(_divided(groups, -largest / (32 + step))).clip(-32, 31)
        lx = (weight * levels * groups).sum(axis=-1, keepdims=True)
        ll = (weight * levels**2).sum(axis=-1, keepdims=True)
        better = _divided(lx * lx, ll) > gain
        np.copyto(gain, _divided(lx * lx, ll), where=better)
        np.copyto(found, _divided(lx, ll), where=better)
    return found[..., 0]


def _six_bits(values: Any) -> tuple[Any, Any]:
    """Return a float16 a row, as float32, and the values in 63rds of it. values: (n, 8), at least 0."""
    d = (values.max(axis=1, keepdims=True) / 63).astype(np.float16).astype(np.float32)
    return d, np.rint(_divided(values, d)).clip(0, 63)


def _packed_scales(scales: Any, minima: Any) -> Any:
    """Pack eight scales and eight offsets of 6 bits into 12 bytes: (n, 8) twice to (n, 12)."""
    s, m = scales.astype(np.uint8), minima.astype(np.uint8)
    first = s[:, :4] | (s[:, 4:] >> 4) << 6
    second = m[:, :4] | (m[:, 4:] >> 4) << 6
    third = (s[:, 4:] & 15) | (m[:, 4:] & 15) << 4
    return np.concatenate([first, second, third], axis=1)


def _half(values: Any) -> Any:
    return values.astype(np.float16).view(np.uint8)


def _divided(one: Any, other: Any) -> Any:
    """Return one / other, and 0 where other is 0."""
    return np.divide(one, other, out=np.zeros(np.broadcast(one, other).shape, np.float32), where=other != 0)
