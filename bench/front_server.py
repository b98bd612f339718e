"""Run one of the servers of bench/front.py, which starts this program: complete, but without an engine core.

`stock` runs as `vllm serve` does, `ours` as `python -m api serve` does. Without a pace, `AsyncLLM.generate`
yields a word whenever a stream wants one. With a pace, a core that computes nothing stands in for the GPU.
"""

import argparse
import asyncio
import os
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

WORD = 1000  # the id of a token that is a piece of text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("server", choices=("stock", "ours"))
    parser.add_argument("--artifacts", type=Path, required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--pace", type=int, help="tokens a second of each stream")
    options = parser.parse_args()
    serve(options.server, (options.artifacts / "models" / "current").resolve(), options.port, options.pace)


def serve(server: str, model: Path, port: int, pace: int | None) -> None:
    """Run a complete server in this process, on an AsyncLLM without an engine core."""
    leave_out_the_core(pace)
    if server == "ours":
        for name, value in {"MAX_NUM_SEQS": 1024, "MAX_QUEUE": 4096, "MAX_QUEUE_TOKENS": 10**8}.items():
            os.environ[f"API_{name}"] = str(value)
        sys.argv = ["api", "serve"]
        from api.cli import main as serve_ours

        raise SystemExit(serve_ours())
    import runpy

    sys.argv = ["api_server", "--model", str(model), "--port", str(port), "--host", "127.0.0.1"]
    sys.argv += ["--max-model-len", "2048", "--max-num-seqs", "1024", "--enforce-eager"]
    runpy.run_module("vllm.entrypoints.openai.api_server", run_name="__main__")


def leave_out_the_core(pace: int | None) -> None:
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from vllm.outputs import CompletionOutput, RequestOutput
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine import async_llm

    async def generate(
        self: Any, prompt: Any, sampling_params: Any, request_id: str, **_: Any
    ) -> AsyncIterator[RequestOutput]:
        streams = sampling_params.output_kind == RequestOutputKind.DELTA
        count = sampling_params.max_tokens if streams else 1
        for left in range(count - 1, -1, -1):
            await asyncio.sleep(0)  # let all other tasks run
            reason = None if left else "length"
            completion = CompletionOutput(0, " word", [7], None, None, finish_reason=reason)
            yield RequestOutput(request_id, None, prompt["prompt_token_ids"], None, [completion], not left)

    if pace is None:
        setattr(async_llm.AsyncLLM, "generate", generate)  # noqa: B010
    core = NoCore() if pace is None else PacedCore(pace)
    async_llm.EngineCoreClient.make_async_mp_client = staticmethod(lambda *_, **__: core)


class NoCore:
    """Stand in for the client of an engine core, as far as AsyncLLM and the servers use it."""

    engine_ranks_managed = (0,)
    resources = SimpleNamespace(engine_dead=False)

    async def get_supported_tasks_async(self) -> tuple[str, ...]:
        return ("generate",)

    async def get_output_async(self) -> None:
        await asyncio.Event().wait()

    def shutdown(self, timeout: float | None = None) -> None: ...

    def __getattr__(self, name: str) -> Any:
        if not name.endswith("_async"):
            raise AttributeError(name)

        async def nothing(*_: Any, **__: Any) -> None: ...

        return nothing


class PacedCore(NoCore):
    """Give all requests a token at the same time, `pace` times a second."""

    def __init__(self, pace: int) -> None:
        self._step_s = 1 / pace
        self._left: dict[str, int] = {}  # tokens left, by request
        self._next_step = 0.0

    async def add_request_async(self, request: Any) -> None:
        self._left[request.request_id] = request.sampling_params.max_tokens

    async def abort_requests_async(self, request_ids: list[str]) -> None:
        for id in request_ids:
            self._left.pop(id, None)

    async def get_output_async(self) -> Any:
        from vllm.v1.engine import EngineCoreOutput, EngineCoreOutputs, FinishReason

        self._next_step = max(self._next_step + self._step_s, time.monotonic())
        await asyncio.sleep(self._next_step - time.monotonic())
        self._left = {id: left - 1 for id, left in self._left.items() if left}
        outputs = [
            EngineCoreOutput(id, [WORD], finish_reason=None if left else FinishReason.LENGTH)
            for id, left in self._left.items()
        ]
        return EngineCoreOutputs(outputs=outputs)


if __name__ == "__main__":
    main()
