"""Try a tiny random model of each family, and write docs/models.md.

    python -m bench.models

The trainer's own code does it: the score of rows beside transformers' loss, the probe of packed rows, a merge
of a random adapter on all linear layers in fp32, the engine `compiled` beside `plain`, and llama.cpp beside
transformers from an exported GGUF. What a chat template does is found in those that TRL ships. Run it in the
trainer's environment with `xllamacpp`; it takes a minute.
"""

import importlib.resources
import itertools
import tempfile
from pathlib import Path
from typing import Any

import torch
import transformers
import trl
from peft import LoraConfig, get_peft_model

from tests.support.ends import tokenizer_of
from tests.support.families import FAMILIES, WORDS, model_of
from tests.support.gguf_models import SHAPES, apart_in_llama_cpp, save_model
from tests.support.tool_form import FORMS
from trainer.base_model import attention_of
from trainer.config import TrainConfig
from trainer.config_lora import LoraConfig as LoraSettings
from trainer.data.template_form import Written, ends_of
from trainer.data.tokenize import IGNORED, ChatTokenizer, TokenRow
from trainer.engines import compiled, plain
from trainer.engines.families import unknown_shape
from trainer.fit.run.apart import rows_stay_apart
from trainer.objective import sft
from trainer.objective.forward import target_logits
from trainer.ship.gguf_file import write_gguf

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
- **GGUF:** the largest difference between llama.cpp's log probabilities, from the family's file in fp32, and
  transformers', over tiny models of their own. llama.cpp looks GELU up in a table in float16, hence Gemma's.
  `no` if the export refuses the family.
- **template, tools:** what ends an answer in the template of the family that TRL {trl.__version__} ships, and
  how a call of a function begins. `as text`: the template has no place for functions, or a form that is not
  known here, and they are written as text. Families of which TRL has no template are left blank.

| family | loss | rows | merge | compiled | GGUF | template | tools |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""
CALLS = """
## Forms of calls
Trainer and API find by trying the chat template how it writes calls. Rows, prompts and forced calls are in
that form, and calls are read from it. `tests/support/tool_form.py` has a template for each of these forms:

| in the manner of | a call begins with | ends with | arguments |
| --- | --- | --- | --- |
"""
STYLES = {"json": "a JSON object", "tags": "text in tags", "python": "Python's"}
# TRL's names of the templates of families.
TEMPLATES = {
    "Cohere": "cohere", "Cohere2": "cohere2", "Gemma2": "gemma", "Gemma3Text": "gemma3", "Lfm2": "lfm2_v2",
    "Llama": "llama3_2", "Phi3": "phi3_5", "Qwen2": "qwen2_5", "Qwen3": "qwen3",
    "Qwen3_5Text": "qwen3_5_think",
}  # fmt: skip


def main() -> None:
    lines = [_line(family) for family in sorted(FAMILIES, key=str.lower)]
    calls = [_form(name, form.found) for name, form in FORMS.items() if form.found]
    PAGE.write_text(HEAD + "".join(lines) + CALLS + "".join(calls))
    print(PAGE)


def _form(name: str, found: tuple[str, str, str]) -> str:
    style, begin, tail = found
    return f"| {name} | {_code(f'{begin}NAME')} | {_code(tail)} | {STYLES[style]} |\n"


def _template(family: str) -> tuple[str, str]:
    """Return what ends an answer in the family's template, and how a call begins."""
    if family not in TEMPLATES:
        return "", ""
    file = importlib.resources.files("trl") / "chat_templates" / f"{TEMPLATES[family]}.jinja"
    tokenizer = tokenizer_of(file.read_text(), ("</s>",))
    tokenizer.add_special_tokens({"bos_token": "<s>"})
    template = ChatTokenizer(tokenizer).template
    ends = ends_of(tokenizer, template.render, template.tool_form)
    named = [*map(str, tokenizer.convert_ids_to_tokens(list(ends.ids))), *ends.texts]
    written: Written | None = template.tool_form.written if template.tool_form else None
    return " ".join(map(_code, named)), _code(f"{written.begin}NAME") if written else "as text"


def _code(text: str) -> str:
    """Return a text as code in a table."""
    text = text.strip().replace("\n", "⏎").replace("|", "\\|")
    return (f"`` {text} ``" if "`" in text else f"`{text}`") if text else ""


def _line(family: str) -> str:
    model = model_of(family)
    loss, apart, merge = _loss(model), rows_stay_apart(plain, sft, model), _merge(model)
    cells = [
        family,
        f"{loss:.0e}",
        "packed" if apart else "alone",
        f"{merge:.0e}",
        _compiled(model),
        _gguf(family),
        *_template(family),
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


def _gguf(family: str) -> str:
    """Return how far llama.cpp is from transformers, or `no` for a family that the export does not know."""
    found = []
    for name, (kind, *_) in SHAPES.items():
        if kind == family:
            with tempfile.TemporaryDirectory() as folder:
                model, file = save_model(name, Path(folder) / "model"), Path(folder) / "model.gguf"
                write_gguf(model, "f32", name, "none", file)
                found.append(apart_in_llama_cpp(model, file))
    return f"{max(found):.0e}" if found else "no"


if __name__ == "__main__":
    main()
