"""What a result is known by: content, never a place; and which results of other code are compared."""

import ast
import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from trainer import base_model, identity
from trainer.config import RunConfig
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.errors import BaseModelError, MissingError
from trainer.fit.arm import arms
from trainer.fit.run.train import train
from trainer.objective import sft
from trainer.pipeline import Pipeline
from trainer.ship.store import publish

ROOT = Path(__file__).parents[2]
Clone = Callable[[str], Path]


@pytest.fixture
def clone(tmp_path: Path, config_values: dict[str, Any], base_directory: Path) -> Clone:
    """Make a folder that holds a configuration, and all that it points at, by relative paths."""

    def make(name: str) -> Path:
        folder = tmp_path / name
        shutil.copytree(base_directory, folder / "base")
        (folder / "rows").mkdir()
        shutil.copy(config_values["data"]["source"], folder / "rows/a.jsonl")
        shutil.copy(config_values["data"]["general"]["prompts"], folder / "general.txt")
        (folder / "exam.jsonl").write_text(json.dumps({"q": " ".join(f"word{i}" for i in range(90, 110))}))
        (folder / "asked.txt").write_text("One?\n")
        (folder / "items.jsonl").write_text('{"question": "1 + 1?", "answer": "2"}\n')
        general = {**config_values["data"]["general"], "prompts": "general.txt"}
        benchmark = {"task": "gsm8k", "file": "items.jsonl", "max_drop": 0.1}
        values = {
            **config_values,
            "base": {**config_values["base"], "path": "base"},
            "data": config_values["data"]
            | {"source": "rows", "general": general, "contamination": ["exam.jsonl"]},
            "evaluate": config_values["evaluate"] | {"prompts": "asked.txt", "benchmarks": [benchmark]},
        }
        (folder / "config.yaml").write_text(yaml.safe_dump(values))
        return folder

    return make


def known_by(folder: Path) -> dict[str, str]:
    """The keys of everything that the configuration of a clone leads to."""
    config = load(folder / "config.yaml")
    base, _ = identity.base_hashes(folder / "base")
    run = identity.run_key(config, base, "rows", 2, 0.01, 7)
    merged = identity.fingerprint(run, config.ship_dtype)
    return {
        "base": base,
        "data": identity.data_key(config, base),
        "run": run,
        "evaluation": identity.evaluation_key(config, merged),
        "artifact": identity.artifact_id(config, base, "rows"),
        "config": identity.config_hash(config),
    }


def test_clones_in_different_folders_have_the_same_keys(clone: Clone) -> None:
    one, other = clone("one"), clone("far/away/other")
    assert known_by(one) == known_by(other)


EVERYTHING = {"base", "data", "run", "evaluation", "artifact", "config"}
OF_THE_DATA = {"data", "artifact", "config"}
OF_THE_EVALUATION = {"evaluation", "artifact", "config"}


@pytest.mark.parametrize(
    ("file", "changed"),
    [
        ("rows/a.jsonl", OF_THE_DATA),
        ("general.txt", OF_THE_DATA),
        ("exam.jsonl", OF_THE_DATA),
        ("asked.txt", OF_THE_EVALUATION),
        ("items.jsonl", OF_THE_EVALUATION),
        ("base/model.safetensors", EVERYTHING),
        ("base/config.json", EVERYTHING),
        ("base/generation_config.json", EVERYTHING),
        ("base/tokenizer.json", EVERYTHING),
        ("base/tokenizer_config.json", EVERYTHING),
        ("base/chat_template.jinja", EVERYTHING),
        ("base/LICENSE", set()),
        ("base/README.md", set()),
        ("base/base.json", set()),
        ("rows/notes.txt", set()),
    ],
)
def test_an_edited_file_changes_the_keys_of_what_it_decides_and_no_other(
    clone: Clone, file: str, changed: set[str]
) -> None:
    folder = clone("one")
    before = known_by(folder)
    path = folder / file
    path.write_bytes((path.read_bytes() if path.exists() else b"") + b"\n")
    after = known_by(folder)
    assert {name for name in before if before[name] != after[name]} == changed


def test_every_path_of_a_configuration_is_known_by_its_content(clone: Clone) -> None:
    folder = clone("one")
    known = json.dumps(identity.by_content(load(folder / "config.yaml"), ""))
    assert str(folder) not in known and "rows" not in json.loads(known)["data"]["source"]


