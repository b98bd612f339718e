"""Set the environment variables that vLLM and its libraries read."""

import os


def set_engine_environment() -> None:
    """Set defaults for vLLM and its libraries; variables that the operator has set stay."""
    cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    for name, value in {
        "HF_HUB_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL": "http/protobuf",  # as in tracing.py; vLLM's default is gRPC
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "VLLM_ENABLE_STARTUP_PLAN": "1",  # vLLM measures the cache's memory on this GPU only once
        # For vLLM's processes: the leftovers of a killed worker are cleaned up, so nobody need be warned.
        "PYTHONWARNINGS": "ignore:resource_tracker:UserWarning,ignore::FutureWarning",
        # vLLM leaves one core unused on x86, which costs a small machine a third of its speed.
        "VLLM_CPU_OMP_THREADS_BIND": cores,
    }.items():
        os.environ.setdefault(name, value)
