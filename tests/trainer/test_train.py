"""One arm on the tiny model, in this process: what a run is, whatever its length and its end."""

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import save_file

from trainer import base_model
from trainer.config import RunConfig
from trainer.config_file import load
from trainer.data.prepare import prepare
from trainer.files import write_json
from trainer.fit.arm import Arm, Run, Setting, place_of, read_run
from trainer.fit.run import train as train_module
from trainer.fit.run.callbacks import DivergedError, StopDiverged, last_step, read_log
from trainer.fit.run.train import train
from trainer.fit.run.trainer import ArmTrainer

ARM = Arm(Setting(2, 0.01), 7)


def trained(config: RunConfig, artifacts: Path, steps: int, arm: Arm = ARM) -> Run:
    base = base_model.fetch(config.base, artifacts)
    return train(config, base, prepare(config, base, artifacts), arm, steps, artifacts)


@pytest.fixture
def config(config_file: Path) -> RunConfig:
    return load(config_file)


def test_a_resumed_run_is_the_run_that_was_never_stopped(config: RunConfig, tmp_path: Path) -> None:
    whole, rungs = trained(config, tmp_path / "whole", 12), None
    for steps in (6, 12):
        rungs = trained(config, tmp_path / "rungs", steps)
    assert rungs and rungs.record["resumed_from"] == "trunk-5" and whole.record["resumed_from"] is None
    assert rungs.record["train_curve"] == whole.record["train_curve"]
    assert rungs.validation == whole.validation


def test_an_adapter_names_the_base_that_it_was_trained_on(config: RunConfig, tmp_path: Path) -> None:
    run = trained(config, tmp_path, 2)
    found = json.loads((run.adapter / "base.json").read_text())
    assert found == {"weights_sha256": base_model.fetch(config.base, tmp_path).weights_sha256}


def test_a_gradient_is_cut_to_the_length_that_the_profile_says(config: RunConfig, tmp_path: Path) -> None:
    curves = []
    for most in (100.0, 0.01):
        train_settings = config.train.model_copy(update={"max_grad_norm": most})
        run = trained(config.model_copy(update={"train": train_settings}), tmp_path / str(most), 6)
        curves.append([loss for _, loss in run.record["train_curve"]])
    uncut, cut = curves
    assert uncut[:2] == cut[:2]  # the rate of the first step is 0
    assert uncut[3:] != cut[3:]


def test_the_learning_rate_rises_stays_and_falls_to_the_end(config: RunConfig, tmp_path: Path) -> None:
    trained(config, tmp_path, 20)
    (log,) = tmp_path.glob("runs/*/*/log.jsonl")
    rates = [line["learning_rate"] / 0.01 for line in read_log(log)]
    assert rates == pytest.approx([0, 0.2, 0.4, 0.6, 0.8, *[1.0] * 11, 1.0, 0.75, 0.5, 0.25])
    for line in read_log(log):
        assert line["grad_norm"] > 0 and line["tokens_per_second"] > 0


