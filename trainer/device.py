"""Choose the device that computes, and describe the machine for the record."""

import os
import platform
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.errors import MissingError


def choose_device(wanted: Literal["auto", "cpu", "cuda"]) -> str:
    """Return `cuda` or `cpu`. Raises: MissingError if the configuration asks for CUDA and there is none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise MissingError("train.device is cuda, and torch sees no CUDA device on this machine")
    return "cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu"


def memory_gib(device: str) -> float:
    """Return the memory of the GPU, or of this machine."""
    if device == "cuda":
        return float(torch.cuda.mem_get_info()[1]) / 2**30
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30


def describe_hardware() -> dict[str, Any]:
    """Return processor, cores, memory_gib and accelerator (None without a GPU)."""
    return {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_gib("cpu"), 1),
        "accelerator": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
