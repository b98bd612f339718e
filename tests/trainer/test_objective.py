"""Another objective needs only what `Objective` names: here one whose score is better the higher it is."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerFast

from trainer.config import TrainConfig
from trainer.config_file import load
from trainer.config_lora import LoraConfig
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import plain
from trainer.fit.arm import Arm, Setting
from trainer.fit.run.trainer import ArmTrainer, build_trainer
from trainer.fit.run.world import World
from trainer.objective import Objective, objective_of, sft
from trainer.objective.score import Measure, RowScore, mean_score

SETTINGS = TrainConfig(dtype="float32", tokens_per_step=64, max_steps=2, save_every_steps=9)
IDS = torch.randint(3, 250, (4, 16), generator=torch.Generator().manual_seed(1)).tolist()
ROWS = [TokenRow(ids, [IGNORED] * 6 + ids[6:], "") for ids in IDS]


def test_sft_is_what_every_configuration_trains_for(config_file: Path) -> None:
    assert objective_of(load(config_file)) is sft


@pytest.fixture
def doubled() -> Any:
    """`sft` with twice its loss, and the log-likelihood of a row as its score: higher is better."""

    def loss(engine: Any, model: Any, inputs: dict[str, Any], counted: Any) -> Any:
        return 2 * sft.loss(engine, model, inputs, counted)

    def scores(model: Any, rows: Any, pad_id: int) -> list[RowScore]:
        return [RowScore(-row.total, 1, row.hit) for row in sft.scores(model, rows, pad_id)]

    return SimpleNamespace(
        NAME="doubled", METHOD="LoRA", HITS=sft.HITS, rows=sft.rows, pack=sft.pack, collate=sft.collate,
        loss=loss, scores=scores,
        SCORE=Measure("likelihood", "nats a row", "log-likelihood", lower_is_better=False),
    )  # fmt: skip


def trainer_for(
    objective: Objective, base: Path, tokenizer: PreTrainedTokenizerFast, output: Path
) -> ArmTrainer:
    rows = Dataset.from_dict({"input_ids": [r.input_ids for r in ROWS], "labels": [r.labels for r in ROWS]})
    model = plain.load(base, SETTINGS, LoraConfig(scaling=1), 2, 1, "cpu")
    return build_trainer(
        model, objective, plain, tokenizer, rows, ROWS, SETTINGS, Arm(Setting(2, 1e-3), 1), 1, "cpu", output,
        [], World("cpu"),
    )  # fmt: skip


def test_loss_and_checkpoints_are_those_of_the_objective(
    tmp_path: Path, base_directory: Path, tokenizer: PreTrainedTokenizerFast, doubled: Any
) -> None:
    losses, evaluated = [], []
    for name, objective in (("sft", sft), ("doubled", doubled)):
        trainer = trainer_for(objective, base_directory, tokenizer, tmp_path / name)
        trainer.train()
        losses.append(trainer.state.log_history[0]["loss"])
        scores = trainer.validation_scores()
        evaluated.append(trainer.evaluate()["eval_loss"])
        assert evaluated[-1] == objective.SCORE.sign * mean_score(scores)
    assert losses[1] == pytest.approx(2 * losses[0], rel=1e-6)
    assert all(value > 0 for value in evaluated), "less is better for the Trainer, whatever the objective"
