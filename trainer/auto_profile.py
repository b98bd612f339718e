"""Choose the largest shipped profile that this machine can train and reach, and say why.

A profile is as large as the GPU memory that it states. It can be trained if the whole GPU has that much and
the preflight finds no fault with the device. Memory that other programs hold is not taken off, because a
later run must choose the same. A profile can be reached if the preflight finds its base and data, or if a
model of it was made here before.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from trainer import preflight
from trainer.config import RunConfig
from trainer.config_data import CONFIGS
from trainer.config_file import load

SMALLEST = "quickstart"
GPU_MEMORY_GIB = {"llama-3.2-3b": 32, "llama-3.2-1b": 16, "t4-qlora": 15}  # the largest first


@dataclass(frozen=True, slots=True)
class Gpu:
    """The first CUDA device. memory_gib: as its maker states it, which is a little more than torch sees."""

    name: str
    memory_gib: int


def choose(overrides: Sequence[str], artifacts: Path) -> tuple[str, str]:
    """Return the name of a shipped profile, and one line that says why it and none of the larger.

    overrides: settings of the command line, for each profile. Raises: ConfigError if one of them is wrong.
    """
    gpu = find_gpu()
    if gpu is None:
        return SMALLEST, f"profile {SMALLEST}: it needs no GPU, and torch sees none on this machine"
    refused: dict[str, list[str]] = {}  # reason → profiles
    chosen = SMALLEST
    for name in GPU_MEMORY_GIB:
        reason = next(_reasons(name, gpu, load(CONFIGS / f"{name}.yaml", overrides), artifacts), None)
        if reason is None:
            chosen = name
            break
        refused.setdefault(reason, []).append(name)
    line = f"profile {chosen}: it needs no GPU"
    if chosen != SMALLEST:
        line = f"profile {chosen}: it needs {GPU_MEMORY_GIB[chosen]} GiB of GPU memory, and "
        line += f"{gpu.name} has {gpu.memory_gib}"
    others = "; ".join(f"not {' and '.join(names)}: {reason}" for reason, names in refused.items())
    return chosen, f"{line}; {others}" if others else line


def find_gpu() -> Gpu | None:
    import torch

    if not torch.cuda.is_available():
        return None
    properties = torch.cuda.get_device_properties(0)
    return Gpu(properties.name, round(properties.total_memory / 2**30))


def _reasons(name: str, gpu: Gpu, config: RunConfig, artifacts: Path) -> Iterator[str]:
    """Yield why this machine cannot train or reach a profile. The network is asked last."""
    if gpu.memory_gib < GPU_MEMORY_GIB[name]:
        yield f"it needs {GPU_MEMORY_GIB[name]} GiB"
    yield from preflight.lacking_to_train(config)
    if not any((artifacts / "models").glob(f"{config.name}-*")):
        yield from preflight.lacking_to_reach(config)
