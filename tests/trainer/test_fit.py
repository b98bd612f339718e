import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch.nn import functional
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast, TrainerCallback

from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import plain
from trainer.fit.arm import Arm, Setting
from trainer.fit.run.checkpoint import keep_trunk, seal, starting_point
from trainer.fit.run.trainer import build_trainer
from trainer.fit.run.world import World
from trainer.generation import generate
from trainer.objective import sft
from trainer.objective.score import RowScore, mean_score


def token_row(length: int, prompt: int, seed: int) -> TokenRow:
    ids = torch.randint(3, 250, (length,), generator=torch.Generator().manual_seed(seed)).tolist()
    return TokenRow(ids, [IGNORED] * prompt + ids[prompt:], "")


ROWS = [token_row(length, prompt, length) for length, prompt in ((9, 3), (40, 20), (17, 1), (5, 4))]


def reference_nll(model: LlamaForCausalLM, row: TokenRow) -> float:
    """One row alone, all logits, plain cross entropy."""
    with torch.inference_mode():
        logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
    targets = torch.tensor(row.labels[1:])
    return float(functional.cross_entropy(logits, targets, ignore_index=IGNORED, reduction="sum"))


def test_batched_losses_equal_each_row_alone(tiny_model: LlamaForCausalLM) -> None:
    losses = sft.scores(tiny_model, ROWS, pad_id=0)
    for row, loss in zip(ROWS, losses, strict=True):
        assert loss.total == pytest.approx(reference_nll(tiny_model, row), rel=1e-4)
        assert loss.weight == sum(label != IGNORED for label in row.labels[1:])


def test_mean_loss_weighs_tokens_and_not_rows() -> None:
    assert mean_score([RowScore(1.0, 1, False), RowScore(0.0, 9, False)]) == pytest.approx(0.1)


def test_a_row_is_exact_if_and_only_if_greedy_generation_gives_it(
    tiny_model: LlamaForCausalLM,
) -> None:
    prompts = [row.input_ids[:4] for row in ROWS]
    answers = generate(tiny_model, prompts, pad_id=0, max_new_tokens=6)
    greedy = [
        TokenRow(p + a.token_ids, [IGNORED] * len(p) + a.token_ids, "")
        for p, a in zip(prompts, answers, strict=True)
    ]
    assert all(loss.hit for loss in sft.scores(tiny_model, greedy, pad_id=0))
    for row in greedy:
        row.labels[-1] = row.input_ids[-1] = (row.input_ids[-1] + 1) % 250 + 3
    assert not any(loss.hit for loss in sft.scores(tiny_model, greedy, pad_id=0))


@pytest.mark.parametrize("sample_seed", [None, 3])
def test_answers_come_from_the_bare_distribution_whatever_the_base_suggests(
    tiny_model: LlamaForCausalLM, sample_seed: int | None
) -> None:
    prompts = [row.input_ids[:4] for row in ROWS]
    bare = generate(tiny_model, prompts, 0, 12, sample_seed)
    suggesting = copy.deepcopy(tiny_model)
    suggested = {
        "repetition_penalty": 9.0, "no_repeat_ngram_size": 1, "do_sample": True, "temperature": 0.1,
        "top_k": 1, "top_p": 0.1, "min_p": 0.9, "typical_p": 0.1, "suppress_tokens": [5],
    }  # fmt: skip
    suggesting.generation_config.update(**suggested)
    assert generate(suggesting, prompts, 0, 12, sample_seed) == bare
    assert suggesting.generation_config.repetition_penalty == 9.0


@pytest.mark.parametrize("together", [True, False])
def test_a_step_has_the_loss_of_its_rows_whether_they_share_a_sequence_or_not(
    together: bool,
    tmp_path: Path,
    base_directory: Path,
    tokenizer: PreTrainedTokenizerFast,
    tiny_model: LlamaForCausalLM,
) -> None:
    """With LoRA at its start (B = 0) the first step's loss is the base's over the packed rows."""
    logged: list[float] = []

    class Keep(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kw: Any) -> None:
            logged.extend([float(logs["loss"])] if "loss" in logs else [])

    settings = TrainConfig(dtype="float32", tokens_per_step=128, max_steps=1, save_every_steps=1)
    rows = Dataset.from_dict({"input_ids": [r.input_ids for r in ROWS], "labels": [r.labels for r in ROWS]})
    arm = Arm(Setting(2, 1e-3), 1)
    model = plain.load(base_directory, settings, LoraConfig(scaling=1), 2, 1, "cpu")
    build_trainer(
        model,
        sft,
        plain,
        tokenizer,
        rows,
        [],
        settings,
        arm,
        1,
        "cpu",
        tmp_path,
        [Keep()],
        World("cpu"),
        together,
    ).train()
    wanted = sum(reference_nll(tiny_model, r) for r in ROWS) / sum(
        label != IGNORED for r in ROWS for label in r.labels[1:]
    )
    assert logged == [pytest.approx(wanted, rel=1e-4)]


@pytest.mark.parametrize("file", ["trainer_state.json", "optimizer.pt", "files.json"])
@pytest.mark.parametrize("left", [0, 5, None])
def test_resume_skips_a_checkpoint_of_which_any_file_was_cut_or_is_missing(
    tmp_path: Path, file: str, left: int | None
) -> None:
    run = tmp_path / "steps-20"
    for step in (9, 10, 15):
        checkpoint(run / f"checkpoint-{step}")
    assert starting_point(run, total=20, cooldown_start=16) == run / "checkpoint-15"
    assert starting_point(run, total=10, cooldown_start=8) == run / "checkpoint-9"
    newest = run / "checkpoint-15" / file
    whole = newest.read_bytes()
    newest.unlink()
    if left is not None:
        newest.write_bytes(whole[:left])
    assert starting_point(run, total=20, cooldown_start=16) == run / "checkpoint-10"


def test_a_new_run_begins_from_the_furthest_trunk_before_its_own_cooldown(tmp_path: Path) -> None:
    run = tmp_path / "steps-40"
    assert starting_point(run, total=40, cooldown_start=32) is None
    for steps, trunk in ((20, 16), (10, 8), (80, 64)):
        checkpoint(tmp_path / f"steps-{steps}" / f"trunk-{trunk}")
    assert starting_point(run, total=40, cooldown_start=32) == tmp_path / "steps-20" / "trunk-16"


def test_a_trunk_is_whole_though_its_state_is_not_that_of_its_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "steps-20"
    checkpoint(run / "checkpoint-16")
    keep_trunk(run / "checkpoint-16")
    (run / "checkpoint-16" / "files.json").unlink()
    assert starting_point(run, total=20, cooldown_start=16) == run / "trunk-16"


def checkpoint(directory: Path) -> None:
    directory.mkdir(parents=True)
    (directory / "trainer_state.json").write_text('{"global_step": 9}')
    (directory / "optimizer.pt").write_bytes(b"moments")
    seal(directory)
