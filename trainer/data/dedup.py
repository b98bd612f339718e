"""Drop near-duplicates before any split: MinHash LSH proposes pairs, exact Jaccard similarity decides.

Rows are compared by the word 5-grams of the whole conversation (see `grams`). They are visited in the order
of their hashes, and a row is dropped if it is close enough to a kept one. So the result does not depend on
the order of the input. A kept row takes over the group labels of the rows dropped for it, so that rows that
shared text with them stay on its side of the split.

One template can produce thousands of rows that are almost near-duplicates, and comparing all pairs would take
hours. So a kept row with CROWD similar rows among those kept before it is not indexed. This bounds the cost
of a row; a near-duplicate of just that row may remain.
"""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from rensa import RMinHash, RMinHashLSH

from trainer.data.clean import Cleaned
from trainer.data.conversation import Conversation
from trainer.data.grams import Hashes, grams, word_hashes

GRAM = 5
PERMUTATIONS = 120  # its many divisors leave a choice of bands
RECALL = 0.99
CROWD = 100  # real sources at 0.8: 23 at most (docs/log.md)
_CACHED_ROWS = 20_000


def drop_near_duplicates(
    cleaned: Cleaned, threshold: float, held_out: Sequence[Conversation] = (), only_of_those: bool = False
) -> None:
    """Drop rows whose Jaccard similarity to a kept row is `threshold` or more, counted by reason.

    held_out: rows of other sides, all of which stay. only_of_those: keep rows that resemble just each other.
    """
    rows, first = [*held_out, *cleaned.conversations], len(held_out)
    stands_for = near_duplicates(rows, threshold, first)
    if only_of_those:
        stands_for = {dropped: kept for dropped, kept in stands_for.items() if kept < first}
    for dropped, kept in stands_for.items():
        if kept < first:
            cleaned.drop("near duplicate of a held-out row", rows[dropped].where)
        else:
            cleaned.drop("near duplicate", rows[dropped].where)
            rows[kept] = rows[kept].with_groups(rows[dropped].groups)
    cleaned.conversations = [row for i, row in enumerate(rows) if i >= first and i not in stands_for]


def near_duplicates(rows: Sequence[Conversation], threshold: float, first: int = 0) -> dict[int, int]:
    """Return the index of each row to drop → the index of the kept row that it duplicates.

    first: this many rows are kept whatever they resemble, and looked up before others.
    """
    index = RMinHashLSH(threshold, PERMUTATIONS, bands(threshold))
    grams_of = lru_cache(_CACHED_ROWS)(lambda i: conversation_grams(rows[i]))
    sizes: dict[int, int] = {}
    stands_for: dict[int, int] = {}
    visited = [*range(first), *sorted(range(first, len(rows)), key=lambda i: rows[i].row_id)]
    for place, i in enumerate(visited):
        own = grams_of(i)
        if not len(own):
            continue
        sketch = RMinHash(PERMUTATIONS, 1)
        sketch.update(own.view("V8").tolist())
        proposed = sorted(index.query(sketch))[:CROWD]
        near = (visited[p] for p in proposed if _sizes_allow(len(own), sizes[p], threshold))
        kept = next((k for k in near if i >= first and jaccard(own, grams_of(k)) >= threshold), None)
        if kept is not None:
            stands_for[i] = kept
        elif len(proposed) < CROWD:
            index.insert(place, sketch)
            sizes[place] = len(own)
    return stands_for


def conversation_grams(row: Conversation) -> Hashes:
    """Return the hashes of a conversation's 5-grams. Fewer than five words are one n-gram."""
    words = word_hashes(row.text)
    return grams(words, max(1, min(GRAM, len(words))))


def jaccard(a: Hashes, b: Hashes) -> float:
    """Return the Jaccard similarity of two ascending arrays of distinct hashes."""
    shared = len(np.intersect1d(a, b, assume_unique=True))
    return shared / (len(a) + len(b) - shared)


def bands(threshold: float) -> int:
    """Return the fewest bands that propose a pair at the threshold with probability RECALL or more.

    A band of r rows agrees with probability s**r at similarity s (Leskovec et al., Mining of Massive
    Datasets, 3.4.2).
    """
    for count in range(1, PERMUTATIONS + 1):
        rows = PERMUTATIONS // count
        if PERMUTATIONS % count == 0 and 1 - (1 - threshold**rows) ** count >= RECALL:
            return count
    return PERMUTATIONS


def _sizes_allow(a: int, b: int, threshold: float) -> bool:
    """Return False if the sizes alone keep the similarity under the threshold."""
    return min(a, b) >= threshold * max(a, b)
