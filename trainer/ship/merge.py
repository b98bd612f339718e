"""Stage `merge`: merge base and adapter in fp32, and prove the result equal before it is cast.

After full fine-tuning there is nothing to merge. Every shipped weight must be the trained one, rounded.

The check runs base with adapter, the merged model, and the merged model written and loaded again, over the
same held-out target positions. A merge in bf16 would differ by 1.7 in a logit and agree on 0.97 of the tokens
(docs/log.md), hence fp32. The cast model may differ as much as base + adapter do in the same number format.
Tied embeddings stay tied, and `generation_config.json` gets every token that ends an answer.
"""

import contextlib
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from safetensors import safe_open
from transformers import AutoConfig

from trainer.base_model import BaseModel, load_model, load_tokenizer
from trainer.data.tokenize import TokenRow
from trainer.errors import GateError
from trainer.files import require_room
from trainer.objective.forward import target_logits
from trainer.progress import say
from trainer.ship.stops import set_stop_tokens

CHECK_ROWS = 8
CHECK_POSITIONS = 512  # a quarter of a gigabyte of logits at a vocabulary of 128,256
MAX_FP32_DIFFERENCE = 1e-3
MIN_FP32_AGREEMENT = 0.999
MIN_SHIPPED_AGREEMENT = 0.97
FALSE_REFUSALS = 0.001  # at most, of merged models that are as near to fp32 as base + adapter in their format


def merge(
    base: BaseModel,
    adapter: Path,
    rows: Sequence[TokenRow],
    dtype: str,
    compute_dtype: str,
    device: str,
    destination: Path,
    chat_template: str | None = None,
) -> dict[str, Any]:
    """Write the merged model and tokenizer to `destination`; return the manifest's `merge_check`.

    adapter: or the whole model, after full fine-tuning; then `fp32` of the check is None. dtype: of
    the shipped weights. compute_dtype: of the same weights loaded for the last check.
    chat_template: that the rows were rendered with; None: the base's.

    Raises: MissingError if the disk is too small, GateError if the merged model does not reproduce
    base + adapter.
    """
    require_room(destination, weight_bytes(base.directory, dtype), "the merged model")
    tokenizer = load_tokenizer(base.directory)
    if chat_template and chat_template != tokenizer.get_chat_template():
        tokenizer.chat_template = chat_template
    pad_id = tokenizer.pad_token_id or 0
    checked = rows[:CHECK_ROWS]
    device = _device_with_room(device, base.directory)
    trained, wrapped = _trained(base, adapter, "float32", device)
    wanted, exact, merged = _logits(trained, checked, pad_id), None, trained
    if wrapped:
        merged = wrapped.merge_and_unload(safe_merge=True)
        exact = _agreement(wanted, _logits(merged, checked, pad_id), "float32")
    set_stop_tokens(merged, tokenizer)
    merged.to(getattr(torch, dtype)).save_pretrained(destination)
    tokenizer.save_pretrained(destination)
    del trained, wrapped, merged
    _require_same_tie(base.directory, destination)
    got = _logits(load_model(destination, compute_dtype, device), checked, pad_id)
    shipped = _agreement(wanted, got, dtype)
    _require_agreement(exact, shipped)
    if exact is None:
        _require_rounded(adapter, destination, dtype)
        say(
            f"  every weight is the trained one in {dtype}; rounding left {shipped['top1_agreement']:.3f} of "
            f"{len(wanted)} tokens as they are in fp32"
        )
    elif shipped["top1_agreement"] < MIN_SHIPPED_AGREEMENT:
        apart, _ = _trained(base, adapter, compute_dtype, device)
        require_only_rounding(wanted, _logits(apart, checked, pad_id), got, compute_dtype)
    return {"positions": len(wanted), "fp32": exact, "shipped": shipped, "passed": True}


def _require_agreement(exact: dict[str, Any] | None, shipped: dict[str, Any]) -> None:
    """Require the bounds of fp32, where something was merged, and finite logits. Raises: GateError."""
    same = exact is None or (  # with NaN on either side a comparison is false, and the check fails
        exact["max_logit_difference"] <= MAX_FP32_DIFFERENCE and exact["top1_agreement"] >= MIN_FP32_AGREEMENT
    )
    if not (same and math.isfinite(shipped["max_logit_difference"])):
        what = "base + adapter" if exact else "what was trained"
        raise GateError(f"the merged model is not {what}: fp32 {exact}, as shipped {shipped}")


def _trained(base: BaseModel, trained: Path, dtype: str, device: str) -> tuple[Any, Any]:
    """Return the model as it was trained, and PEFT's wrapper of it, None after full fine-tuning."""
    if not (trained / "adapter_config.json").is_file():
        return load_model(trained, dtype, device), None
    wrapped = PeftModel.from_pretrained(load_model(base.directory, dtype, device), trained).eval()
    return wrapped.get_base_model(), wrapped


