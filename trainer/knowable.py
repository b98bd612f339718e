"""Find, before anything is trained, what would end the run later or cannot be done with its result.

The stages refuse the same things themselves. Here they are asked as soon as base and data are known.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig

from trainer.base_model import BaseModel, load_tokenizer
from trainer.config import RunConfig
from trainer.data.prepare import Prepared
from trainer.device import choose_device, memory_gib
from trainer.engines.families import unknown_shape
from trainer.errors import ArtifactError, BaseModelError, ConfigError, MissingError
from trainer.files import require_room
from trainer.fit.run.adapter import check_adapter, check_origin
from trainer.fit.run.apart import shares_positions_beyond
from trainer.judge.endings import few_endings, require_endings
from trainer.judge.turns import require_turns
from trainer.licence import llama_terms
from trainer.ship.gguf_families import family_of
from trainer.ship.gguf_tokenizer import name_for, pre_tokenizer_name, rules_of
from trainer.ship.merge import weight_bytes
from trainer.ship.modelfile import go_template
from trainer.ship.stops import template_ends


def check_base(config: RunConfig, model: BaseModel) -> list[str]:
    """Check that the base can be trained as configured, and return remarks on what is not trained.

    Raises: ConfigError or BaseModelError.
    """
    base = model.directory
    remarks = []
    if config.lora and config.lora.adapter:
        remarks.append(check_origin(config.lora.adapter, config.base, model.weights_sha256))
    try:
        shape = AutoConfig.from_pretrained(base, local_files_only=True)
        if config.lora and config.sweep.ranks:
            remarks += check_adapter(base, config.sweep.ranks, config.lora)
    except (KeyError, OSError, ValueError, StrictDataclassError) as error:  # transformers' own
        raise BaseModelError(
            f"the base model {base} is no causal language model that transformers knows: "
            f"{' '.join(str(error).split())[:200]}"
        ) from None
    if config.train.engine == "compiled":
        _check_compiled(shape, config.data.max_length)
    longest = getattr(shape, "max_position_embeddings", None)
    if longest and config.data.max_length > longest:
        raise ConfigError(
            f"data.max_length is {config.data.max_length}, and the base reads at most {longest} tokens: "
            "lower it"
        )
    tokenizer = load_tokenizer(base, config.data.chat_template)
    if tokenizer.chat_template:  # `prepare` says that it needs one
        template_ends(tokenizer)
    if config.lora is None:
        remarks.append(_memory_of_all_weights(config, base))
    return remarks


def _check_compiled(shape: Any, max_length: int) -> None:
    """Raise ConfigError if the compiled engine cannot train this base. max_length: tokens of a row."""
    reason, remedy = unknown_shape(shape), "set train.engine to plain"
    if not reason and max_length > (limit := shares_positions_beyond(shape) or max_length):
        reason = (
            f"packs rows, and {shape.model_type} reads all of a sequence with other positions (longrope) if "
            f"one is over {limit} tokens, as data.max_length of {max_length} allows"
        )
        remedy += f", which trains each row alone, or data.max_length to {limit}"
    if reason:
        raise ConfigError(f"train.engine: the compiled engine {reason}; {remedy}")


def _memory_of_all_weights(config: RunConfig, base: Path) -> str:
    """Return what full fine-tuning takes. Raises: MissingError if the machine can never hold it."""
    sweep = config.sweep
    arms = min(sweep.parallel_arms, len(sweep.learning_rates) * len(sweep.seeds))
    moments = 2 if config.train.optimizer == "adamw_8bit" else 8
    gib = arms * weight_bytes(base, "float32") / 4 * (4 + 4 + moments) / 2**30
    has = memory_gib(choose_device(config.train.device))
    said = (
        f"full fine-tuning keeps {gib:.2f} GiB of weights, gradients and moments in fp32"
        f"{f' for {arms} arms at a time' if arms > 1 else ''}, and activations beside them; this machine has "
        f"{has:.1f} GiB"
    )
    if gib > has:
        raise MissingError(f"{said}. Set `lora`, a smaller base, or lower sweep.parallel_arms")
    return said


def check_data(config: RunConfig, base: Path, prepared: Prepared) -> Iterator[str]:
    """Check that the evaluation can be made of the prepared rows, and that a model of them can end its turns.

    Yields remarks on what the rows cannot show.
    Raises: DataError or BaseModelError.
    """
    test = prepared.rows("test")
    require_turns(test, config.evaluate.turns)
    require_endings(test, config.evaluate)
    template_ends(_tokenizer(config, base, prepared))
    if remark := few_endings(test, config.evaluate):
        yield remark


def check_room(config: RunConfig, base: Path, artifacts: Path) -> None:
    """Check that the disk has room for what is not there yet. Raises: MissingError.

    That is the merged model. In full fine-tuning it is also the weights of each arm and a checkpoint of
    weights and moments, and three more checkpoints of each arm that trains.
    """
    if config.lora is None and not any((artifacts / "runs").glob("full-*")):
        sweep, weights = config.sweep, weight_bytes(base, "float32")
        arms = len(sweep.learning_rates) * len(sweep.seeds)
        needed = weights * (4 * (arms + 1) + 9 * min(sweep.parallel_arms, arms))  # 1: the last training
        require_room(artifacts / "runs", needed, "full fine-tuning, with its checkpoints,")
    if not any((artifacts / "merged").glob(f"{config.name}-*")):
        require_room(artifacts / "merged", weight_bytes(base, config.ship_dtype), "the merged model")


def limits(config: RunConfig, base: Path, prepared: Prepared | None) -> Iterator[str]:
    """Yield what cannot be done with the model once it is made, in one sentence each."""
    yield from _exports(config, base, prepared)
    if llama_terms(config.base.licence) and not any(base.glob("LICENSE*")):
        yield (
            f"`push` will refuse the model: {base} has no LICENSE file, and {config.base.licence} asks for a "
            "copy of it beside the weights; put it there before you train"
        )


def _exports(config: RunConfig, base: Path, prepared: Prepared | None) -> Iterator[str]:
    """Yield what `export` cannot write of a model of this base."""
    tokenizer = _tokenizer(config, base, prepared)
    try:
        family_of(AutoConfig.from_pretrained(base, local_files_only=True))
        pre_tokenizer_name(rules_of(tokenizer))
        name_for(tokenizer, config.name)
    except ArtifactError as error:
        yield f"`export` cannot write GGUF: {error}"
        return
    try:
        go_template(tokenizer)
    except ArtifactError as error:
        yield f"`export` writes GGUF without a Modelfile for Ollama: {error}"


def _tokenizer(config: RunConfig, base: Path, prepared: Prepared | None) -> Any:
    """Return the tokenizer with the chat template that the artifact will have."""
    tokenizer = load_tokenizer(base, config.data.chat_template)
    if prepared and prepared.chat_template:
        tokenizer.chat_template = prepared.chat_template
    return tokenizer
