"""Turn texts into hashed word n-grams, which measure how much two texts share.

Words are lower-cased runs of letters and digits. Punctuation and layout do not count; numbers do, because the
same question with other numbers is another question. (With one word for all numbers, `log2` equalled `log10`
and IPv4 equalled IPv6.) In scripts without spaces a word is a whole clause, so the comparison is coarser.
"""

import re
import zlib

import numpy as np
from numpy.typing import NDArray

Hashes = NDArray[np.uint64]

_WORD = re.compile(r"[^\W_]+")
_ASCII = bytes(i if chr(i).isalnum() and i < 128 else ord(" ") for i in range(256))
_BASE = np.uint64(0x9E3779B97F4A7C15)
_MIX = np.uint64(0xBF58476D1CE4E5B9)


def word_hashes(text: str) -> Hashes:
    """Return (words,): the hash of each word, in order, the same in every process."""
    lower = text.lower()
    if lower.isascii():  # the same words, three times as fast
        words = lower.encode().translate(_ASCII).split()
    else:
        words = [word.encode() for word in _WORD.findall(lower)]
    return np.fromiter(map(zlib.crc32, words), dtype=np.uint64, count=len(words))


def grams(words: Hashes, size: int) -> Hashes:
    """Return (distinct n-grams,): the ascending hashes of every `size` consecutive words, none if fewer."""
    count = len(words) - size + 1
    if count <= 0:
        return np.empty(0, dtype=np.uint64)
    hashes: Hashes = np.zeros(count, dtype=np.uint64)
    for i in range(size):  # a polynomial in _BASE modulo 2**64
        hashes *= _BASE
        hashes += words[i : i + count]
    hashes ^= hashes >> np.uint64(29)
    hashes *= _MIX
    hashes ^= hashes >> np.uint64(32)
    return np.unique(hashes)
