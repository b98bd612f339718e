"""Turn texts into hashed word n-grams, which measure how much two texts share.

Words are lower-cased runs of letters and digits. Punctuation and layout do not count; numbers do, because the
same question with other numbers is another question. (With one word for all numbers, `log2` equalled `log10`
and IPv4 equalled IPv6.)

Chinese, Japanese, Thai, Lao, Khmer and Burmese put no spaces between words, and finding the words takes a
dictionary for each (Unicode UAX #29). So every letter there is a word of its own. Where the length of a
stretch matters, a letter weighs less: two Chinese characters are a word, and three letters of the others. In
the translations of Django 5.2 and Sphinx 9.0 an English word is 1.4 to 1.7 Chinese characters, 2.8 Japanese
letters, 3.3 Thai, 2.9 Khmer and 2.3 Burmese ones, without vowel signs.
"""

import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]
# The weights of a word, a Chinese character and a letter of another script without spaces.
WORD, HAN, LETTER = 6, 3, 2

_HAN = ((0x3005, 0x3007), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFD))
_KANA = ((0x3041, 0x3096), (0x309D, 0x309F), (0x30A1, 0x30FA), (0x30FC, 0x30FF), (0x31F0, 0x31FF))
# Thai, Lao, Burmese, Khmer and Burmese's extensions; their vowel signs, digits and marks are no letters.
_BLOCKS = ((0x0E00, 0x0EFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0xA9E0, 0xA9FF), (0xAA60, 0xAA7F))


def _others() -> Iterator[tuple[int, int]]:
    yield from _KANA
    yield (0xFF66, 0xFF9D)  # half-width kana
    yield from ((i, i) for first, last in _BLOCKS for i in range(first, last + 1) if chr(i).isalpha())


def _weights() -> NDArray[np.uint8]:
    """Return the weight of every code point, 0 for those of scripts with spaces."""
    table = np.zeros(0x110000, np.uint8)
    for ranges, weight in ((_HAN, HAN), (_others(), LETTER)):
        for first, last in ranges:
            table[first : last + 1] = weight
    return table


_WEIGHT_OF = _weights()
_UNSPACED = "".join(f"{chr(first)}-{chr(last)}" for first, last in (*_HAN, *_others()))
_LETTER = re.compile(f"[{_UNSPACED}]")
_WORD = re.compile(rf"[^\W_{_UNSPACED}]+")
_ASCII = bytes(i if chr(i).isalnum() and i < 128 else ord(" ") for i in range(256))
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


@dataclass(frozen=True, slots=True)
class Words:
    """hashes: (words,) in order, the same in every process. weights: (words,), or None if all are WORD."""

    hashes: Hashes
    weights: NDArray[np.int64] | None = None


def word_hashes(text: str) -> Hashes:
    """Return (words,): the hash of each word, in order, the same in every process."""
    return words_of(text).hashes


def words_of(text: str) -> Words:
    """Return the words of a text with their weights."""
    lower = text.lower()
    if lower.isascii():  # the same words, three times as fast
        return Words(_hashed(lower.encode().translate(_ASCII).split()))
    if not _LETTER.search(lower):
        return Words(_hashed([word.encode() for word in _WORD.findall(lower)]))
    codes = np.frombuffer(lower.encode("utf-32-le", "surrogatepass"), np.uint32)
    letters = np.flatnonzero(_WEIGHT_OF[codes])
    found = list(_WORD.finditer(lower))
    order = np.argsort(np.concatenate([letters, np.array([match.start() for match in found], np.int64)]))
    hashes = np.concatenate([codes[letters], _hashed([match[0].encode() for match in found])])
    weights = np.concatenate([_WEIGHT_OF[codes[letters]], np.full(len(found), WORD, np.uint8)])
    return Words(hashes[order].astype(np.uint64), weights[order].astype(np.int64))


def grams(words: Hashes, size: int) -> Hashes:
    """Return (distinct n-grams,): the ascending hashes of every `size` consecutive words, none if fewer."""
    starts = max(0, len(words) - size + 1)
    return np.unique(_combined(words[i : i + starts] for i in range(size if starts else 0)))


def stretches(words: Words, size: int) -> Hashes:
    """Return `grams` in which a stretch with letters is so long that it weighs `size` words or more."""
    if words.weights is None:
        return grams(words.hashes, size)
    count = len(words.hashes)
    ends = np.concatenate([[0], np.cumsum(words.weights)])
    lengths = np.searchsorted(ends, ends[:-1] + size * WORD) - np.arange(count)
    lengths[np.arange(count) + lengths > count] = 0  # what is left weighs less
    parts = [np.empty(0, np.uint64)]
    for length in np.unique(lengths[lengths > 0]):
        starts = np.flatnonzero(lengths == length)
        parts.append(_combined(words.hashes[starts + i] for i in range(length)))
    return np.unique(np.concatenate(parts))


def _hashed(words: list[bytes]) -> Hashes:
    return np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))


def _combined(columns: Iterable[Hashes]) -> Hashes:
    """Return the hashes of n-grams. columns: their first words, their second words, and so on."""
    hashes: Hashes | None = None
    for column in columns:  # a polynomial in _BASE modulo 2**64
        if hashes is None:
            hashes = column.copy()
        else:
            hashes *= _BASE
            hashes += column
    if hashes is None:
        return np.empty(0, np.uint64)
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    return hashes