def overflow_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    own = ArmTrainer.compute_loss

    def overflowing(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = own(self, *args, **kwargs)
        return loss * float("inf") if self.state.global_step >= step else loss

    monkeypatch.setattr(ArmTrainer, "compute_loss", overflowing)


def test_a_run_that_diverges_is_finished_and_keeps_its_last_good_checkpoint(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_after(7, monkeypatch)
    run = trained(config, tmp_path, 20)
    assert run.diverged == "loss is inf at step 8"
    assert run.validation == [] and not run.adapter.exists()
    kept = sorted(path.name for path in run.adapter.parent.glob("checkpoint-*"))
    assert kept == ["checkpoint-4", "checkpoint-6"]
    monkeypatch.setattr(train_module, "_train", lambda *_: pytest.fail("trained again"))
    assert trained(config, tmp_path, 20).diverged == run.diverged


def test_a_loss_far_above_its_start_is_a_divergence() -> None:
    state = SimpleNamespace(global_step=0, log_history=[])
    with pytest.raises(DivergedError, match=r"the loss is 5\.60 at step 11, it began at 2\.00"):
        for loss in (2.0, 2.0, 2.0, 2.0, 2.0, 1.5, 1.5, 5.5, 6.0, 7.0, 8.0, 10.0):
            state.global_step += 1
            state.log_history.append({"step": state.global_step, "loss": loss})
            StopDiverged().on_log(None, state, None, logs={"loss": loss, "grad_norm": 1.0})


@pytest.fixture
def scaler(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give runs on a CPU the loss scaler that float16 has on a GPU."""
    own = ArmTrainer.create_accelerator_and_postprocess

    def with_scaler(self: ArmTrainer) -> None:
        own(self)
        monkeypatch.setattr(self.accelerator.state, "_mixed_precision", "fp16")
        self.accelerator.native_amp, self.accelerator.scaler = True, torch.amp.GradScaler("cpu")

    monkeypatch.setattr(ArmTrainer, "create_accelerator_and_postprocess", with_scaler)


def overflowing_gradient(before: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the gradient, not the loss, infinite in the first steps, as a scale that is too large does."""
    own = ArmTrainer.compute_loss

    def overflowing(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = own(self, *args, **kwargs)
        if self.state.global_step < before:
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss

    monkeypatch.setattr(ArmTrainer, "compute_loss", overflowing)


@pytest.mark.usefixtures("scaler")
def test_steps_that_the_loss_scaler_skips_are_no_divergence(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing_gradient(2, monkeypatch)
    run = trained(config, tmp_path, 4)
    (log,) = tmp_path.glob("runs/*/*/log.jsonl")
    assert [math.isfinite(line["grad_norm"]) for line in read_log(log)] == [False, False, True, True]
    assert run.diverged is None and len(run.validation) == 6 and run.record["steps"] == 4


@pytest.mark.usefixtures("scaler")
def test_steps_that_are_skipped_at_every_scale_are_a_divergence(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflowing_gradient(100, monkeypatch)
    assert trained(config, tmp_path, 40).diverged == "grad_norm is nan at step 17"


@pytest.fixture
def spoilt(monkeypatch: pytest.MonkeyPatch) -> None:
    """From step 5 on a run climbs: what it learns then is wrong."""
    own = ArmTrainer.compute_loss

    def climbing(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        loss = own(self, *args, **kwargs)
        return -loss if self.state.global_step >= 4 else loss

    monkeypatch.setattr(ArmTrainer, "compute_loss", climbing)


@pytest.mark.usefixtures("spoilt")
def test_the_best_checkpoint_is_restored_by_our_own_loss(
    config_values: dict[str, Any], tmp_path: Path
) -> None:
    config_values["train"].update(restore_best=True, warmup_steps=0)
    run = trained(configured(config_values, tmp_path), tmp_path, 12)
    losses = dict(run.record["validation_curve"])
    assert run.record["best_step"] == min(losses, key=lambda step: losses[step]) < run.record["steps"] == 12
    assert run.record["validation"]["loss"] == pytest.approx(min(losses.values()), abs=1e-6)


@pytest.mark.usefixtures("spoilt")
def test_a_run_that_is_moved_half_way_still_restores_its_best_checkpoint(
    config_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config_values["train"].update(restore_best=True, warmup_steps=0)
    config = configured(config_values, tmp_path)
    whole = trained(config, tmp_path / "whole", 12)
    own = ArmTrainer.training_step

    def killed(self: ArmTrainer, *args: Any, **kwargs: Any) -> Any:
        if self.state.global_step == 9:
            raise KeyboardInterrupt
        return own(self, *args, **kwargs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(ArmTrainer, "training_step", killed)
        trained(config, tmp_path / "before", 12)
    (tmp_path / "before").rename(tmp_path / "after")
    moved = trained(config, tmp_path / "after", 12)
    assert moved.record["resumed_from"] == "checkpoint-8"
    assert (moved.record["best_step"], moved.validation) == (whole.record["best_step"], whole.validation)


@pytest.mark.usefixtures("spoilt")
def test_a_run_without_a_better_loss_for_long_enough_stops(
    config_values: dict[str, Any], tmp_path: Path
) -> None:
    config_values["train"].update(restore_best=True, patience=2, warmup_steps=0)
    run = trained(configured(config_values, tmp_path), tmp_path, 40)
    assert run.record["steps"] == run.record["best_step"] + 2 * config_values["train"]["save_every_steps"]


def test_a_changed_setting_never_resumes_the_checkpoints_of_another(
    config: RunConfig, tmp_path: Path
) -> None:
    base = base_model.fetch(config.base, tmp_path)
    changed = config.model_copy(update={"train": config.train.model_copy(update={"weight_decay": 0.1})})
    longer = config.model_copy(update={"train": config.train.model_copy(update={"max_steps": 99})})
    own, other, more = (place_of(c, base, "data", ARM, tmp_path).directory for c in (config, changed, longer))
    assert own != other and own == more


def configured(values: dict[str, Any], folder: Path) -> RunConfig:
    file = folder / "changed.yaml"
    file.write_text(yaml.safe_dump(values))
    return load(file)


def test_the_log_of_a_run_is_whole_lines_of_json(config: RunConfig, tmp_path: Path) -> None:
    trained(config, tmp_path, 4)
    (log,) = tmp_path.glob("runs/*/*/log.jsonl")
    assert [json.loads(line)["step"] for line in log.read_text().splitlines()] == [1, 2, 3, 4]
    log.write_text(log.read_text() + '{"step": 5, "lo')
    assert [line["step"] for line in read_log(log)] == [1, 2, 3, 4]


def test_a_loss_that_is_logged_seldom_still_guards_every_checkpoint(
    config_values: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    overflow_after(4, monkeypatch)
    config_values["train"].update(logging_steps=100)
    run = trained(configured(config_values, tmp_path), tmp_path, 20)
    assert run.diverged == "loss is nan at step 6"  # two steps late, and before that step is saved
    kept = sorted(path.name for path in run.adapter.parent.glob("checkpoint-*"))
    assert kept == ["checkpoint-2", "checkpoint-4"]


def test_a_log_that_a_power_cut_left_broken_is_read_without_the_broken_lines(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_bytes(
        b'{"step": 1, "loss": 2.0}\n' + bytes(20) + b'\n{"step": 2, "loss": 1.0}\n{"step": 3, "lo\n'
    )
    assert [line["step"] for line in read_log(log)] == [1, 2]
    assert last_step(log) == {"step": 2, "loss": 1.0}


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_a_run_whose_adapter_was_cut_off_has_not_finished(tmp_path: Path, name: str) -> None:
    arm = Arm(Setting(2, 0.01), 7)
    write_json(tmp_path / "result.json", {"diverged": None, "validation": {"rows": [[1.0, 2, True]]}})
    assert read_run(tmp_path, arm) is None
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter/adapter_config.json").write_text("{}")
    save_file({"x": torch.zeros(4)}, tmp_path / "adapter/adapter_model.safetensors")
    assert read_run(tmp_path, arm)
    file = tmp_path / "adapter" / name
    file.write_bytes(file.read_bytes()[:-1])
    assert read_run(tmp_path, arm) is None
