"""Engine settings by what a GPU is for; docs/operations.md says why, and what has been measured.

Names and values are vLLM's own, the same in 0.26 and 0.33. A CPU has no presets.
"""

from typing import Any

from api.settings import Preset

# `performance_mode`: a graph for every batch of up to 32, or twice the tokens a step that vLLM gives the GPU.
PRESETS: dict[Preset, dict[str, Any]] = {
    "auto": {},  # the weights as they were verified, and what vLLM's own server would choose for this GPU
    "latency": {"quantization": "fp8", "performance_mode": "interactivity"},
    "throughput": {"quantization": "fp8", "kv_cache_dtype": "fp8", "performance_mode": "throughput"},
}
