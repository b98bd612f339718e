"""Drop rows that share 13 consecutive words with any string of the evaluation files.

Thirteen is the n-gram size of GPT-3's decontamination (Brown et al. 2020, appendix C). In scripts without
spaces it is as many letters as say about as much: 26 in Chinese, 39 in Thai (see `grams`). Shorter strings
are not checked, so short questions are missed. All rows are checked before the split, because a row of a
benchmark must not be trained on and must not influence the choice of the winner.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.clean import Cleaned
from trainer.data.grams import Hashes, stretches, words_of
from trainer.data.sources import read_rows
from trainer.errors import DataError
from trainer.files import DATA_SUFFIXES, data_suffix

GRAM = 13


def drop_contaminated(cleaned: Cleaned, files: Sequence[Path]) -> None:
    """Drop rows that share a 13-gram with a file, counted by the first such file.

    Raises: DataError naming a file that cannot be checked.
    """
    each = [file_grams(file) for file in files]
    known, first = np.unique(np.concatenate(each), return_index=True)
    ends = np.cumsum([len(theirs) for theirs in each])
    kept = []
    for row in cleaned.conversations:
        own = stretches(words_of(row.text), GRAM)
        places = np.minimum(np.searchsorted(known, own), len(known) - 1)
        shared = places[known[places] == own]
        if len(shared):
            file = files[int(np.searchsorted(ends, first[shared].min(), side="right"))]
            cleaned.drop(f"contaminated by {file.name}", row.where)
        else:
            kept.append(row)
    cleaned.conversations = kept


def check_files(files: Sequence[Path]) -> None:
    """Check that every file can be read as data. Raises: DataError naming one that cannot."""
    for file in files:
        if not file.is_file() or not data_suffix(file):
            expected = ", ".join(DATA_SUFFIXES)
            raise DataError(f"data.contamination {file}: expected a file that ends in {expected}")


def file_grams(file: Path) -> Hashes:
    """Return the ascending distinct 13-gram hashes of all strings in a data file.

    Raises: DataError if a row is broken or nothing can be checked, because nobody would notice a gap.
    """
    found: list[Hashes] = []
    for row in read_rows(str(file)):
        if row.problem:
            raise DataError(f"data.contamination {file}: {row.where} is {row.problem}")
        found.extend(stretches(words_of(text), GRAM) for text in _strings(row.value))
    if not sum(map(len, found)):
        raise DataError(
            f"data.contamination {file} has no string of {GRAM} words, so there is nothing to check against"
        )
    return np.unique(np.concatenate(found))


def _strings(value: Any) -> Iterator[str]:
    waiting = [value]  # and no recursion, which ends at a depth that JSON may have
    while waiting:
        item = waiting.pop()
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict | list):
            waiting.extend(item.values() if isinstance(item, dict) else item)
