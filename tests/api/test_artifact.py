"""Contract 1, the reader's end: a directory that is not as its manifest says is never served."""

import errno
import json
import os
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from pydantic import ValidationError

from api.engine.artifact import TEMPLATE_DATE, Manifest, read_artifact
from api.errors import ArtifactError
from tests.support.api import MODEL, example_manifest

SCHEMA = json.loads((Path(__file__).parents[2] / "docs/artifact.schema.json").read_text())

OVERRIDE = "--ship-despite-failed-gates"
PASSED = {"name": "test loss", "passed": True, "detail": "better"}
FAILED = {"name": "benchmark ifeval", "passed": False, "detail": "-0.2"}


def evaluation(passed: bool, gates: Sequence[dict[str, Any]] = (PASSED,), **more: Any) -> dict[str, Any]:
    interval = {"value": 1.0, "low": 0.9, "high": 1.1}
    metric = {"name": "nll", "split": "test", "unit": "nats", "n": 1}
    metric |= dict.fromkeys(("base", "tuned", "difference"), interval)
    return {"passed": passed, "metrics": [metric], "gates": list(gates), **more}


def rewrite(artifacts: Path, **changes: Any) -> None:
    path = artifacts / "models/tiny-r8/manifest.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_good_artifact_is_read_and_verified(artifacts: Path) -> None:
    artifact = read_artifact(artifacts)
    artifact.verify()
    assert (artifact.name, artifact.manifest.id, artifact.max_positions) == (MODEL, "tiny-r8", 256)


def test_model_and_json_schema_accept_the_same_example(artifacts: Path) -> None:
    manifest = example_manifest(artifacts / "models/tiny-r8")
    jsonschema.validate(manifest, SCHEMA)
    Manifest.model_validate(manifest)


def test_a_model_of_full_fine_tuning_has_no_adapter_and_no_merge(artifacts: Path) -> None:
    check = example_manifest(artifacts / "models/tiny-r8")["merge_check"] | {"fp32": None}
    rewrite(artifacts, adapter=None, merge_check=check)
    manifest = json.loads((artifacts / "models/tiny-r8/manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    artifact = read_artifact(artifacts)
    assert artifact.manifest.adapter is None and artifact.manifest.merge_check.fp32 is None


def test_an_export_under_its_own_id_is_served_like_any_artifact(artifacts: Path) -> None:
    directory = (artifacts / "models/tiny-r8").rename(artifacts / "models/tiny-r8-fp8")
    entry = {"format": "fp8", "artifact": "tiny-r8", "artifact_manifest_sha256": "0" * 64, "method": "m"}
    manifest = example_manifest(directory) | {"export": entry}
    jsonschema.validate(manifest, SCHEMA)
    (directory / "manifest.json").write_text(json.dumps(manifest))
    (artifacts / "models/current").unlink()
    (artifacts / "models/current").symlink_to("tiny-r8-fp8")
    artifact = read_artifact(artifacts)
    artifact.verify()
    assert artifact.manifest.export == entry


def test_model_that_a_person_shipped_despite_a_failed_gate_is_served_and_named(artifacts: Path) -> None:
    overridden = evaluation(passed=False, gates=[PASSED, FAILED], override=OVERRIDE)
    rewrite(artifacts, evaluation=overridden)
    jsonschema.validate(example_manifest(artifacts / "models/tiny-r8") | {"evaluation": overridden}, SCHEMA)
    assert read_artifact(artifacts).failed_gates == [FAILED["name"]]


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in SCHEMA["required"] if name != "adapter"),
        {"schema_version": 2},
        {"unknown": 1},
        {"id": "../x"},
        {"config_hash": "0"},
        {"chat_template_date": ""},
        {"files": {}},
        {"description": ""},
        {"base_model": {"id": "b", "revision": "r", "weights_sha256": "0" * 64}},
        {"evaluation": {"passed": False, "metrics": [{}], "gates": []}},
        {"evaluation": evaluation(passed=False, gates=[FAILED])},
        {"evaluation": evaluation(passed=False, override=OVERRIDE)},
        {"evaluation": evaluation(passed=False, gates=[FAILED], override="--force")},
        {"evaluation": evaluation(passed=True, gates=[FAILED])},
        {"evaluation": evaluation(passed=True, override=OVERRIDE)},
    ],
    ids=str,
)
def test_model_and_json_schema_refuse_the_same_defects(artifacts: Path, change: dict[str, Any]) -> None:
    manifest = example_manifest(artifacts / "models/tiny-r8") | change
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(manifest, SCHEMA)
    with pytest.raises(ValidationError):
        Manifest.model_validate(manifest)


def test_an_artifact_that_states_no_date_was_made_with_the_first_one_and_is_served(artifacts: Path) -> None:
    assert "chat_template_date" not in example_manifest(artifacts / "models/tiny-r8")
    assert read_artifact(artifacts).manifest.chat_template_date == "26 Jul 2024"
    assert SCHEMA["properties"]["chat_template_date"]["default"] == "26 Jul 2024"
    rewrite(artifacts, chat_template_date=TEMPLATE_DATE)
    read_artifact(artifacts)


