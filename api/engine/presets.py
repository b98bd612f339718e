"""Engine settings by the hardware, and by what a GPU is for; docs/operations.md says what is measured.

Names and values are vLLM's own, the same in 0.26 and 0.32. A CPU has no presets.
"""

import os
from typing import Any

from api.errors import EngineStartError
from api.settings import Preset, Settings

# `performance_mode`: a graph for every batch of up to 32, or twice the tokens a step that vLLM gives the GPU.
PRESETS: dict[Preset, dict[str, Any]] = {
    "auto": {},  # the weights as they were verified, and what vLLM's own server would choose for this GPU
    "latency": {"quantization": "fp8", "performance_mode": "interactivity"},
    "throughput": {"quantization": "fp8", "kv_cache_dtype": "fp8", "performance_mode": "throughput"},
}


def hardware_arguments(settings: Settings, engines: int) -> dict[str, Any]:
    """vLLM's, for this machine. Raises: EngineStartError if it has not what the settings need."""
    import torch
    from vllm.platforms import current_platform

    cpu = current_platform.is_cpu()
    gpus = 0 if cpu else torch.cuda.device_count()
    parallel: dict[str, Any] = {
        "tensor_parallel_size": settings.tensor_parallel_size,
        "data_parallel_size": settings.data_parallel_size,
    }
    if settings.tensor_parallel_size > 1:  # behind Ray Serve vLLM would have Ray place its workers
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
    # Nothing to compile without inductor's C++ compiler: the sampler's @torch.compile runs eagerly.
    os.environ.setdefault("TORCHDYNAMO_DISABLE", "1")
    # Below AVX-512 oneDNN has no bfloat16 product and torch's own is several times slower.
    fast_bfloat16 = torch.backends.cpu.get_cpu_capability().startswith("AVX512")
    return {
        "dtype": "bfloat16" if fast_bfloat16 else "float32",
        "enforce_eager": True,
        "kv_cache_memory_bytes": int(settings.kv_cache_gib * 2**30),
    }
