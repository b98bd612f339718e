"""Take the settings of a run that goes on from an adapter from that adapter, a PEFT directory.

Its rank, alpha, layers and kind of LoRA are its own. `fit.run.adapter` checks whether it fits the base.
"""

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.adapter_file import CONFIG, WEIGHTS, tensors
from trainer.config_words import short
from trainer.errors import ConfigError
from trainer.files import read_json

# Fields of PEFT that are read here, or that change nothing of what the adapter computes. Every other field
# must be off, because each version of PEFT adds some.
KNOWN = frozenset(
    ("peft_type", "r", "lora_alpha", "target_modules", "exclude_modules", "task_type", "inference_mode",
     "peft_version", "base_model_name_or_path", "revision", "auto_mapping", "lora_dropout", "megatron_core",
     "qalora_group_size", "use_rslora", "use_dora", "modules_to_save", "ensure_weight_tying")
)  # fmt: skip
OFF: tuple[Any, ...] = (None, False, "none", [], {})
# Other ways to begin an adapter take a part of the base away, which is not in the adapter's files.
PLAIN_INITS: tuple[Any, ...] = (True, False, "gaussian", "eva", "orthogonal")


def take_settings(values: dict[str, Any]) -> None:
    """Complete a configuration that names `lora.adapter` with the adapter's own settings and rank.

    values: as the YAML file has them. Raises: ConfigError if the adapter cannot be trained on, or if the
    configuration says otherwise.
    """
    lora, sweep = values.get("lora"), values.get("sweep")
    if not (isinstance(lora, dict) and isinstance(lora.get("adapter"), str) and isinstance(sweep, dict)):
        return
    directory = Path(lora["adapter"])
    rank, own = read_settings(directory)
    problems = []
    for name, given in lora.items():
        known = "alpha" if name == "scaling" else name  # PEFT keeps alpha only
        if known in own and given is not None and (name == "scaling" or given != own[name]):
            problems.append(
                f"lora.{name}: the adapter {directory} has {known} {short(own[known])}; leave {name} out"
            )
    if sweep.get("ranks") not in (None, [rank]):
        problems.append(
            f"sweep.ranks: the adapter {directory} has rank {rank}, and only learning rates and seeds can be "
            "swept; leave ranks out"
        )
    if problems:
        raise ConfigError("; ".join(problems))
    lora.update(own)
    sweep["ranks"] = [rank]


def read_settings(directory: Path) -> tuple[int, dict[str, Any]]:
    """Return an adapter's rank, and its settings under the names of `LoraConfig`.

    Raises: ConfigError with a sentence for everything that cannot be trained on.
    """
    config = read_json(directory / CONFIG)
    if not isinstance(config, dict):
        whole = (
            ": it is a whole model, which base.path takes" if (directory / "config.json").is_file() else ""
        )
        raise ConfigError(f"lora.adapter {directory} has no readable {CONFIG}{whole}")
    if problems := list(_problems(config)):
        raise ConfigError(f"lora.adapter {directory}: {'; '.join(problems)}")
    layers = {name.partition(".lora_")[0] for name in tensors(directory) if ".lora_" in name}
    own = {
        "alpha": config["lora_alpha"],
        "target_modules": sorted({name.rpartition(".")[2] for name in layers}),
        "rslora": bool(config.get("use_rslora")),
        "dora": bool(config.get("use_dora")),
        "modules_to_save": config.get("modules_to_save") or [],
    }
    if not layers:
        raise ConfigError(f"lora.adapter {directory}: {WEIGHTS} holds no adapter of a layer")
    return config["r"], own


def _problems(config: dict[str, Any]) -> Iterator[str]:
    if config.get("peft_type") != "LORA":
        yield f"peft_type is {short(config.get('peft_type'))}, and only LORA is trained"
        return
    rank, alpha = config.get("r"), config.get("lora_alpha")
    if type(rank) is not int or rank < 1:
        yield f"r is {short(rank)}, expected a rank of 1 or more"
    if (
        isinstance(alpha, bool)
        or not isinstance(alpha, int | float)
        or not math.isfinite(alpha)
        or alpha <= 0
    ):
        yield f"lora_alpha is {short(alpha)}, expected a number above 0"
    for name, value in config.items():
        if name == "init_lora_weights" and value not in PLAIN_INITS:
            yield f"init_lora_weights is {short(value)}: such an adapter belongs to a base that it changed"
        elif name not in KNOWN and name != "init_lora_weights" and value not in OFF:
            yield f"{name} is {short(value)}, and only adapters without it can be trained on"
