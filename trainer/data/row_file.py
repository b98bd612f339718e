"""Write the tokenised rows of a split to disk as they are made, so that memory does not grow with the data.

Only the counts for the report stay in memory. Rows keep the order in which they were added.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
from pyarrow import compute

from trainer.data.tokenize import IGNORED, TokenRow

COLUMNS = [
    ("input_ids", pa.list_(pa.int64())),
    ("labels", pa.list_(pa.int64())),
    ("question", pa.string()),
    ("source", pa.string()),
    ("turns", pa.list_(pa.int32())),
]
EARLIER = ("earlier", pa.list_(pa.struct({"role": pa.string(), "content": pa.string()})))
TOP_COLUMNS = [
    ("top_ids", pa.list_(pa.list_(pa.int32()))),
    ("top_logprobs", pa.list_(pa.list_(pa.float32()))),
]


class RowFile:
    """One split while it is written. lengths: tokens of each row. sources: source → rows.

    with_top: whether its rows may follow probabilities of most likely tokens. with_earlier: whether it keeps
    the turns before the last question, for people to read.
    """

    def __init__(self, path: Path, with_top: bool = False, with_earlier: bool = False) -> None:
        self.path = path
        columns = [*COLUMNS, *(TOP_COLUMNS if with_top else []), *([EARLIER] if with_earlier else [])]
        self._schema = pa.schema(columns)
        self.lengths: list[int] = []
        self.target_tokens = 0
        self.sources: Counter[str] = Counter()
        self._writer = pa.ipc.new_stream(str(path), self._schema)

    def __len__(self) -> int:
        return len(self.lengths)

    def add(self, rows: Sequence[TokenRow]) -> None:
        columns = {name: [_value(row, name) for row in rows] for name in self._schema.names}
        self._writer.write_batch(pa.record_batch(columns, schema=self._schema))
        self.lengths.extend(len(row.input_ids) for row in rows)
        self.target_tokens += sum(len(row.labels) - row.labels.count(IGNORED) for row in rows)
        self.sources.update(row.source for row in rows)

    def close(self) -> None:
        """Finish the file. Its rows can then be read from `path`."""
        self._writer.close()


def _value(row: TokenRow, column: str) -> Any:
    value = getattr(row, column)
    return [[]] * len(row.input_ids) if value is None and column.startswith("top_") else value


def rows_fingerprint(files: Mapping[str, RowFile]) -> str:
    """Return what `identity.fingerprint` gives for {split: [[input_ids, labels], ...]}, a batch at a time.

    Where rows follow probabilities, these are part of it.
    """
    digest = hashlib.sha256(b"[{")
    for i, (name, file) in enumerate(sorted(files.items())):
        digest.update(f"{', ' if i else ''}{json.dumps(name)}: [".encode())
        first = True
        with pa.ipc.open_stream(str(file.path)) as batches:
            for batch in batches:
                if len(batch):
                    ids, labels = _joined(batch["input_ids"]), _joined(batch["labels"])
                    rows = ", ".join(f"[[{i}], [{own}]]" for i, own in zip(ids, labels, strict=True))
                    digest.update(("" if first else ", ").encode() + rows.encode())
                    for name, _ in TOP_COLUMNS:
                        if name in batch.schema.names:
                            digest.update(json.dumps(batch[name].to_pylist()).encode())
                    first = False
        digest.update(b"]")
    digest.update(b"}]")
    return digest.hexdigest()


def _joined(lists: Any) -> list[str]:
    """Return (rows,): the numbers of each list as JSON writes them between brackets."""
    numbers = lists.cast(pa.list_(pa.string()))
    return list(compute.binary_join(numbers, ", ").to_pylist())