def test_a_file_that_does_not_exist_is_named_by_its_setting(clone: Clone) -> None:
    folder = clone("one")
    (folder / "items.jsonl").unlink()
    config = load(folder / "config.yaml")
    with pytest.raises(MissingError, match=r"evaluate\.benchmarks\.file .*items\.jsonl does not exist"):
        identity.config_hash(config)


def test_learning_rates_that_print_alike_have_runs_of_their_own(clone: Clone) -> None:
    config = load(clone("one") / "config.yaml")
    keys = {identity.run_key(config, "base", "rows", 2, rate, 7) for rate in (1.0e-3, 1.0000001e-3)}
    assert len(keys) == 2


def test_a_moved_folder_costs_nothing(clone: Clone) -> None:
    before = clone("before")

    def prepared(folder: Path) -> Path:
        config = load(folder / "config.yaml")
        base = base_model.fetch(config.base, folder / "artifacts")
        return prepare(config, base, folder / "artifacts").directory / "train.arrow"

    made = prepared(before).stat().st_mtime_ns
    moved = before.rename(before.with_name("after"))
    assert prepared(moved).stat().st_mtime_ns == made
    assert len(list(moved.glob("artifacts/data/*/report.json"))) == 1


@pytest.mark.parametrize("template", ["chat_template.jinja", "tokenizer_config.json"])
def test_an_edited_chat_template_or_tokenizer_is_prepared_again(clone: Clone, template: str) -> None:
    folder = clone("one")
    config = load(folder / "config.yaml")

    def rows() -> str:
        base = base_model.fetch(config.base, folder / "artifacts")
        return prepare(config, base, folder / "artifacts").fingerprint

    before = rows()
    file = folder / "base" / template
    if template.endswith(".jinja"):
        file.write_text(file.read_text().replace("'\n'", "'\n\n'"))
    else:
        file.write_text(json.dumps({**json.loads(file.read_text()), "pad_token": "<|im_end|>"}))
    after = rows()
    assert len(list(folder.glob("artifacts/data/*/report.json"))) == 2
    assert template != "chat_template.jinja" or before != after


def test_a_base_with_pickled_weights_is_refused_with_the_command_that_writes_safetensors(
    clone: Clone,
) -> None:
    folder = clone("one")
    (folder / "base/model.safetensors").rename(folder / "base/pytorch_model.bin")
    with pytest.raises(BaseModelError, match=r"has pytorch_model\.bin, expected model\.safetensors"):
        base_model.fetch(load(folder / "config.yaml").base, folder / "artifacts")


def test_the_code_of_a_run_is_known_by_its_content_and_place_in_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made_by(name: str, edited: str | None) -> dict[str, str]:
        copy = tmp_path / name
        shutil.copytree(identity.ROOM, copy, ignore=shutil.ignore_patterns("__pycache__"))
        if edited:
            (copy / edited).write_text((copy / edited).read_text() + "\n# edited\n")
        monkeypatch.setattr(identity, "ROOM", copy)
        return identity.made_by.__wrapped__()

    here = made_by("here", None)
    assert set(here) >= {"torch", "transformers", "peft", "trl", "accelerate", identity.CODE}
    assert made_by("there", None) == here
    for number, file in enumerate(("cli.py", "pages/sweep.py", "judge/gates.py", "fit/choose/choice.py")):
        assert made_by(f"outside-{number}", file) == here
    for number, file in enumerate(("engines/plain.py", "fit/run/train.py", "data/clean.py", "config.py")):
        assert made_by(f"within-{number}", file) != here


def imports(module: str) -> Iterator[str]:
    """The trainer's modules that a module imports, anywhere in it."""
    file = ROOT / (module.replace(".", "/") + ".py")
    file = file if file.is_file() else ROOT / module.replace(".", "/") / "__init__.py"
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("trainer"):
            yield node.module
            for alias in node.names:
                name = f"{node.module}.{alias.name}".replace(".", "/")
                if (ROOT / f"{name}.py").is_file() or (ROOT / name).is_dir():
                    yield f"{node.module}.{alias.name}"
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name.startswith("trainer"))