def _require_rounded(trained: Path, shipped: Path, dtype: str) -> None:
    """Require that the shipped weights are the trained ones in `dtype`, bit for bit. Raises: GateError."""
    with contextlib.ExitStack() as stack:
        ours, theirs = (
            {
                name: opened
                for file in sorted(directory.glob("*.safetensors"))
                for opened in [stack.enter_context(safe_open(file, "pt"))]
                for name in opened.keys()
            }
            for directory in (trained, shipped)
        )
        for name in sorted(ours.keys() | theirs.keys()):
            if name not in ours or name not in theirs:
                raise GateError(
                    f"{name} is {'not trained' if name in theirs else 'not in the shipped model'}"
                )
            weight = ours[name].get_tensor(name)
            if not torch.equal(weight.to(getattr(torch, dtype)), theirs[name].get_tensor(name)):
                raise GateError(f"the shipped {name} is not the trained one in {dtype}")


def require_only_rounding(wanted: Any, unmerged: Any, merged: Any, dtype: str) -> None:
    """Require that the merged model in `dtype` is as near to fp32 as base + adapter in `dtype` are.

    A number format flips near-ties between tokens in any model. Where the two differ in whether they agree
    with fp32, each must be the right one as often as the other (sign test, one-sided): a merge as good as
    the unmerged pair is refused with a probability of at most FALSE_REFUSALS.
    wanted: (n, vocabulary) in fp32. Raises: GateError.
    """
    best = wanted.argmax(-1)
    apart, whole = unmerged.argmax(-1) == best, merged.argmax(-1) == best
    worse, better = int((apart & ~whole).sum()), int((whole & ~apart).sum())
    share, other = (float(agrees.float().mean()) for agrees in (whole, apart))
    shares = f"{share:.3f} of {len(best)} tokens, base + adapter on {other:.3f}"
    count = worse + better
    chance = sum(math.comb(count, k) for k in range(worse, count + 1)) / 2**count
    if chance < FALSE_REFUSALS:
        raise GateError(
            f"in {dtype} the merged model agrees with fp32 on {shares}: more than rounding. "
            "Set ship_dtype: float32, which ships the weights of the fp32 merge as they are"
        )
    say(f"  in {dtype} the merged model agrees with fp32 on {shares}: rounding alone explains the difference")


def weight_bytes(directory: Path, dtype: str) -> int:
    """Return the size of a model's weights in `dtype`, by the shapes in its safetensors headers."""
    parameters = 0
    for file in directory.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            parameters += sum(math.prod(opened.get_slice(name).get_shape()) for name in opened.keys())
    return parameters * int(getattr(torch, dtype).itemsize)


def _require_same_tie(base: Path, merged: Path) -> None:
    """Compare the sharing of input and output embeddings with the base's. Raises: GateError."""
    tied, kept = (AutoConfig.from_pretrained(d).tie_word_embeddings for d in (base, merged))
    names: set[str] = set()
    for file in merged.glob("*.safetensors"):
        with safe_open(file, "pt") as opened:
            names.update(opened.keys())
    if kept != tied or ("lm_head.weight" in names) == tied:
        raise GateError(
            f"the base has tie_word_embeddings {tied}; the merged config has {kept} and its weights "
            f"{'an' if 'lm_head.weight' in names else 'no'} lm_head.weight"
        )


@torch.inference_mode()
def _logits(model: Any, rows: Sequence[TokenRow], pad_id: int) -> Any:
    """Return (n, vocab) fp32 logits at the first CHECK_POSITIONS target positions, in main memory."""
    found: list[Any] = []
    for row in rows:
        left = CHECK_POSITIONS - sum(map(len, found))
        if left <= 0:
            break
        logits, _ = target_logits(model, [row], pad_id)
        found.append(logits[:left].float().cpu())
    return torch.cat(found)


def _device_with_room(device: str, base: Path) -> str:
    """Return `device`, or `cpu` if the fp32 weights do not fit into the GPU's free memory."""
    if device == "cpu":
        return device
    free, _ = torch.cuda.mem_get_info()
    return device if 1.1 * weight_bytes(base, "float32") < free else "cpu"


def _agreement(wanted: Any, got: Any, dtype: str) -> dict[str, Any]:
    return {
        "dtype": dtype,
        "max_logit_difference": float(f"{(wanted - got).abs().max().item():.1e}"),
        "top1_agreement": round((wanted.argmax(-1) == got.argmax(-1)).float().mean().item(), 6),
    }
