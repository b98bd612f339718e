"""Rows out that share text with the evaluation files: any 13 words in a row with any of their strings.

Thirteen is the n-gram size of GPT-3's decontamination (Brown et al. 2020, appendix C). A string of fewer
words cannot give a row away, so short questions go unseen. All rows are checked, before the split: a row
of a benchmark may neither be trained on nor choose the winner of the sweep.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from trainer.data.clean import Cleaned
from trainer.data.grams import Hashes, grams, word_hashes
from trainer.data.sources import SUFFIXES, read_rows
from trainer.errors import DataError
from trainer.files import sha256_file

GRAM = 13


def drop_contaminated(cleaned: Cleaned, files: Sequence[Path]) -> None:
    """Drop, and count by file, rows that share a 13-gram with it. Raises: DataError naming a bad file."""
    known = [(file.name, file_grams(file)) for file in files]
    kept = []
    for row in cleaned.conversations:
        own = grams(word_hashes(row.text), GRAM)
        name = next((name for name, theirs in known if _share(own, theirs)), None)
        if name is None:
            kept.append(row)
        else:
            cleaned.drop(f"contaminated by {name}", row.where)
    cleaned.conversations = kept


def stamp(files: Sequence[Path]) -> list[str]:
    """The SHA-256 of each file. Raises: DataError naming a file that is not there or of another kind."""
    for file in files:
        if not file.is_file() or file.suffix not in SUFFIXES:
            raise DataError(f"data.contamination {file}: expected a file that ends in {', '.join(SUFFIXES)}")
    return [sha256_file(file) for file in files]


def file_grams(file: Path) -> Hashes:
    """Ascending distinct 13-gram hashes of all strings in a .json, .jsonl or .parquet file.

    Raises: DataError if a row is broken or nothing can be checked: a gap here would pass unseen.
    """
    found: list[Hashes] = []
    for row in read_rows(str(file)):
        if row.problem:
            raise DataError(f"data.contamination {file}: {row.where} is {row.problem}")
        found.extend(grams(word_hashes(text), GRAM) for text in _strings(row.value))
    if not sum(map(len, found)):
        raise DataError(f"data.contamination {file} holds no text of {GRAM} words: nothing to check against")
    return np.unique(np.concatenate(found))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _share(own: Hashes, theirs: Hashes) -> bool:
    """True if the two have a hash in common; theirs is ascending and not empty."""
    places = np.minimum(np.searchsorted(theirs, own), len(theirs) - 1)
    return bool(np.any(theirs[places] == own))