def reached(*modules: str) -> set[Path]:
    """The files of all modules that these import, directly or not, below `trainer/`."""
    seen, waiting = set[str](), list(modules)
    while waiting:
        module = waiting.pop()
        if module not in seen:
            seen.add(module)
            waiting += imports(module)
    return {Path(f"{module.replace('.', '/')}.py").relative_to("trainer") for module in seen - {"trainer"}}


def test_no_run_imports_code_that_is_not_in_its_record() -> None:
    engines = [f"trainer.engines.{file.stem}" for file in (ROOT / "trainer/engines").glob("[a-z]*.py")]
    found = reached("trainer.fit.run.train", "trainer.data.stdlib_docs", *engines)
    assert not {f for f in found if any(f.is_relative_to(part) for part in identity.OUTSIDE_A_RUN)}
    judged = reached("trainer.pipeline")
    assert not judged & {Path("cli.py"), Path("config_file.py"), Path("preflight.py")}


# Runs of other code.


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return load(config_file)


def as_made_by(trl: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(identity, "made_by", lambda without=(): {"trl": trl, identity.CODE: "0" * 8})


def trained(config: RunConfig, artifacts: Path, steps: int, keep_older: bool = False) -> Any:
    base = base_model.fetch(config.base, artifacts)
    prepared = prepare(config, base, artifacts, keep_older=keep_older)
    return train(config, base, prepared, arms(config)[0], steps, artifacts, keep_older)


def test_runs_of_other_packages_are_made_again_and_one_line_says_so(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    as_made_by("1.2.0", monkeypatch)
    old = trained(config, tmp_path, 4)
    assert "made by" not in capsys.readouterr().out
    as_made_by("1.3.0", monkeypatch)
    new = trained(config, tmp_path, 4)
    lines = [line for line in capsys.readouterr().out.splitlines() if " made by " in line]
    assert lines == [
        f"  {subject} made by trl 1.2.0 (now 1.3.0): made again; --keep-older-runs would use what exists"
        for subject in ("this data was", f"{new.arm.name} was")
    ]
    assert new.adapter != old.adapter and old.adapter.is_dir()
    assert new.validation == old.validation

    assert trained(config, tmp_path, 4).adapter == new.adapter
    assert "made by" not in capsys.readouterr().out


def test_the_flag_takes_the_runs_that_other_packages_made(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    as_made_by("1.2.0", monkeypatch)
    old = trained(config, tmp_path, 4)
    as_made_by("1.3.0", monkeypatch)
    assert trained(config, tmp_path, 4, keep_older=True).adapter == old.adapter
    assert len(list(tmp_path.glob("data/*/report.json"))) == len(list(tmp_path.glob("runs/*"))) == 1


@pytest.mark.parametrize("other", [True, False])
def test_a_finished_artifact_that_other_packages_made_stays_and_one_line_says_so(
    config: RunConfig,
    base_directory: Path,
    manifest: dict[str, Any],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    other: bool,
) -> None:
    artifacts = tmp_path / "artifacts"
    base = base_model.fetch(config.base, artifacts)
    prepared = prepare(config, base, artifacts)
    name = identity.artifact_id(config, base.sha256, prepared.fingerprint)
    now = identity.made_by()
    manifest.update(id=name, packages={**now, "datasets": "1", **({"trl": "0.1"} if other else {})})
    merged, directory = tmp_path / "merged", artifacts / "models" / name
    shutil.copytree(base_directory, merged)
    publish(merged, directory, manifest, sft, [])
    before = {file: file.stat().st_mtime_ns for file in directory.iterdir()}
    Pipeline(config, artifacts, ["arm"]).run()
    lines = [line for line in capsys.readouterr().out.splitlines() if " made by " in line]
    line = f"  {name} was made by trl 0.1 (now {now['trl']}); remove {directory} to make it again"
    assert lines == ([line] if other else [])
    assert {file: file.stat().st_mtime_ns for file in directory.iterdir()} == before
    assert (artifacts / "models" / "current").resolve() == directory


@pytest.mark.parametrize(("keep_older", "resumed_from"), [(False, None), (True, "trunk-2")])
def test_a_run_resumes_what_other_packages_began_only_by_the_flag(
    config: RunConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    keep_older: bool,
    resumed_from: str | None,
) -> None:
    as_made_by("1.2.0", monkeypatch)
    trained(config, tmp_path, 3)
    as_made_by("1.3.0", monkeypatch)
    assert trained(config, tmp_path, 8, keep_older).record["resumed_from"] == resumed_from
