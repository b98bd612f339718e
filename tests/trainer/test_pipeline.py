"""The whole chain on the tiny model, run as a user runs it: by command, in processes, with signals."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support import PATIENCE_S
from tests.support.trainer import PAUSING
from trainer import base_model, identity
from trainer.cli import main
from trainer.config_file import load
from trainer.data.chat_template import DATE
from trainer.data.prepare import prepare
from trainer.fit.arm import arms, place_of, run_name
from trainer.judge.gates import OVERRIDE
from trainer.judge.turns import FIRST_TURNS

ROOT = Path(__file__).parents[2]
SCHEMA = json.loads((ROOT / "docs/artifact.schema.json").read_text())


def trainer(verb: str, config: Path, artifacts: Path, *more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(verb, config, artifacts, *more), cwd=ROOT, capture_output=True, text=True)


def command(verb: str, config: Path, artifacts: Path, *more: str) -> list[str]:
    return [
        sys.executable, "-m", "trainer", verb, "--config", str(config), "--artifacts", str(artifacts),
        *more,
    ]  # fmt: skip


def test_a_run_ships_a_verified_artifact_and_a_second_run_does_nothing(
    tmp_path: Path, config_file: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    first = trainer("run", config_file, artifacts)
    assert first.returncode == 0, first.stderr
    current = artifacts / "models" / "current"
    manifest = json.loads((current / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert manifest["chat_template_date"] == DATE
    assert 1 <= len(manifest["examples"]) <= 3
    assert manifest["packages"].items() >= identity.made_by().items()
    assert os.readlink(current) == manifest["id"]
    assert {"LICENSE", "README.md", "config.json", "evaluation.html"} <= set(manifest["files"])
    assert sorted(s["rank"] for s in manifest["selection"]["settings"]) == [2, 4]
    assert "model-index" in (current / "README.md").read_text()
    model = AutoModelForCausalLM.from_pretrained(current)
    AutoTokenizer.from_pretrained(current)
    assert model.dtype == torch.bfloat16

    before = time.time()
    second = trainer("run", config_file, artifacts)
    assert second.returncode == 0, second.stderr
    assert second.stdout.count("skipped") == 5
    changed = [p for p in artifacts.rglob("*.safetensors") if p.stat().st_mtime > before]
    assert not changed

    (current / "model.safetensors").write_bytes(b"broken")
    third = trainer("run", config_file, artifacts)
    assert third.returncode == 0, third.stderr
    again = json.loads((current / "manifest.json").read_text())["files"]
    assert again.keys() == manifest["files"].keys()
    assert again["model.safetensors"] == manifest["files"]["model.safetensors"]


def test_results_that_were_cut_off_are_made_again(tmp_path: Path, config_file: Path) -> None:
    """A full disk, a power cut or a copy that stopped half-way may leave any of them short."""
    artifacts = tmp_path / "artifacts"
    flags = ("--set", "sweep.ranks=[2]")
    first = trainer("run", config_file, artifacts, *flags)
    assert first.returncode == 0, first.stderr
    (manifest,) = artifacts.glob("models/tiny-*/manifest.json")
    files = json.loads(manifest.read_text())["files"]
    shutil.rmtree(artifacts / "models")
    cut = [*artifacts.glob("runs/*/*/adapter/*.safetensors"), *artifacts.glob("evaluations/*.json")]
    assert len(cut) == 2
    for file in cut:
        file.write_bytes(file.read_bytes()[:-9])
    second = trainer("run", config_file, artifacts, *flags)
    assert second.returncode == 0, second.stderr
    again = json.loads(manifest.read_text())["files"]
    assert again["model.safetensors"] == files["model.safetensors"]


def test_a_model_of_conversations_is_measured_and_gated_at_each_turn(
    tmp_path: Path, config_file: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    chats = ("data.chats={turns: 2}", "data.held_out_share=0.3", "data.test_rows=10", "evaluate.turns=2")
    done = trainer("run", config_file, artifacts, *(word for one in chats for word in ("--set", one)))
    assert done.returncode == 0, done.stderr
    assert "exact_match, turn 2: " in done.stdout and FIRST_TURNS not in done.stdout
    manifest = json.loads((artifacts / "models" / "current" / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    measured = {(metric["name"], metric.get("turn")) for metric in manifest["evaluation"]["metrics"]}
    assert {("loss", 2), ("exact_match", 2), ("followup_loss", None)} <= measured
    gates = {gate["name"] for gate in manifest["evaluation"]["gates"]}
    assert {"turn 1 loss", "turn 2 loss", "general chat after a conversation loss"} <= gates
    samples = json.loads((artifacts / "models" / "current" / "samples.json").read_text())
    assert [message["role"] for message in samples[0]["earlier"]] == ["user", "assistant"]


def test_edited_prompts_are_evaluated_again_and_nothing_is_trained_again(
    tmp_path: Path, config_file: Path
) -> None:
    artifacts, prompts = tmp_path / "artifacts", tmp_path / "asked.txt"

    def run(text: str) -> tuple[str, dict[Path, int]]:
        prompts.write_text(text)
        done = trainer("run", config_file, artifacts, "--set", f"evaluate.prompts={prompts}")
        assert done.returncode == 0, done.stderr
        made = [*artifacts.glob("runs/**/*"), *artifacts.glob("data/**/*")]
        return os.readlink(artifacts / "models/current"), {path: path.stat().st_mtime_ns for path in made}

    first, before = run("What is red?\n")
    second, after = run("What is blue?\n")
    assert first != second and before == after
    for identifier, asked in ((first, "red"), (second, "blue")):
        assert asked in (artifacts / "models" / identifier / "evaluation.html").read_text()
    assert len(list(artifacts.glob("evaluations/*.json"))) == 2


def losses(artifacts: Path) -> Any:
    (result,) = artifacts.glob("runs/*/*/result.json")
    return json.loads(result.read_text())


@pytest.mark.parametrize(
    "kind",
    [("--rank", "2"), ("--set", "lora=null", "--set", "sweep.ranks=null")],
    ids=["adapter", "all weights"],
)
def test_killed_training_resumes_with_identical_losses(
    tmp_path: Path, config_file: Path, kind: tuple[str, ...]
) -> None:
    more = (*kind, "--set", "train.max_steps=40")
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert trainer("arm", config_file, whole, *more).returncode == 0
    process = subprocess.Popen(
        [sys.executable, str(PAUSING), *command("arm", config_file, killed, *more)[3:]], cwd=ROOT
    )
    while not list(killed.glob("runs/*/*/checkpoint-*/files.json")):
        assert process.poll() is None, "ended before its first checkpoint"
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    resumed = trainer("arm", config_file, killed, *more)
    assert resumed.returncode == 0, resumed.stderr
    assert "continues from steps-40/checkpoint-" in resumed.stdout
    assert losses(killed)["resumed_from"] and not losses(whole)["resumed_from"]
    assert losses(killed)["train_curve"] == losses(whole)["train_curve"]
    assert losses(killed)["validation"] == losses(whole)["validation"]


FAILING = ("--set", "evaluate.min_stopped=1.0")


def test_a_model_that_fails_a_gate_is_not_shipped(tmp_path: Path, config_file: Path) -> None:
    artifacts = tmp_path / "artifacts"
    done = trainer("run", config_file, artifacts, *FAILING)
    assert done.returncode == 1
    assert "is not shipped" in done.stderr and "answers stop" in done.stderr
    assert not (artifacts / "models" / "current").exists()
    (page,) = artifacts.glob("evaluations/*.html")
    assert "FAILED" in page.read_text() and str(page) in done.stderr


def test_a_run_without_general_chat_ships_too(tmp_path: Path, config_file: Path) -> None:
    artifacts = tmp_path / "artifacts"
    done = trainer("run", config_file, artifacts, "--set", "data.general=null")
    assert done.returncode == 0, done.stderr
    assert FIRST_TURNS in done.stdout, "a model measured on first turns says so on the console too"
    manifest = json.loads((artifacts / "models" / "current" / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    assert [metric["name"] for metric in manifest["evaluation"]["metrics"]] == ["loss", "exact_match"]


def test_the_named_flag_ships_a_failed_model_and_everything_says_so(
    tmp_path: Path, config_file: Path
) -> None:
    artifacts = tmp_path / "artifacts"
    done = trainer("run", config_file, artifacts, *FAILING, OVERRIDE)
    assert done.returncode == 0, done.stderr
    assert "FAILED its gate answers stop" in done.stdout
    models = artifacts / "models"
    manifest = json.loads((models / "current" / "manifest.json").read_text())
    jsonschema.validate(manifest, SCHEMA)
    evaluation = manifest["evaluation"]
    assert (evaluation["passed"], evaluation["override"]) == (False, OVERRIDE)
    assert [gate["name"] for gate in evaluation["gates"] if not gate["passed"]] == ["answers stop"]
    for file in ("README.md", "evaluation.html"):
        text = (models / "current" / file).read_text()
        assert OVERRIDE in text and "answers stop" in text

    again = trainer("run", config_file, artifacts, *FAILING)
    assert again.returncode == 0 and "FAILED its gate answers stop" in again.stdout

    (models / "current").unlink()
    without = trainer("run", config_file, artifacts, *FAILING)
    assert without.returncode == 1 and "answers stop" in without.stderr
    assert not (models / "current").exists()


def test_one_failed_arm_does_not_cost_the_others(tmp_path: Path, config_file: Path) -> None:
    artifacts = tmp_path / "artifacts"
    config = load(config_file)
    base = base_model.fetch(config.base, artifacts)
    data = prepare(config, base, artifacts).fingerprint
    broken, whole = arms(config)
    directory = place_of(config, base, data, broken, artifacts).directory / run_name(config, None)
    directory.mkdir(parents=True)
    (directory / "adapter").write_text("in the way")
    done = trainer("sweep", config_file, artifacts)
    assert done.returncode == 0, done.stderr
    (result,) = artifacts.glob("sweeps/*/results.json")
    results = json.loads(result.read_text())
    assert results["winner"] == whole.setting.name
    assert list(results["failed"]) == [broken.name]
    assert f"{broken.name}: failed: {results['failed'][broken.name]}" in done.stdout


def test_what_the_machine_lacks_is_reported_all_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "trainer", "run", "--config", "llama-3.2-3b"],
        cwd=ROOT, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 1
    for missing in ("CUDA device", "meta-llama/Llama-3.2-3B-Instruct"):  # the data may be in the cache
        assert missing in done.stderr
    assert "Traceback" not in done.stderr


def test_sigterm_ends_a_run_and_its_arms(tmp_path: Path, config_file: Path) -> None:
    artifacts = tmp_path / "artifacts"
    process = subprocess.Popen(
        command("sweep", config_file, artifacts, "--set", "train.max_steps=100000"),
        cwd=ROOT, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(artifacts.glob("runs/*/*/checkpoint-*")):
        assert process.poll() is None, "ended before training"
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    assert process.wait(PATIENCE_S) == 130
    assert process.stderr and "continues from here" in process.stderr.read()
    process.stderr.close()


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small file system needs root")
def test_a_full_disk_is_reported_in_one_line_and_costs_nothing_finished(
    tmp_path: Path, config_file: Path
) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(small)]).returncode:
        pytest.skip("this machine lets nobody mount a file system")
    try:
        done = trainer("run", config_file, small)
        assert done.returncode == 1
        assert "is full" in done.stderr and "Traceback" not in done.stderr
    finally:
        subprocess.run(["umount", str(small)], check=True)


def _by_torch() -> None:
    torch.save(torch.zeros(100_000), "/dev/full")


def _by_python() -> None:
    with open("/dev/full", "wb") as file:
        file.write(bytes(100_000))


def _by_safetensors() -> None:  # which would put a file in place of /dev/full
    raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")


@pytest.mark.parametrize(
    ("flag", "says"),
    [
        ("--rank=-5", "sweep.ranks"),
        ("--learning-rate=nan", "sweep.learning_rates"),
        ("--seed=-1", "sweep.seeds"),
    ],
)
def test_a_flag_of_an_arm_has_the_range_of_its_setting(
    config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], flag: str, says: str
) -> None:
    assert main(["arm", "--config", str(config_file), "--artifacts", str(tmp_path / "none"), flag]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{says}.0: expected a" in said
    with pytest.raises(SystemExit):
        main(["arm", "--config", str(config_file), "--steps=0"])
    assert "--steps: '0' must be a number of 1 or more" in capsys.readouterr().err


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        RuntimeError("CUDA out of memory."),
        RuntimeError("[enforce] can't allocate memory: you"),
    ],
)
def test_too_little_memory_is_reported_in_one_line(
    error: Exception, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(options: object) -> None:
        raise error

    monkeypatch.setattr("trainer.cli._run", fail)
    assert main(["prepare"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("trainer: out of memory; ") and said.count("\n") == 1


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.EDQUOT])
def test_a_place_that_may_not_be_written_is_reported_in_one_line(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(options: object) -> None:
        raise OSError(number, os.strerror(number), "/results/data")

    monkeypatch.setattr("trainer.cli._run", refuse)
    assert main(["prepare"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1 and f"{os.strerror(number)}: '/results/data'" in said


@pytest.mark.parametrize("write", [_by_torch, _by_python, _by_safetensors])
def test_a_full_disk_is_reported_as_one_for_every_writer(
    write: Callable[[], None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("trainer.cli._run", lambda options: write())
    assert main(["prepare", "--artifacts", "somewhere"]) == 1
    assert "the disk under somewhere is full" in capsys.readouterr().err
