"""Try a tiny random model of each family, and write docs/models.md.

    python -m bench.models

The trainer's own code does it: the score of rows beside transformers' loss, the probe of packed rows, a merge
of a random adapter on all linear layers in fp32, the engine `compiled` beside `plain`, and whether the export
to GGUF knows the family. Run it in the trainer's environment; it takes a minute.
"""

import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, get_peft_model

from tests.support.families import FAMILIES, WORDS, model_of
from trainer.base_model import attention_of
from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig as LoraSettings
from trainer.data.tokenize import IGNORED, TokenRow
from trainer.engines import compiled, plain
from trainer.engines.families import unknown_shape
from trainer.errors import ArtifactError
from trainer.fit.run.apart import rows_stay_apart
from trainer.objective import sft
from trainer.objective.forward import target_logits
from trainer.ship.gguf_file import require_llama

PAGE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
HEAD = f"""# Families of models

Each family is a tiny model with random weights, tried by `python -m bench.models` with transformers
{transformers.__version__}. The table shows whether the arithmetic is right. It says nothing about quality,
and no real model of a family other than Llama has been trained.

- **Loss:** the largest difference between a row's score and transformers' own loss, in nats a token.
- **Rows:** `packed` if rows that share a sequence cannot see each other. Otherwise each row is trained alone,
  and the console says so.
- **Merge:** the largest difference of a logit between base with adapter and the merged model, in fp32. The
  trainer refuses more than 1e-3.
- **compiled:** the largest difference of the loss of packed rows between the fast engine and `plain`, in nats
  a token, in fp32 on a CPU. `no` if it refuses the family; `plain` trains all of them.
- **GGUF:** whether the export knows the family.

| family | loss | rows | merge | compiled | GGUF |
| --- | --- | --- | --- | --- | --- |
"""


def main() -> None:
    lines = [_line(family) for family in sorted(FAMILIES, key=str.lower)]
    PAGE.write_text(HEAD + "".join(lines))
    print(PAGE)


def _line(family: str) -> str:
    model = model_of(family)
    loss, apart, merge = _loss(model), rows_stay_apart(plain, sft, model), _merge(model)
    cells = [
        family,
        f"{loss:.0e}",
        "packed" if apart else "alone",
        f"{merge:.0e}",
        _compiled(model),
        _yes(_gguf(model)),
    ]
    return f"| {' | '.join(cells)} |\n"


def _rows() -> list[TokenRow]:
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (20, 13, 31):
        ids = torch.randint(3, WORDS, (length,), generator=generator).tolist()
        made.append(TokenRow(ids, [IGNORED] * 5 + ids[5:], ""))
    return made


@torch.no_grad()
def _loss(model: Any) -> float:
    """Return the largest difference between our scores and transformers' losses."""
    found = []
    for row, score in zip(_rows(), sft.scores(model, _rows(), 0), strict=True):
        ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
        found.append(abs(score.total / score.weight - model(input_ids=ids, labels=labels).loss.item()))
    return float(max(found))


@torch.no_grad()
def _merge(model: Any) -> float:
    """Return the largest difference of a logit between a copy with an adapter and the same merged."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        copy = type(model).from_pretrained(folder, attn_implementation=attention_of(model.config)).eval()
    # PEFT refuses these two in Mamba layers, whose kernels read them without their modules.
    excluded = ["out_proj", "conv1d"] if hasattr(model.config, "mamba_d_state") else None
    settings = LoraConfig(r=4, target_modules="all-linear", exclude_modules=excluded, init_lora_weights=False)
    adapted = get_peft_model(copy, settings).eval()
    before = target_logits(adapted.get_base_model(), _rows(), 0)[0]
    after = target_logits(adapted.merge_and_unload(safe_merge=True), _rows(), 0)[0]
    return float((before - after).abs().max())


@torch.no_grad()
def _compiled(model: Any) -> str:
    """Return how far the compiled engine's loss of packed rows is from that of the plain one, or `no`."""
    if unknown_shape(model.config):
        return "no"
    rows = _rows()
    packed = {
        "input_ids": [*itertools.chain(*(row.input_ids for row in rows))],
        "labels": [*itertools.chain(*(row.labels for row in rows))],
        "seq_lengths": [len(row.input_ids) for row in rows],
    }
    settings = TrainConfig(device="cpu", dtype="float32", tokens_per_step=64, save_every_steps=1)
    targets = sum(label != IGNORED for label in packed["labels"])
    found = []
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        for engine in (plain, compiled):
            adapted = engine.load(Path(folder), settings, LoraSettings(scaling=1), 4, 1, "cpu")
            found.append(engine.compute_loss(adapted, sft.collate([packed]), targets).item())
    return f"{abs(found[0] - found[1]):.0e}"


def _gguf(model: Any) -> bool:
    try:
        require_llama(model.config)
    except ArtifactError:
        return False
    return True


def _yes(known: bool) -> str:
    return "yes" if known else "no"


if __name__ == "__main__":
    main()
