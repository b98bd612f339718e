"""Phi 3 and 4: q, k and v in one layer, gate and up in another, and positions that a long row changes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import Phi3Config, Phi3ForCausalLM, PreTrainedTokenizerFast

from trainer import base_model
from trainer.config import RunConfig, TrainConfig
from trainer.config_file import load
from trainer.config_lora import LoraConfig
from trainer.data.prepare import prepare
from trainer.data.tokenize import IGNORED
from trainer.engines import plain
from trainer.errors import ConfigError
from trainer.fit.arm import Arm, Run, Setting
from trainer.fit.run.adapter import check_adapter
from trainer.fit.run.apart import shares_positions_beyond
from trainer.fit.run.train import train
from trainer.objective import sft
from trainer.ship.merge import merge

NAMES = ["down_proj", "gate_up_proj", "o_proj", "qkv_proj"]
SETTINGS = TrainConfig(device="cpu", dtype="float32", tokens_per_step=96, save_every_steps=9)
LONGROPE: dict[str, Any] = {
    "original_max_position_embeddings": 32,
    "rope_parameters": {
        "rope_type": "longrope", "rope_theta": 10_000.0, "short_factor": [1.0] * 4,
        "long_factor": [2.0, 4.0, 8.0, 16.0],
    },
}  # fmt: skip


def save(path: Path, words: int, **more: Any) -> Path:
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=words, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        tie_word_embeddings=True, initializer_range=0.2, **more,
    )  # fmt: skip
    Phi3ForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture
def configured(
    tmp_path: Path, config_values: dict[str, Any], base_directory: Path, tokenizer: PreTrainedTokenizerFast
) -> Callable[..., RunConfig]:
    """Return the tiny configuration with a base of this kind and the default target modules."""

    def make(train: dict[str, Any], **more: Any) -> RunConfig:
        base = tmp_path / "base"
        shutil.copytree(base_directory, base)
        save(base, len(tokenizer), **more)
        values = {
            **config_values,
            "base": {**config_values["base"], "path": str(base)},
            "lora": {"scaling": 2.0},
            "train": {**config_values["train"], **train},
            "data": {**config_values["data"], "general": None},
        }
        (tmp_path / "joined.yaml").write_text(yaml.safe_dump(values))
        return load(tmp_path / "joined.yaml")

    return make


def trained(config: RunConfig, artifacts: Path) -> Run:
    base = base_model.fetch(config.base, artifacts)
    arm = Arm(Setting(4, 0.01), 7)
    return train(config, base, prepare(config, base, artifacts), arm, 3, artifacts)


def test_the_default_target_modules_reach_every_layer(tmp_path: Path) -> None:
    base = save(tmp_path, 97)
    assert check_adapter(base, [2], LoraConfig(scaling=1)) == []  # no layer without an adapter
    model = plain.load(base, SETTINGS, LoraConfig(scaling=1), 2, 1, "cpu")
    assert sorted(model.peft_config["default"].target_modules) == NAMES


@pytest.mark.parametrize("names", [("q_proj",), ("q_proj", "k_proj", "o_proj"), ("gate_proj",)])
def test_a_part_of_a_joined_layer_is_refused_with_the_layer(tmp_path: Path, names: tuple[str, ...]) -> None:
    joined = "gate_up_proj" if names[0] == "gate_proj" else "qkv_proj"
    with pytest.raises(ConfigError, match=rf"no layer '{names[0]}'; did you mean .*{joined}"):
        check_adapter(save(tmp_path, 97), [2], LoraConfig(scaling=1, target_modules=names))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["plain", "compiled"])
def test_an_arm_on_joined_layers_merges_exactly(
    tmp_path: Path, configured: Callable[..., RunConfig], engine: str
) -> None:
    config = configured({"engine": engine})
    run = trained(config, tmp_path)
    written = json.loads((run.adapter / "adapter_config.json").read_text())
    assert sorted(written["target_modules"]) == NAMES
    base = base_model.fetch(config.base, tmp_path)
    rows = prepare(config, base, tmp_path).rows("validation")
    found = merge(base, run.adapter, rows, "float32", "float32", "cpu", tmp_path / "merged")
    assert found["fp32"]["max_logit_difference"] < 1e-5


def test_a_long_row_changes_the_positions_of_the_rows_beside_it(tmp_path: Path) -> None:
    base = save(tmp_path, 97, **LONGROPE)
    model = plain.load(base, SETTINGS, LoraConfig(scaling=1), 2, 1, "cpu")
    assert shares_positions_beyond(model.config) == 32
    generator = torch.Generator().manual_seed(1)
    short, long = (torch.randint(3, 97, (n,), generator=generator).tolist() for n in (20, 33))

    def loss(beside: list[int]) -> float:
        labels = [IGNORED] * len(beside) + [IGNORED, *short[1:]]
        lengths = [n for n in (len(beside), len(short)) if n]
        row = {"input_ids": beside + short, "labels": labels, "seq_lengths": lengths}
        return float(plain.compute_loss(model, sft.collate([row]), 1).item())

    assert loss(long[:32]) == pytest.approx(loss([]), rel=1e-6)
    assert loss(long) != pytest.approx(loss([]), rel=1e-4)


@pytest.mark.slow
def test_rows_are_trained_alone_where_one_may_change_the_others_positions(
    tmp_path: Path, configured: Callable[..., RunConfig], capsys: pytest.CaptureFixture[str]
) -> None:
    trained(configured({"engine": "plain"}, **LONGROPE), tmp_path)
    assert "each is trained alone" in capsys.readouterr().out
