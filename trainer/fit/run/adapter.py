"""Check before training that a base model can carry the configured adapter."""

import difflib
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from trainer.adapter_file import CONFIG, base_of, tensors
from trainer.config import BaseModelConfig
from trainer.config_lora import ALL_LINEAR, LoraConfig
from trainer.engines.adapters import (
    READ_BY_KERNELS,
    TIED,
    describe,
    expected_tensors,
    has_kernels,
    last,
    reach,
    skeleton,
    target_names,
    trains_tied,
)
from trainer.errors import ConfigError

HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
CLOSE = 0.55  # of difflib's ratio: `embed` is close to `embed_tokens`


def check_adapter(base: Path, ranks: Sequence[int], lora: LoraConfig) -> list[str]:
    """Check ranks, target modules and modules to save against the layers of the base.

    Returns remarks on what is not trained, or not as it may seem. Raises: ConfigError if a rank exceeds a
    layer's smaller dimension, where a full update costs less, if a name matches nothing, or if the layers
    that it matches cannot be trained in this way.
    """
    model = skeleton(base)
    modules = {name: module for name, module in model.named_modules() if name}
    problems = [*_wrong_targets(model, modules, lora), *_wrong_modules(model, modules, lora)]
    if problems:
        whose = f"lora.adapter {lora.adapter} does not fit this base: " if lora.adapter else ""
        raise ConfigError(whose + "; ".join(problems))
    remarks = []
    if trains_tied(model, lora):
        remarks.append(
            "input and output embeddings of this base are one matrix: lora.modules_to_save trains it as one, "
            "and the merged model keeps it so"
        )
    try:
        found = reach(model, lora, min(ranks))
    except ValueError as error:
        raise ConfigError(f"lora.target_modules: {' '.join(str(error).split())}") from None
    name = min(found.limits, key=lambda name: found.limits[name])
    if max(ranks) > found.limits[name]:
        raise ConfigError(
            f"rank {max(ranks)} is over the smaller dimension of {name}, {found.limits[name]}: use ranks up "
            "to that"
        )
    if lora.adapter:
        _require_fit(lora.adapter, base, lora, ranks[0])
    if found.without:
        remarks.append(f"no adapter on {found.without.total()} layers: {describe(found.without)}")
    return remarks


def check_origin(adapter: Path, config: BaseModelConfig, weights_sha256: str) -> str:
    """Compare the base that an adapter names with the one that it is to be trained on.

    Returns a remark. Raises: ConfigError if they are not the same.
    """
    named, made_on = base_of(adapter)
    if made_on and made_on != weights_sha256:
        raise ConfigError(
            f"lora.adapter: {adapter} was trained on weights {made_on[:12]}…, and {config.id} has "
            f"{weights_sha256[:12]}…: it belongs to another base"
        )
    if made_on:
        return f"goes on from {adapter.name}, which was trained on these weights"
    if HUB_ID.fullmatch(named) and not Path(named).exists():
        if _name(named) != _name(config.id):
            raise ConfigError(
                f"lora.adapter: {adapter} names the base {named}, and base.id is {config.id}. If the weights "
                f"are the same, write base.id into its {CONFIG} as base_model_name_or_path"
            )
        return f"goes on from {adapter.name}, which names {named}; the files do not show which weights it had"
    return f"goes on from {adapter.name}; its files do not show on which weights it was trained"


def _name(hub_id: str) -> str:
    """`unsloth/Llama-3.2-1B-Instruct-bnb-4bit` → `llama-3.2-1b-instruct`, whose weights it was made from"""
    return re.sub("(-unsloth)?-bnb-4bit$", "", last(hub_id.replace(".", "_").replace("/", ".")).lower())


def _require_fit(adapter: Path, base: Path, lora: LoraConfig, rank: int) -> None:
    """Require that the adapter has exactly the tensors that PEFT saves of one on this base."""
    found, wanted = tensors(adapter), expected_tensors(skeleton(base), lora, rank)
    differing = sorted(name for name in found | wanted if found.get(name) != wanted.get(name))
    if differing:
        name = differing[0]
        said, expected = (str(x.get(name, "absent")).replace(",)", ")") for x in (found, wanted))
        raise ConfigError(
            f"lora.adapter {adapter} does not fit this base: {len(differing)} tensors differ, such as "
            f"{name}, which is {said} in the adapter and {expected} for the base"
        )


def _is_named(name: str, wanted: str) -> bool:
    return name == wanted or name.endswith(f".{wanted}")


def _wrong_targets(model: Any, modules: dict[str, Any], lora: LoraConfig) -> Iterator[str]:
    output = model.get_output_embeddings()
    tied = model.config.tie_word_embeddings
    linear = {name: m for name, m in modules.items() if isinstance(m, torch.nn.Linear)}
    free = [name for name, layer in linear.items() if not (tied and layer is output)]
    for target in target_names(model, lora) if lora.target_modules != (ALL_LINEAR,) else ():
        found = {name: layer for name, layer in linear.items() if _is_named(name, target)}
        if not found:
            yield f"lora.target_modules: the base has no layer {target!r}; {_nearest(target, free)}"
        elif tied and any(layer is output for layer in found.values()):
            yield (
                f"lora.target_modules: {target!r} shares its weights with the embeddings of this base, and a "
                "merge would change both; leave it out, or train both by lora.modules_to_save"
            )
        elif has_kernels(model) and last(target) == READ_BY_KERNELS:
            yield (
                f"lora.target_modules: the kernels of this base read {target!r} without calling it, and an "
                "adapter on it would do nothing; leave it out"
            )


def _wrong_modules(model: Any, modules: dict[str, Any], lora: LoraConfig) -> Iterator[str]:
    embeddings = (model.get_input_embeddings(), model.get_output_embeddings())
    for wanted in lora.modules_to_save:
        found = [name for name in modules if _is_named(name, wanted)]
        others = {name for name in modules if name.endswith(wanted)} - {*found}
        ties = model.config.tie_word_embeddings and any(modules[name] in embeddings for name in found)
        if not found:
            near = _nearest(wanted, list(modules))
            yield f"lora.modules_to_save: the base has no module {wanted!r}; {near}"
        elif others:  # PEFT compares the ends of names without regard to dots
            yield (
                f"lora.modules_to_save: PEFT would take {', '.join(sorted({*map(last, others)}))} for "
                f"{wanted!r}; give the whole name, such as {found[0]}"
            )
        elif any(_adapted_inside(name, modules, target_names(model, lora)) for name in found):
            yield f"lora.modules_to_save: {wanted!r} holds layers that get an adapter by lora.target_modules"
        elif ties and last(wanted) not in TIED:
            yield (
                f"lora.modules_to_save: {wanted!r} is input and output of this base, and PEFT keeps such a "
                f"tie only under the names {' and '.join(TIED)}; leave it out"
            )


def _adapted_inside(name: str, modules: dict[str, Any], targets: Sequence[str]) -> bool:
    inside = [other for other in modules if other == name or other.startswith(f"{name}.")]
    if targets == [ALL_LINEAR]:
        return any(isinstance(modules[other], torch.nn.Linear) and other != "lm_head" for other in inside)
    return any(_is_named(other, target) for other in inside for target in targets)


def _nearest(name: str, known: Sequence[str]) -> str:
    """Return the nearest names, and all of them."""
    names = sorted({last(each) for each in known if not last(each).isdecimal()})
    near = difflib.get_close_matches(name, names, 3, CLOSE)
    return (f"did you mean {' or '.join(near)}? It" if near else "it") + f" has {', '.join(names)}"
