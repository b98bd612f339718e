"""Choose vLLM's settings for the hardware and the preset; docs/operations.md has the measurements.

Names and values are vLLM's own, the same in 0.26 and 0.32. A CPU has no presets.
"""

import os
from typing import Any

from api.errors import EngineStartError
from api.settings import Preset, Settings

# `performance_mode`: a CUDA graph for every batch size up to 32 (interactivity), or twice the tokens a step
# that vLLM would choose for the GPU (throughput).
PRESETS: dict[Preset, dict[str, Any]] = {
    "auto": {},  # the verified weights as they are, and vLLM's own choices for this GPU
    "latency": {"quantization": "fp8", "performance_mode": "interactivity"},
    "throughput": {"quantization": "fp8", "kv_cache_dtype": "fp8", "performance_mode": "throughput"},
}


def hardware_arguments(settings: Settings, engines: int) -> dict[str, Any]:
    """Return vLLM's arguments for this machine.

    engines: how many engines share a GPU's memory.
    Raises: EngineStartError if the machine lacks what the settings need.
    """
    import torch
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    gpus = 0 if cpu else torch.cuda.device_count()
    parallel: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
    }
    if settings.tensor_parallel_size > 1:  # behind Ray Serve vLLM would let Ray place its workers
        parallel["distributed_executor_backend"] = "mp"
    needed = settings.tensor_parallel_size * settings.data_parallel_size
    if needed > max(gpus, 1):
        raise EngineStartError(
            f"API_TENSOR_PARALLEL_SIZE × API_DATA_PARALLEL_SIZE = {needed} GPUs are needed, "
            f"and there are {gpus}"
        )
    if not cpu:
        share = settings.gpu_memory_share / engines
        return {"gpu_memory_utilization": share, **parallel, **PRESETS[settings.preset]}
    if settings.preset != "auto":
        raise EngineStartError(f"API_PRESET={settings.preset} needs a GPU, and there is none; use auto")
    # Inductor needs a C++ compiler, which may be missing, so the sampler's @torch.compile runs eagerly.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Without AVX-512 oneDNN has no bfloat16 product, and torch's own is several times slower.
    fast_bfloat16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return {
        "dtype": "bfloat16" if fast_bfloat16 else "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
    }
