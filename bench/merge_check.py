"""Merge random adapters, and print how far the merged model and base + adapter in bf16 are from fp32.

    python bench/merge_check.py --tokenizer DIRECTORY --device cuda     # the shape of Llama 3.2 3B
    python bench/merge_check.py --base DIRECTORY                        # a real base

Each adapter has other random weights, whose update is a hundredth of the base's weights in size, and other
random tokens are scored. The program counts the merges that the stage's check refuses: none of them is wrong.
Run it in the trainer's environment.
"""

import argparse
import json
import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.random_model import write  # noqa: E402 - run as a program, only its folder is on the path
from trainer.base_model import BaseModel, load_model  # noqa: E402
from trainer.data.tokenize import IGNORED, TokenRow  # noqa: E402
from trainer.errors import GateError  # noqa: E402
from trainer.ship import merge as stage  # noqa: E402

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
RANK, ROW, ROWS, UPDATE = 32, 64, 8, 0.01


def main(options: argparse.Namespace) -> dict[str, Any]:
    with _folder() as folder:
        base = options.base or write(options.tokenizer, folder)
        runs = [_run(base, folder, seed, options) for seed in range(options.adapters)]
    device = torch.cuda.get_device_name() if options.device == "cuda" else "cpu"
    refused = sum("refused" in run for run in runs)
    return {"device": device, "torch": torch.__version__, "base": base.name, "refused": refused, "runs": runs}


@contextmanager
def _folder() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as name:
        yield Path(name)


def _run(base: Path, folder: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    """Return what the stage's check found of one adapter."""
    model = load_model(base, "bfloat16", options.device)
    torch.manual_seed(seed)
    size = model.get_input_embeddings().weight.shape[0]
    settings = LoraConfig(r=RANK, lora_alpha=RANK, target_modules=LINEARS, init_lora_weights=False)
    adapted = get_peft_model(model, settings)
    for module in adapted.modules():
        if hasattr(module, "lora_B"):
            (a, b), weight = (module.lora_A["default"].weight, module.lora_B["default"].weight), module.weight
            with torch.no_grad():
                b.mul_(UPDATE * weight.float().norm() / (b.float() @ a.float()).norm())
    adapted.save_pretrained(folder / "adapter")
    del adapted, model
    ids = torch.randint(size, (ROWS, ROW)).tolist()
    rows = [TokenRow(row, [IGNORED, *row[1:]], "") for row in ids]
    found: dict[str, Any] = {"seed": seed}
    own = stage.require_only_rounding

    def noted(wanted: Any, unmerged: Any, merged: Any, dtype: str) -> None:
        best = wanted.argmax(-1)
        found["unmerged_top1_agreement"] = float((unmerged.argmax(-1) == best).float().mean())
        own(wanted, unmerged, merged, dtype)

    stage.require_only_rounding = noted
    where = BaseModel(base, "none", "0" * 64, "0" * 64)
    try:
        check = stage.merge(
            where, folder / "adapter", rows, "bfloat16", "bfloat16", options.device, folder / "merged"
        )
        found |= {"fp32": check["fp32"], "shipped": check["shipped"]}
    except GateError as error:
        found["refused"] = str(error)
    finally:
        stage.require_only_rounding = own
        shutil.rmtree(folder / "merged", ignore_errors=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--base", type=Path)
    source.add_argument("--tokenizer", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--adapters", type=int, default=3)
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    text = json.dumps(main(options), indent=1) + "\n"
    if options.output:
        options.output.write_text(text)
    print(text)
