"""Stage `prepare`: the data source to tokenised rows on disk, with a report of what was dropped.

Out comes `artifacts/data/<key>/`: `train`, `validation`, `test` and `general` in Arrow
(`input_ids`, `labels`), and `report.json`. The key is a hash of all that made them, so a finished
data set is never made again.
"""

import dataclasses
import platform
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets import Dataset

from trainer.base_model import BaseModel, load_tokenizer
from trainer.config import DataConfig, RunConfig, fingerprint, is_local
from trainer.data.clean import Cleaned, clean
from trainer.data.contamination import drop_contaminated, stamp
from trainer.data.conversation import Conversation
from trainer.data.dedup import drop_near_duplicates
from trainer.data.general import answer_prompts
from trainer.data.sources import read_rows
from trainer.data.split import split
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow
from trainer.device import choose_device
from trainer.errors import DataError
from trainer.files import only_writer, read_json, sha256_file, whole_directory, write_json
from trainer.progress import say

SPLITS = ("train", "validation", "test", "general")


@dataclass(frozen=True, slots=True)
class Prepared:
    """directory: holds the splits. report: what report.json holds."""

    directory: Path
    report: dict[str, Any]

    @property
    def fingerprint(self) -> str:
        return str(self.report["fingerprint"])

    def dataset(self, split_name: str) -> Dataset:
        return Dataset.load_from_disk(str(self.directory / split_name))

    def rows(self, split_name: str) -> list[TokenRow]:
        return [TokenRow(**row) for row in self.dataset(split_name)]


def prepare(config: RunConfig, base: BaseModel, artifacts: Path) -> Prepared:
    """Return the prepared data, made now or found finished. Raises: DataError."""
    directory = data_directory(config, base, artifacts)
    report = read_json(directory / "report.json")
    if report is None:
        with only_writer(directory):
            report = read_json(directory / "report.json") or _make(config, base, directory)
    return Prepared(directory, report)


def data_directory(config: RunConfig, base: BaseModel, artifacts: Path) -> Path:
    key = fingerprint(config.data, config.seed, base.weights_sha256, _stamp(config.data))
    return artifacts / "data" / key[:16]


def _make(config: RunConfig, base: BaseModel, directory: Path) -> dict[str, Any]:
    data = config.data
    chat = ChatTokenizer(load_tokenizer(base.directory))
    cleaned = clean(read_rows(data.source), data.filters)
    if not cleaned.conversations:
        raise DataError(f"data.source {data.source} has no usable row: {cleaned.summary()}")
    if data.contamination:
        drop_contaminated(cleaned, data.contamination)
    if data.near_duplicates is not None:
        drop_near_duplicates(cleaned, data.near_duplicates)
    parts = split(cleaned.conversations, data.held_out_share, config.seed)
    rows = {
        "train": _tokenise(parts.train, chat, data.max_length, data.train_rows, cleaned),
        "validation": _tokenise(parts.validation, chat, data.max_length, data.validation_rows, cleaned),
        "test": _tokenise(parts.test, chat, data.max_length, data.test_rows, cleaned),
        "general": [],
    }
    if data.general:
        device = choose_device(config.train.device)
        extra, rows["general"] = answer_prompts(
            data.general, base, chat, config.train.dtype, device, config.seed
        )
        rows["train"] = [*rows["train"], *extra]
    say(f"  {', '.join(f'{len(r)} {name}' for name, r in rows.items())} rows; {cleaned.summary()}")
    report = _report(data, rows, cleaned)
    with whole_directory(directory) as scratch:
        for name, split_rows in rows.items():
            _dataset(split_rows).save_to_disk(str(scratch / name))
        write_json(scratch / "report.json", report)
    return report


def _tokenise(
    conversations: Iterable[Conversation],
    chat: ChatTokenizer,
    max_length: int,
    limit: int | None,
    cleaned: Cleaned,
) -> list[TokenRow]:
    """Rows that fit, up to `limit`; a row that does not fit whole is dropped, never cut."""
    rows: list[TokenRow] = []
    for conversation in conversations:
        if limit is not None and len(rows) == limit:
            break
        row = chat.row(conversation)
        if len(row.input_ids) > max_length:
            cleaned.drop(f"longer than {max_length} tokens", conversation.where)
        else:
            rows.append(row)
    if not rows:
        raise DataError(f"no row fits data.max_length {max_length}: raise it")
    return rows


def _dataset(rows: list[TokenRow]) -> Dataset:
    columns = [field.name for field in dataclasses.fields(TokenRow)]
    return Dataset.from_dict({name: [getattr(r, name) for r in rows] for name in columns})


def _report(data: DataConfig, rows: dict[str, list[TokenRow]], cleaned: Cleaned) -> dict[str, Any]:
    kept = Counter(c.source for c in cleaned.conversations)
    repaired, first_repaired = cleaned.repaired()
    return {
        "source": data.source,
        "fingerprint": fingerprint({n: [[r.input_ids, r.labels] for r in s] for n, s in rows.items()}),
        "rows": {name: len(split_rows) for name, split_rows in rows.items()},
        "target_tokens": {
            name: sum(label != IGNORED for r in split_rows for label in r.labels)
            for name, split_rows in rows.items()
        },
        "usable_rows_by_source": dict(kept.most_common()),
        "dropped": dict(cleaned.dropped.most_common()),
        "first_dropped": cleaned.first_places,
        "repaired": dict(repaired.most_common()),
        "first_repaired": first_repaired,
        "python_version": platform.python_version(),
    }


def _stamp(data: DataConfig) -> Any:
    """What tells one state of the source, and of the other files read, from another."""
    prompts = sha256_file(data.general.prompts) if data.general else None
    beside = [prompts, stamp(data.contamination)]
    if is_local(data.source):
        path = Path(data.source)
        files = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        return [beside, [[p.name, sha256_file(p)] for p in files if p.is_file()]]
    return [beside, platform.python_version() if data.source == "stdlib-docs" else None]
