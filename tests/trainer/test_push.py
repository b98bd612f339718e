"""The upload itself is tested against a double of HfApi that records its calls: no network here."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from trainer.cli import main
from trainer.config_file import load
from trainer.identity import config_hash
from trainer.ship import push as push_module
from trainer.ship.export import entry_of
from trainer.ship.manifest import write_manifest
from trainer.ship.store import find

LLAMA = ("--set", "name=Llama-tiny", "--set", "base.licence=llama3.2")
Edit = Callable[[dict[str, Any]], None]


def edit_manifest(artifact: Path, edit: Edit) -> None:
    path = artifact / "manifest.json"
    manifest = json.loads(path.read_text())
    edit(manifest)
    path.write_text(json.dumps(manifest))


@pytest.fixture
def pushed(
    artifact: Path, config_file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[int, str, str]]:
    """Run `push` on the artifact, made to be of this configuration; exit code, output, errors."""
    config = load(config_file, LLAMA[1::2])
    edit_manifest(artifact, lambda m: m.update(config_hash=config_hash(config)))
    monkeypatch.setattr(push_module, "get_token", lambda: None)

    def run(*more: str, to: str = "me/Llama-tiny") -> tuple[int, str, str]:
        where = ("--config", str(config_file), "--artifacts", str(artifact.parents[1]))
        code = main(["push", *where, *LLAMA, "--to", to, *more])
        found = capsys.readouterr()
        return code, found.out, found.err

    return run


class HubDouble:
    """Records what `push` asks of HfApi. It proves the calls, not that the Hub takes them."""

    def __init__(self, public: bool = False, fails: bool = False) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self._public, self._fails = public, fails

    def create_repo(self, repo_id: str, **more: Any) -> str:
        self.calls.append(("create_repo", {"repo_id": repo_id, **more}))
        return f"hub/{repo_id}"

    def model_info(self, repo_id: str) -> SimpleNamespace:
        return SimpleNamespace(private=not self._public)

    def upload_folder(self, **more: Any) -> None:
        if self._fails:
            raise OSError("403 Forbidden\nno write access")
        self.calls.append(("upload_folder", more))


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, pushed: Any) -> Callable[..., HubDouble]:
    def use(**more: bool) -> HubDouble:
        double = HubDouble(**more)
        monkeypatch.setattr(push_module, "get_token", lambda: "a token")
        monkeypatch.setattr(push_module, "HfApi", lambda: double)
        return double

    return use


def test_without_upload_everything_is_printed_and_the_hub_gets_no_request(
    pushed: Any, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(push_module, "HfApi", lambda: pytest.fail("the Hub was asked"))
    code, out, _ = pushed("--private")
    assert code == 0
    assert f"{artifact.name} to me/Llama-tiny (private)" in out and "nothing was uploaded" in out
    names = [p.name for p in artifact.iterdir()]
    assert all(f"  {name} " in out for name in names) and f"{len(names)} files" in out
    total = sum(p.stat().st_size for p in artifact.iterdir())
    assert f"{total / 1e3:,.1f} kB" in out
    assert out.count("passed:") == 4


@pytest.mark.parametrize("private", [True, False])
def test_upload_is_one_commit_that_names_the_artifact(pushed: Any, hub: Any, private: bool) -> None:
    double = hub()
    code, out, _ = pushed("--upload", *(["--private"] if private else []))
    assert code == 0 and "uploaded: hub/me/Llama-tiny" in out
    (made, how), (uploaded, what) = double.calls
    assert (made, how) == ("create_repo", {"repo_id": "me/Llama-tiny", "private": private, "exist_ok": True})
    assert uploaded == "upload_folder" and what["commit_message"] == "Upload Llama-tiny-0123abcd"
    assert "*.safetensors" in what["delete_patterns"], "no weights of an earlier push stay to be loaded"
    assert {p.name for p in Path(what["folder_path"]).iterdir()} >= {"manifest.json", "NOTICE", "LICENSE"}


def test_private_is_not_uploaded_to_a_public_repository(pushed: Any, hub: Any) -> None:
    double = hub(public=True)
    code, _, err = pushed("--upload", "--private")
    assert code == 1 and "is public" in err
    assert [name for name, _ in double.calls] == ["create_repo"]


def test_a_refusal_of_the_hub_costs_one_line(pushed: Any, hub: Any) -> None:
    hub(fails=True)
    code, _, err = pushed("--upload")
    assert code == 1 and err.count("\n") == 1 and "403 Forbidden no write access" in err


def test_upload_without_a_token_says_what_to_set(pushed: Any) -> None:
    code, _, err = pushed("--upload")
    assert code == 1 and err.count("\n") == 1 and "set HF_TOKEN" in err


@pytest.mark.parametrize("to", ["Llama-tiny", "a/b/Llama", "me/", "/Llama", "me/Llama--x", "me/Llama x"])
def test_a_bad_repository_is_refused(pushed: Any, to: str) -> None:
    code, _, err = pushed(to=to)
    assert code == 1 and err.count("\n") == 1 and "--to" in err


def test_a_repository_name_that_the_licence_forbids_is_refused(pushed: Any) -> None:
    code, _, err = pushed(to="me/tiny")
    assert code == 1 and "begins with 'Llama'" in err


@pytest.mark.parametrize(
    "edit, message",
    [
        (lambda m: m["evaluation"].update(passed=False), "did not pass its evaluation"),
        (lambda m: m["merge_check"].update(passed=False), "did not pass its merge check"),
        (lambda m: m["evaluation"].update(override="why not"), "by an override (why not)"),
        (lambda m: m["files"].pop("config.json"), "does not name: config.json"),
        (
            lambda m: m["files"]["config.json"].update(sha256="0" * 64),
            "config.json is missing or altered",
        ),
        (
            lambda m: m["files"].update(gone={"sha256": "0" * 64, "bytes": 0}),
            "gone is missing or altered",
        ),
        (lambda m: m.update(config_hash="0" * 64), "no finished artifact of Llama-tiny with configuration"),
    ],
)
def test_an_artifact_that_is_not_proven_is_refused(
    pushed: Any, artifact: Path, edit: Edit, message: str
) -> None:
    edit_manifest(artifact, edit)
    code, _, err = pushed()
    assert code == 1 and err.count("\n") == 1 and message in err


def test_an_override_goes_out_only_by_its_flag_and_is_reported(pushed: Any, artifact: Path) -> None:
    edit_manifest(artifact, lambda m: m["evaluation"].update(passed=False, override="why not"))
    code, out, _ = pushed("--allow-override")
    assert code == 0 and "evaluation overridden: why not" in out


@pytest.mark.parametrize(
    "name, message", [("NOTICE", "must hold the line"), ("LICENSE", "no copy of the licence")]
)
def test_what_the_licence_asks_for_must_be_there(
    pushed: Any, artifact: Path, name: str, message: str
) -> None:
    (artifact / name).unlink()
    edit_manifest(artifact, lambda m: m["files"].pop(name))
    code, _, err = pushed()
    assert code == 1 and message in err


def test_an_artifact_of_an_older_schema_is_not_taken_for_finished(artifact: Path) -> None:
    assert find(artifact.parent, artifact.name)
    manifest = json.loads((artifact / "manifest.json").read_text())
    (artifact / "manifest.json").write_text(json.dumps({**manifest, "schema_version": 0}))
    assert find(artifact.parent, artifact.name) is None


def test_an_export_is_pushed_once_it_is_made(pushed: Any, artifact: Path, hub: Any) -> None:
    double = hub()
    code, _, err = pushed("--format", "adapter", "--upload")
    assert code == 1 and "make it with `export --format adapter`" in err and not double.calls
    manifest = json.loads((artifact / "manifest.json").read_text())
    directory = artifact.parents[1] / "exports" / artifact.name / "adapter"
    directory.mkdir(parents=True)
    for name in ("README.md", "NOTICE", "LICENSE"):
        (directory / name).write_bytes((artifact / name).read_bytes())
    (directory / "adapter_model.safetensors").write_bytes(b"weights")
    of = {"id": f"{manifest['id']}-adapter", "export": entry_of(artifact, "adapter")}
    write_manifest(directory, {**manifest, **of})
    code, out, _ = pushed("--format", "adapter", "--upload")
    assert code == 0 and "adapter_model.safetensors" in out
    assert double.calls[-1][1]["folder_path"] == directory
    (directory / "adapter_model.safetensors").write_bytes(b"others")
    assert pushed("--format", "adapter", "--upload")[0] == 1
