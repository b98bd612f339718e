"""Random models of many families: their losses are those of transformers, and packed rows stay apart."""

import math
import re
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from tests.support import ROOT
from tests.support.families import APART, FAMILIES, HEADS, TINY, WORDS, model_of
from tests.support.gguf_models import SHAPES
from trainer.base_model import load_model
from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig as LoraSettings
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import plain
from trainer.engines.families import unknown_shape
from trainer.fit.arm import Arm, Setting
from trainer.fit.run.apart import rows_stay_apart
from trainer.fit.run.trainer import build_trainer
from trainer.fit.run.world import World
from trainer.objective import sft
from trainer.objective.score import mean_score


def rows() -> list[TokenRow]:
    """Rows of several lengths, each with two answers."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (20, 13, 31):
        ids = torch.randint(3, WORDS, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [IGNORED] * 5 + ids[5:9] + [IGNORED] * 2 + ids[11:], "q"))
    return made


@pytest.mark.parametrize("family", FAMILIES)
def test_a_row_has_the_loss_that_transformers_computes(family: str) -> None:
    model = model_of(family)
    for row, score in zip(rows(), sft.scores(model, rows(), pad_id=0), strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        with torch.no_grad():
            wanted = model(input_ids=ids, labels=labels).loss.item()
        assert score.total / score.weight == pytest.approx(wanted, abs=1e-5)
        assert abs(wanted - math.log(WORDS)) > 1e-4  # the logits say something


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_that_would_see_each_other_are_found(family: str) -> None:
    assert rows_stay_apart(plain, sft, model_of(family)) == (family in APART)


def test_a_family_without_sdpa_is_loaded_with_its_own_attention(tmp_path: Path) -> None:
    config = transformers.GptOssConfig(**TINY, **HEADS, num_local_experts=4, num_experts_per_tok=2)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(tmp_path)
    model = load_model(tmp_path, "float32", "cpu")
    assert model.config._attn_implementation == "eager"
    assert not rows_stay_apart(plain, sft, model)  # its attention does not read positions


def test_soft_caps_of_attention_are_computed(tmp_path: Path) -> None:
    """SDPA leaves them out without a word."""
    model_of("Gemma2").save_pretrained(tmp_path)
    model = load_model(tmp_path, "float32", "cpu")
    uncapped = AutoModelForCausalLM.from_pretrained(tmp_path, attn_implementation="sdpa").eval()
    loss, wrong = (mean_score(sft.scores(each, rows(), pad_id=0)) for each in (model, uncapped))
    layer = model.model.layers[0]
    seen: dict[str, torch.Tensor] = {}
    layer.self_attn.o_proj.register_forward_pre_hook(lambda _, inputs: seen.update(attended=inputs[0]))
    layer.self_attn.register_forward_pre_hook(
        lambda _, inputs, named: seen.update(x=named["hidden_states"]), with_kwargs=True
    )
    with torch.no_grad():
        model(torch.tensor([[5, 6]]))
    cap, (cos, sin) = 0.5, model.model.rotary_emb(seen["x"], torch.tensor([[0, 1]]))
    attention = layer.self_attn
    query, key, value = (
        getattr(attention, name)(seen["x"])[0, :, :8] for name in ("q_proj", "k_proj", "v_proj")
    )
    query, key = (x * cos[0] + torch.cat([-x[:, 4:], x[:, :4]], 1) * sin[0] for x in (query, key))
    scores = cap * torch.tanh(query[1] @ key.t() * attention.scaling / cap)
    torch.testing.assert_close(seen["attended"][0, 1, :8], scores.softmax(0) @ value)
    assert abs(loss - wrong) > 1e-4


@pytest.mark.parametrize("family", ["GraniteMoeHybrid", "Qwen3Next", "Qwen3"])
def test_a_step_trains_and_has_the_loss_of_its_rows(
    tmp_path: Path, tokenizer: PreTrainedTokenizerFast, family: str
) -> None:
    """A mixture has a router, and TRL turns its loss on; a dense hybrid has none and failed."""
    model_of(family).save_pretrained(tmp_path / "base")
    settings = TrainConfig(dtype="float32", tokens_per_step=96, max_steps=1, save_every_steps=1)
    lora = LoraSettings(scaling=1, target_modules=("q_proj",))
    model = plain.load(tmp_path / "base", settings, lora, 2, 1, "cpu")
    data = Dataset.from_dict({name: [getattr(r, name) for r in rows()] for name in ("input_ids", "labels")})
    trainer = build_trainer(
        model, sft, plain, tokenizer, data, [], settings, Arm(Setting(2, 1e-3), 1), 1, "cpu", tmp_path, [],
        World("cpu"), rows_stay_apart(plain, sft, model),
    )  # fmt: skip
    trainer.train()
    wanted = mean_score(sft.scores(model_of(family), rows(), 0))  # B begins at 0
    [loss] = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert loss == pytest.approx(wanted, rel=1e-4)


def test_the_page_of_models_has_every_family_and_says_what_is_done_with_it() -> None:
    head, table = (ROOT / "docs" / "models.md").read_text().split("| --- |", 1)
    names = [cell.strip() for cell in head.splitlines()[-1].strip("|").split("|")]
    lines = [
        line for line in table.split("\n\n")[0].splitlines() if line.startswith("| ") and "---" not in line
    ]
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]
    found = [dict(zip(names, row, strict=True)) for row in cells]
    assert {row["family"] for row in found} == set(FAMILIES)
    assert {row["family"] for row in found if row["rows"] == "packed"} == set(APART)
    fast = {family for family in FAMILIES if unknown_shape(model_of(family).config) is None}
    assert {row["family"] for row in found if row["compiled"] != "no"} == fast
    assert all(float(row["compiled"]) < 1e-5 for row in found if row["compiled"] != "no")
    assert {row["family"] for row in found if row["GGUF"] != "no"} == {kind for kind, *_ in SHAPES.values()}
    assert all(float(row["GGUF"]) < 5e-3 for row in found if row["GGUF"] != "no")