def test_an_artifact_that_was_trained_with_another_date_is_refused_in_one_sentence(artifacts: Path) -> None:
    rewrite(artifacts, chat_template_date="1 Jan 2025")
    expected = f"trained with the date '1 Jan 2025'.* renders '{TEMPLATE_DATE}'; make one with `make up`"
    with pytest.raises(ArtifactError, match=expected) as refused:
        read_artifact(artifacts)
    assert "\n" not in str(refused.value)


def remove_current(artifacts: Path) -> None:
    (artifacts / "models/current").unlink()


def dangle_current(artifacts: Path) -> None:
    remove_current(artifacts)
    (artifacts / "models/current").symlink_to("gone")


def point_current_outside(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8").rename(artifacts / "tiny-r8")
    remove_current(artifacts)
    (artifacts / "models/current").symlink_to("../tiny-r8")


def remove_manifest(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/manifest.json").unlink()


def garble_manifest(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/manifest.json").write_bytes(b"\xff{")


def drop_a_field(artifacts: Path) -> None:
    rewrite(artifacts, evaluation=None)


def rename_directory(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8").rename(artifacts / "models/other")
    remove_current(artifacts)
    (artifacts / "models/current").symlink_to("other")


def climb_out(artifacts: Path) -> None:
    record = {"sha256": "0" * 64, "bytes": 0}
    listed = example_manifest(artifacts / "models/tiny-r8")["files"]
    rewrite(artifacts, files=listed | {"../../secret": record})


def remove_a_file(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/tokenizer.json").unlink()


def change_a_byte(artifacts: Path) -> None:
    path = artifacts / "models/tiny-r8/README.md"
    path.write_bytes(path.read_bytes().swapcase())


def cut_a_file(artifacts: Path) -> None:
    path = artifacts / "models/tiny-r8/README.md"
    path.write_bytes(path.read_bytes()[:-1])


def link_a_file_out(artifacts: Path) -> None:
    path = artifacts / "models/tiny-r8/README.md"
    path.rename(artifacts / "README.md")
    path.symlink_to("../../README.md")


def plant_a_file(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/modeling_evil.py").write_text("import os")


def plant_a_linked_folder(artifacts: Path) -> None:
    """transformers reads further templates from a folder of this name."""
    outside = artifacts / "outside"
    outside.mkdir()
    (artifacts / "models/tiny-r8/additional_chat_templates").symlink_to(outside)


def list_a_file(artifacts: Path, name: str) -> None:
    listed = example_manifest(artifacts / "models/tiny-r8")["files"]
    rewrite(artifacts, files=listed | {name: {"sha256": "0" * 64, "bytes": 0}})


def link_a_file_to_itself(artifacts: Path) -> None:
    path = artifacts / "models/tiny-r8/README.md"
    path.unlink()
    path.symlink_to(path.name)


def nest_the_manifest_deeply(artifacts: Path) -> None:
    (artifacts / "models/tiny-r8/manifest.json").write_text("[" * 100_000)


def put_a_pipe_in_its_place(artifacts: Path) -> None:
    path = artifacts / "models/tiny-r8/config.json"
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (remove_current, "current is missing"),
        (dangle_current, "points to gone, which does not exist"),
        (point_current_outside, "must be a symbolic link to a directory next to it"),
        (remove_manifest, "manifest.json is missing"),
        (garble_manifest, "manifest.json cannot be read"),
        (drop_a_field, "evaluation"),
        (rename_directory, "expected the directory's name 'other'"),
        (climb_out, "'../../secret' is not a plain path"),
        (remove_a_file, "tokenizer.json is missing"),
        (change_a_byte, "README.md has SHA-256"),
        (cut_a_file, "README.md has 6 bytes, manifest.json says 7"),
        (link_a_file_out, "README.md is a symbolic link"),
        (plant_a_file, "modeling_evil.py is not listed"),
        (plant_a_linked_folder, "additional_chat_templates is not listed"),
        (partial(list_a_file, name="a\0b"), "embedded null byte"),
        (partial(list_a_file, name="a" * 300), "File name too long"),
        (link_a_file_to_itself, "Symlink loop"),
        (nest_the_manifest_deeply, "recursion depth"),
        (put_a_pipe_in_its_place, "config.json is missing"),
    ],
)
def test_damaged_artifact_is_refused_in_one_line_with_the_next_command(
    artifacts: Path, damage: Callable[[Path], None], says: str
) -> None:
    damage(artifacts)
    with pytest.raises(ArtifactError) as refusal:
        read_artifact(artifacts).verify()
    message = str(refusal.value)
    assert says in message
    assert "make up" in message
    assert "\n" not in message


def test_what_the_system_forbids_to_read_is_refused_in_one_line(
    artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The trainer and the API may run as different users, and root may read everything."""
    artifact = read_artifact(artifacts)

    def refuse(path: Path, *_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ArtifactError, match=r"Permission denied.*make up"):
        artifact.verify()
    with pytest.raises(ArtifactError, match="File name too long"):
        read_artifact(artifacts / ("a" * 300))
    monkeypatch.setattr(Path, "exists", refuse)
    with pytest.raises(ArtifactError, match=r"Permission denied.*make up"):
        read_artifact(artifacts)
