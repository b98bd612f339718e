"""Engines by their promise: the same rows give the same losses, and what is missing is reported at once.

Unsloth patches libraries at import, so each engine trains in a process of its own, as it does for real.
"""

import importlib.util
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from trainer import preflight
from trainer.config_file import load
from trainer.errors import MissingError
from trainer.fit.arm import Arm, Setting
from trainer.fit.run import trainer as trainer_module
from trainer.fit.run.world import World

# Engines agree within this, relative, on every step's loss and every validation row, in fp32.
TOLERANCE = 1e-4

needs_unsloth = pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="the unsloth package is not installed here"
)
needs_bitsandbytes = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="the bitsandbytes package is not installed here"
)


def test_no_default_that_unsloth_changes_decides_a_result(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, tmp_path: Path
) -> None:
    said: dict[str, Any] = {}
    monkeypatch.setattr(trainer_module, "SFTConfig", lambda **arguments: said.update(arguments))
    arm = Arm(Setting(8, 1e-3), 1)
    trainer_module._arguments(load(config_file).train, arm, 100, 1, "cuda", tmp_path / "a", World("cpu"))
    # As unsloth 2026.10.9 puts them into the SFTConfig of a machine with a GPU; its `loss_type` and
    # `padding_free` concern TRL's own loss and collator, and neither is used here.
    assert said.keys() >= {
        "per_device_train_batch_size", "gradient_accumulation_steps", "weight_decay", "seed", "optim",
        "learning_rate", "warmup_steps", "bf16", "fp16", "logging_steps", "logging_nan_inf_filter",
        "report_to",
    }  # fmt: skip
    assert (said["per_device_train_batch_size"], said["gradient_accumulation_steps"]) == (1, 1)


@pytest.fixture
def engine_config(tmp_path: Path, config_values: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> Path:
    """Six packed steps over a model wide enough for 4-bit blocks (bitsandbytes wants 64 and more)."""
    torch.manual_seed(0)
    shape = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=128, intermediate_size=256, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    base = tmp_path / "wide"
    LlamaForCausalLM(shape).save_pretrained(base)
    tokenizer.save_pretrained(base)
    config_values["base"]["path"] = str(base)
    config_values["train"]["tokens_per_step"] = 256
    path = tmp_path / "engines.yaml"
    path.write_text(yaml.safe_dump(config_values))
    return path


def command(config: Path, artifacts: Path, *overrides: str) -> list[str]:
    flags = [part for override in overrides for part in ("--set", override)]
    return [
        sys.executable, "-m", "trainer", "arm", "--config", str(config), "--artifacts", str(artifacts),
        "--rank", "4", *flags,
    ]  # fmt: skip


def train(config: Path, artifacts: Path, *overrides: str) -> dict[str, Any]:
    """The arm's `result.json`."""
    done = subprocess.run(command(config, artifacts, *overrides), capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    (result,) = artifacts.glob("runs/*/*/result.json")
    record: dict[str, Any] = json.loads(result.read_text())
    return record


def losses(record: dict[str, Any]) -> list[float]:
    """Every step's, then every validation row's."""
    return [loss for _, loss in record["train_curve"]] + [row[0] for row in record["validation"]["rows"]]


def adapter_files(artifacts: Path) -> set[str]:
    return {path.name for path in artifacts.glob("runs/*/*/adapter/*")}


@pytest.mark.parametrize("engine", ["compiled", pytest.param("unsloth", marks=needs_unsloth)])
def test_an_engine_gives_the_losses_of_the_plain_one(
    tmp_path: Path, engine_config: Path, engine: str
) -> None:
    plain = train(engine_config, tmp_path / "plain")
    other = train(engine_config, tmp_path / engine, f"train.engine={engine}")
    assert len(plain["train_curve"]) == 6
    assert losses(other) == pytest.approx(losses(plain), rel=TOLERANCE)
    assert adapter_files(tmp_path / engine) == adapter_files(tmp_path / "plain")


@needs_unsloth
@needs_bitsandbytes
def test_unsloth_gives_the_losses_of_the_plain_engine_in_4_bits(tmp_path: Path, engine_config: Path) -> None:
    plain = train(engine_config, tmp_path / "plain", "train.quantization=4bit")
    unsloth = train(engine_config, tmp_path / "unsloth", "train.quantization=4bit", "train.engine=unsloth")
    assert losses(unsloth) == pytest.approx(losses(plain), rel=TOLERANCE)


@needs_bitsandbytes
def test_4_bits_train_and_are_not_the_16_bit_base(tmp_path: Path, engine_config: Path) -> None:
    whole = losses(train(engine_config, tmp_path / "whole"))
    quantized = losses(
        train(
            engine_config, tmp_path / "4bit", "train.quantization=4bit", "train.optimizer=adamw_8bit",
            "train.gradient_checkpointing=true",
        )
    )  # fmt: skip
    assert quantized[5] < quantized[0]
    assert quantized[0] != pytest.approx(whole[0], rel=TOLERANCE)


@needs_unsloth
def test_killed_unsloth_training_resumes_with_identical_losses(tmp_path: Path, engine_config: Path) -> None:
    overrides = ("train.engine=unsloth", "train.max_steps=40")
    process = subprocess.Popen(command(engine_config, tmp_path / "killed", *overrides))
    deadline = time.monotonic() + 300
    while not list((tmp_path / "killed").glob("runs/*/*/checkpoint-*/files.json")):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert not list((tmp_path / "killed").glob("runs/*/*/result.json"))
    resumed = train(engine_config, tmp_path / "killed", *overrides)
    assert resumed["resumed_from"]
    assert losses(resumed) == losses(train(engine_config, tmp_path / "whole", *overrides))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.engine=unsloth", "the package unsloth"),
        ("train.quantization=4bit", "the package bitsandbytes"),
        ("train.optimizer=adamw_8bit", "the package bitsandbytes"),
    ],
)
def test_a_package_that_the_engine_lacks_is_reported_before_any_work(
    monkeypatch: pytest.MonkeyPatch, config_file: Path, override: str, message: str
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingError, match=f"{message}: `make setup` installs it"):
        preflight.check(load(config_file, [override]))


def test_float16_on_a_cpu_is_refused(config_file: Path) -> None:
    with pytest.raises(MissingError, match=r"a CUDA device for train\.dtype=float16"):
        preflight.check(load(config_file, ["train.dtype=float16"]))


def test_bfloat16_on_a_gpu_without_it_is_refused(monkeypatch: pytest.MonkeyPatch, config_file: Path) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: False)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "Tesla T4")
    with pytest.raises(MissingError, match=r"Tesla T4 does not support it; set train\.dtype=float16"):
        preflight.check(load(config_file, ["train.device=auto", "train.dtype=bfloat16"]))
