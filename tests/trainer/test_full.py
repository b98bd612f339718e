"""Full fine-tuning (`lora: null`): all weights trained; the same stages, gates and artifact as with LoRA."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch
import yaml
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from tests.support import ROOT
from tests.support.sweeps import run as made_run
from trainer import base_model, device
from trainer.cli import main
from trainer.config import RunConfig
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.engines import plain
from trainer.errors import ConfigError, GateError, MissingError
from trainer.fit.arm import Arm, Run, Setting, arms, read_run
from trainer.fit.choose.choice import choose
from trainer.fit.choose.comparison import Standing
from trainer.fit.choose.scores import scores
from trainer.fit.run.processes import arm_flags
from trainer.fit.run.train import train
from trainer.fit.run.trainer import ArmTrainer
from trainer.knowable import check_base, check_room
from trainer.objective import sft
from trainer.pages.sweep import page
from trainer.ship import merge as stage
from trainer.ship.merge import merge

FULL = ("lora=null", "sweep.ranks=null")
ARM = Arm(Setting(None, 0.001), 7)
Verb = Callable[..., tuple[int, str, str]]


@pytest.fixture
def verb(config_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Verb:
    def go(name: str, *settings: str) -> tuple[int, str, str]:
        flags = [part for setting in (*FULL, *settings) for part in ("--set", setting)]
        status = main([name, "--config", str(config_file), "--artifacts", str(tmp_path / "a"), *flags])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return go


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return load(config_file, [*FULL, "data.general=null", "sweep.learning_rates=[0.001]"])


def trained(config: RunConfig, artifacts: Path, steps: int) -> Run:
    base = base_model.fetch(config.base, artifacts)
    return train(config, base, prepare(config, base, artifacts), ARM, steps, artifacts)


def weights(directory: Path) -> dict[str, Any]:
    with safe_open(directory / "model.safetensors", "pt") as opened:
        return {name: opened.get_tensor(name) for name in opened.keys()}


def test_a_run_ships_an_artifact_of_trained_weights_that_nothing_was_merged_into(
    verb: Verb, tmp_path: Path, base_directory: Path
) -> None:
    rates = ("data.general=null", "sweep.learning_rates=[0.001, 0.01]")
    status, console, error = verb("run", *rates)
    assert status == 0, error
    assert "train all weights" in console and "full fine-tuning keeps 0.00 GiB" in console
    current = tmp_path / "a/models/current"
    manifest = json.loads((current / "manifest.json").read_text())
    jsonschema.validate(manifest, json.loads((ROOT / "docs/artifact.schema.json").read_text()))
    assert manifest["adapter"] is None and manifest["merge_check"]["fp32"] is None
    assert manifest["merge_check"]["shipped"]["top1_agreement"] > 0.9
    assert manifest["training"]["learning_rate"] in (0.001, 0.01)
    assert {s["name"] for s in manifest["selection"]["settings"]} == {"full-lr0.001", "full-lr0.01"}
    card = (current / "README.md").read_text()
    assert "fine-tuned in full by finechat; all its weights were trained." in card
    assert "| method | full fine-tuning on the answers' tokens |" in card and "lora" not in card.lower()
    before, after = weights(base_directory), weights(current)
    assert before.keys() == after.keys()
    assert not [name for name in before if torch.equal(before[name].bfloat16(), after[name])]
    configs = [json.loads((d / "config.json").read_text()) for d in (base_directory, current)]
    assert {key for key in configs[0] if configs[0][key] != configs[1].get(key)} <= {"dtype", "torch_dtype"}
    (results,) = (tmp_path / "a/sweeps").glob("*/results.json")
    shown = page(json.loads(results.read_text()))
    assert "Which learning rate is worth shipping" in shown and "rank None" not in shown
    assert "all weights" in shown and "Only one rank" not in shown
    assert verb("run", *rates)[1].count("skipped") == 5


def test_a_resumed_run_of_all_weights_is_the_run_that_was_never_stopped(
    config: RunConfig, tmp_path: Path
) -> None:
    whole = trained(config, tmp_path / "whole", 12)
    trained(config, tmp_path / "rungs", 6)
    resumed = trained(config, tmp_path / "rungs", 12)
    assert resumed.record["resumed_from"] == "trunk-5"
    assert resumed.record["train_curve"] == whole.record["train_curve"]
    assert resumed.validation == whole.validation
    ours, theirs = weights(whole.adapter), weights(resumed.adapter)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_what_was_trained_is_what_was_scored_and_is_kept_in_fp32(
    config: RunConfig, tmp_path: Path, base_directory: Path
) -> None:
    run = trained(config, tmp_path, 6)
    assert run.adapter.name == "model" and {w.dtype for w in weights(run.adapter).values()} == {torch.float32}
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("validation")
    again = sft.scores(AutoModelForCausalLM.from_pretrained(run.adapter), rows, 0)
    assert [row.total for row in again] == pytest.approx([row.total for row in run.validation], rel=1e-5)
    for name in ("config.json", "generation_config.json"):
        assert (run.adapter / name).read_bytes() == (base_directory / name).read_bytes()


def test_the_shipped_weights_are_those_that_were_trained(config: RunConfig, tmp_path: Path) -> None:
    run = trained(config, tmp_path, 4)
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("test")
    check = merge(base, run.adapter, rows, "float32", "float32", "cpu", tmp_path / "shipped")
    assert check["fp32"] is None and check["shipped"]["max_logit_difference"] == 0
    ours, theirs = weights(run.adapter), weights(tmp_path / "shipped")
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert json.loads((tmp_path / "shipped/generation_config.json").read_text())["eos_token_id"] == [2]


def test_the_best_checkpoint_of_all_weights_is_restored(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = ArmTrainer.compute_loss

    def climbing(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = own(self, *args, **kwargs)
        return -loss if self.state.global_step >= 4 else loss

    monkeypatch.setattr(ArmTrainer, "compute_loss", climbing)
    settings = config.train.model_copy(update={"restore_best": True, "warmup_steps": 0})
    run = trained(config.model_copy(update={"train": settings}), tmp_path, 10)
    curve = dict(run.record["validation_curve"])
    assert run.record["best_step"] == min(curve, key=lambda step: curve[step]) < 10
    assert run.record["validation"]["loss"] == pytest.approx(min(curve.values()), abs=1e-6)


def test_shipped_weights_that_are_not_the_trained_ones_rounded_are_refused(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run, shipped = trained(config, tmp_path, 4), tmp_path / "shipped"
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("test")
    monkeypatch.setattr(stage, "MIN_SHIPPED_AGREEMENT", 1.1)  # rounding alone is no reason to refuse them
    check = merge(base, run.adapter, rows, "bfloat16", "float32", "cpu", shipped)
    assert check["shipped"]["max_logit_difference"] > 0 and check["passed"] is True
    assert "every weight is the trained one in bfloat16; rounding left" in capsys.readouterr().out
    whole = weights(shipped)
    altered = {**whole, "model.norm.weight": whole["model.norm.weight"] + 0.01}
    for spoilt, says in (
        (altered, "the shipped model.norm.weight is not the trained one in bfloat16"),
        ({k: v for k, v in whole.items() if k != "model.norm.weight"}, "is not in the shipped model"),
        ({**whole, "more": whole["model.norm.weight"].clone()}, "more is not trained"),
    ):
        save_file(spoilt, shipped / "model.safetensors", {"format": "pt"})
        with pytest.raises(GateError, match=says):
            stage._require_rounded(run.adapter, shipped, "bfloat16")


@pytest.mark.parametrize("file", ["model.safetensors", "config.json"])
def test_a_model_that_was_cut_off_is_trained_again(config: RunConfig, tmp_path: Path, file: str) -> None:
    run = trained(config, tmp_path, 2)
    assert read_run(run.adapter.parent, ARM)
    (run.adapter / file).write_bytes((run.adapter / file).read_bytes()[:-2])
    assert read_run(run.adapter.parent, ARM) is None


def test_a_model_in_several_files_is_whole_only_with_all_of_them(
    tmp_path: Path, config: RunConfig, base_directory: Path
) -> None:
    run = trained(config, tmp_path, 2)
    model = AutoModelForCausalLM.from_pretrained(run.adapter)
    shutil.rmtree(run.adapter)
    model.save_pretrained(run.adapter, max_shard_size="40KB")
    parts = sorted(run.adapter.glob("model-*.safetensors"))
    assert len(parts) > 1 and read_run(run.adapter.parent, ARM)
    parts[-1].unlink()
    assert read_run(run.adapter.parent, ARM) is None


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["train.engine=compiled"], "`lora: null` needs `train.engine: plain`, `train.quantization: none`"),
        (["train.engine=unsloth"], "`lora: null` needs `train.engine: plain`"),
        (["train.quantization=4bit"], "`train.quantization: none`"),
        (["train.shard_base=true"], "and no `train.shard_base`"),
        (["sweep.ranks=[8]"], "sweep.ranks: full fine-tuning (`lora: null`) has no ranks; leave it out"),
        (["lora={scaling: 2}"], "sweep.ranks: expected a value, because it has no default"),
    ],
)
def test_what_full_fine_tuning_cannot_have_is_refused_in_one_sentence(
    config_file: Path, settings: list[str], sentence: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        load(config_file, [*FULL, *settings])
    assert sentence in str(caught.value)


def test_16_bits_on_a_cpu_are_refused(verb: Verb) -> None:
    status, _, error = verb("check", "data.general=null", "train.dtype=bfloat16")
    assert status == 1 and "train.dtype=float32 for `lora: null` on a CPU" in error


def test_a_machine_that_can_never_hold_the_weights_and_their_moments_is_found_by_check(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = base_model.fetch(config.base, tmp_path)
    parameters = sum(weight.numel() for weight in weights(base.directory).values())
    monkeypatch.setattr("trainer.knowable.memory_gib", lambda device: 16 * parameters / 2**30)
    (remark,) = check_base(config, base)
    assert (
        f"keeps {16 * parameters / 2**30:.2f} GiB of weights, gradients and moments in fp32, and activations"
        in remark
    )
    two = config.model_copy(update={"sweep": config.sweep.model_copy(update={"seeds": (1, 2)})})
    with pytest.raises(MissingError, match=r"for 2 arms at a time.* Set `lora`, a smaller base, or lower"):
        check_base(two, base)


def test_a_disk_that_cannot_hold_the_checkpoints_is_found_first(
    config: RunConfig, base_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs: list[tuple[str, int]] = []
    monkeypatch.setattr("trainer.knowable.require_room", lambda path, need, what: needs.append((what, need)))
    check_room(config, base_directory, tmp_path)
    stored = 4 * sum(weight.numel() for weight in weights(base_directory).values())
    # The arm and the last training keep weights and a checkpoint (3 times the weights); one has three more.
    assert needs[0] == ("full fine-tuning, with its checkpoints,", (2 * 4 + 9) * stored)
    assert [what for what, _ in needs[1:]] == ["the merged model"]


def test_a_sweep_of_rates_chooses_the_best_one(config: RunConfig) -> None:
    rates = config.model_copy(
        update={"sweep": config.sweep.model_copy(update={"learning_rates": (0.1, 0.01)})}
    )
    assert [arm.name for arm in arms(rates)] == ["full-lr0.01-s7", "full-lr0.1-s7"]
    assert "--rank" not in arm_flags(arms(rates)[0], 4)
    runs = []
    for arm, loss in zip(arms(rates), (1.0, 2.0), strict=True):
        one = made_run(1, [loss] * 9, arm.setting.learning_rate)
        runs.append(Run(arm, one.adapter, one.validation, None, {}))
    choice = choose(Standing(scores(runs, sft.SCORE), sft.SCORE))
    assert choice.winner == Setting(None, 0.01) and choice.verdict == "one rank"
    assert choice.reason.endswith("all weights were trained, so there are no ranks")


def test_every_weight_of_the_base_is_trained_whatever_its_format(tmp_path: Path, config: RunConfig) -> None:
    base = base_model.fetch(config.base, tmp_path)
    settings = config.train.model_copy(update={"dtype": "bfloat16"})
    model = plain.load(base.directory, settings, None, None, 7, "cpu")
    assert {(p.dtype, p.requires_grad) for p in model.parameters()} == {(torch.float32, True)}


def test_two_processes_share_full_fine_tuning(tmp_path: Path, config_values: dict[str, Any]) -> None:
    config_values["train"].update(tokens_per_step=192, rows_per_step=2)
    config_values["data"]["general"] = None
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump({**config_values, "lora": None, "sweep": {"learning_rates": [0.001]}}))
    curves = []
    for name, start in (
        ("one", ["-m", "trainer"]),
        ("two", ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "trainer"]),
    ):
        done = subprocess.run(
            [sys.executable, *start, "arm", "--config", str(file), "--artifacts", str(tmp_path / name)],
            cwd=ROOT, capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        (result,) = (tmp_path / name).glob("runs/*/*/result.json")
        curves.append([loss for _, loss in json.loads(result.read_text())["train_curve"]])
    assert curves[1] == pytest.approx(curves[0], rel=1e-5)


def test_the_memory_of_this_machine_is_that_of_the_record() -> None:
    assert device.describe_hardware()["memory_gib"] == round(device.memory_gib("cpu"), 1)
