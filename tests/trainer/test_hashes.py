"""Large files are hashed once, and again when they may have changed. Reads are counted."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from tests.support.trainer import model_of
from trainer import hashes, identity, preflight
from trainer.base_model import fetch, local
from trainer.config_file import load
from trainer.files import sha256_file
from trainer.hashes import keep_in, known_sha256
from trainer.ship.gguf_file import write_gguf


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """The names of files, as often as they are read for a hash. Every file counts as large and settled."""
    counted: Counter[str] = Counter()

    def read(path: Path) -> str:
        counted[path.name] += 1
        return sha256_file(path)

    monkeypatch.setattr(hashes, "sha256_file", read)
    monkeypatch.setattr(hashes, "REMEMBERED_BYTES", 0)
    monkeypatch.setattr(hashes, "SETTLED_NS", -(10**18))
    monkeypatch.setattr(hashes, "_known", {})
    monkeypatch.setattr(hashes, "_records", [])
    return counted


def test_a_gguf_and_the_data_are_read_once_by_all_that_need_their_hashes(
    tmp_path: Path,
    config_file: Path,
    chatml_tokenizer: Any,
    reads: Counter[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, artifacts = tmp_path / "model", tmp_path / "artifacts"
    model_of(chatml_tokenizer).save_pretrained(model)
    chatml_tokenizer.save_pretrained(model)
    gguf = tmp_path / "tiny.gguf"
    write_gguf(model, "f16", "n", "l", gguf)
    config = load(config_file, [f"base.path={gguf}"])
    artifacts.mkdir()
    for _ in range(2):  # two processes
        monkeypatch.setattr(hashes, "_known", {})
        keep_in(artifacts)
        preflight.check(config)
        base = fetch(config.base, artifacts)
        assert local(config.base, artifacts) == base
        identity.config_hash(config)
        identity.data_key(config, base.sha256)
    assert {reads[name] for name in ("tiny.gguf", "model.safetensors", "tokenizer.json", "rows.jsonl")} == {1}


def test_a_changed_file_is_read_again_even_if_its_size_and_time_are_the_same(
    tmp_path: Path, reads: Counter[str]
) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    before, status = known_sha256(file), file.stat()
    file.write_bytes(b"two")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert known_sha256(file) == sha256_file(file) != before
    other = tmp_path / "b"
    other.write_bytes(b"six")
    other.replace(file)
    assert known_sha256(file) == sha256_file(file)
    assert known_sha256(file) == sha256_file(file) and sum(reads.values()) == 3


@pytest.mark.parametrize(("limit", "value"), [("SETTLED_NS", 10**18), ("REMEMBERED_BYTES", 4)])
def test_a_file_that_may_still_change_unseen_or_is_small_is_read_each_time(
    tmp_path: Path, reads: Counter[str], monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(hashes, limit, value)
    file = tmp_path / "a"
    file.write_bytes(b"one")
    keep_in(tmp_path)
    assert known_sha256(file) == known_sha256(file) and reads["a"] == 2
    assert not (tmp_path / hashes.RECORD).exists()


@pytest.mark.parametrize("record", ["{", "[]", '{"a": 1}'])
def test_a_broken_record_is_as_none(tmp_path: Path, reads: Counter[str], record: str) -> None:
    (tmp_path / hashes.RECORD).write_text(record)
    file = tmp_path / "a"
    file.write_bytes(b"one")
    keep_in(tmp_path)
    assert known_sha256(file) == sha256_file(file)
    assert json.loads((tmp_path / hashes.RECORD).read_text())


def test_a_record_entry_of_another_form_is_not_believed(tmp_path: Path, reads: Counter[str]) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"one")
    status = file.stat()
    for wrong in (1, [], [status.st_size], {"a": 1}, None):
        record = {f"{status.st_dev}:{status.st_ino}": wrong}
        (tmp_path / hashes.RECORD).write_text(json.dumps(record))
        keep_in(tmp_path)
        assert known_sha256(file) == sha256_file(file)
