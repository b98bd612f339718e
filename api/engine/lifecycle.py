"""The life of the service: starting → ready → draining → stopped; restarting when the engine dies, or failed.

HTTP is open in every state but the last two; this module says whether a request may begin, and
ends those that run when the time to drain is over.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Coroutine
from enum import StrEnum
from typing import Any

from starlette.types import Receive

from api.access.admission import Admission
from api.engine.artifact import Artifact
from api.engine.engine import Engine
from api.engine.prompt import Prompt
from api.errors import ApiError, ClientGone, EngineFailed, EngineStartError, NotReady, StartError
from api.schema.chat import ChatMessage
from api.schema.generation import Sampling
from api.telemetry import Metrics, log

PROBE = "probe"  # the request id of the token that proves that the engine works
PROBE_TIMEOUT_S = 60.0
LOOK_EVERY_S = 0.25
PAUSES_S = (0.0, 1.0, 4.0, 15.0, 60.0)  # before each attempt to restart a dead engine
_CUT_GRACE_S = 1.0


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


_EXPLANATIONS = {
    State.STARTING: "The model is being loaded. Try again in a few seconds.",
    State.READY: "Ready.",
    State.RESTARTING: "The engine has failed and is being restarted. Try again in a few seconds.",
    State.DRAINING: "The service is stopping; requests that run may finish.",
    State.STOPPED: "The service has stopped.",
    State.FAILED: "The engine has failed and could not be restarted.",
}


class Lifecycle:
    """Owns the engine and the prompt, and every request's right to go on.

    make_engine: a new one for every start. failure: why the service must end, once it must.
    """

    def __init__(
        self,
        artifact: Artifact,
        make_engine: Callable[[], Engine],
        admission: Admission,
        metrics: Metrics,
        drain_timeout_s: float,
    ) -> None:
        self._artifact = artifact
        self._make_engine = make_engine
        self._engine = make_engine()
        self._admission = admission
        self._metrics = metrics
        self._drain_timeout_s = drain_timeout_s
        self._state = State.STARTING
        self._prompt: Prompt | None = None
        self._cut = asyncio.Event()
        self._running: asyncio.Task[None] | None = None
        self.failure: StartError | None = None

    @property
    def state(self) -> State:
        if self._state is State.READY and self._engine.is_dead:
            return State.RESTARTING
        return self._state

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self.state]

    def require_ready(self) -> tuple[Engine, Prompt]:
        """Raises: EngineFailed, NotReady (both 503)."""
        if self.state in (State.FAILED, State.RESTARTING):
            raise EngineFailed(self.explanation)
        if self.state is not State.READY or self._prompt is None:
            raise NotReady(self.explanation)
        return self._engine, self._prompt

    def start(self) -> None:
        """Begin to load, then watch over the engine until `stop`."""
        self._running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        begun = time.monotonic()
        try:
            await _in_thread(self._load)
            await self._probe()
        except StartError as error:
            self._fail(error)
            return
        except Exception as error:
            self._fail(StartError(f"cannot load {self._artifact.directory}: {error!r}"))
            return
        if self._state is State.STARTING:
            self._ready(begun)
            for gate in self._artifact.failed_gates:
                log.warning("event=failed_gate model=%s gate=%r", self._artifact.name, gate)
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            if self.state is State.RESTARTING:
                await self._restart()

    def _load(self) -> None:
        self._artifact.verify()
        self._prompt = Prompt.load(self._artifact.directory)
        self._engine.start()

    async def _probe(self) -> None:
        """Raises: EngineStartError unless the engine generates a token."""
        assert self._prompt
        ids = self._prompt.encode([ChatMessage(role="user", content="Hi")])
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                async for _ in self._engine.generate(PROBE, ids, Sampling(), 1, stream=False):
                    pass
        except (ApiError, TimeoutError) as error:
            raise EngineStartError(f"the engine started and generates nothing: {error!r}") from None

    async def _restart(self) -> None:
        self._state = State.RESTARTING
        self._metrics.engine_restarts.inc()
        log.error("event=engine_dead")
        failure = EngineStartError("the engine died")
        for pause_s in PAUSES_S:
            await asyncio.to_thread(self._engine.shutdown)
            await asyncio.sleep(pause_s)
            begun = time.monotonic()
            self._engine = self._make_engine()
            try:
                await _in_thread(self._engine.start)
                await self._probe()
            except EngineStartError as error:
                failure = error
                log.error("event=restart_failed error=%r", str(error))
            else:
                if self._state is State.RESTARTING:
                    self._ready(begun)
                return
        self._fail(failure)

    def _ready(self, begun: float) -> None:
        self._state = State.READY
        log.info("event=ready model=%s duration_s=%.1f", self._artifact.name, time.monotonic() - begun)

    def _fail(self, failure: StartError) -> None:
        if self._state in (State.STARTING, State.RESTARTING):
            self._state, self.failure = State.FAILED, failure

    async def guard(self, work: Coroutine[Any, Any, None], receive: Receive) -> None:
        """Run `work` to its end, unless the client hangs up or the time to drain is over.

        Work that is cancelled is awaited, so that its abort has reached the engine.
        Raises: ClientGone, NotReady, or what `work` raises.
        """
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_disconnected(receive))
        cut = asyncio.ensure_future(self._cut.wait())
        try:
            await asyncio.wait({task, gone, cut}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for future in (task, gone, cut):
                future.cancel()
        await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        elif self._cut.is_set():
            raise NotReady("The service stopped before this answer was complete.")
        else:
            raise ClientGone

    async def drain(self) -> None:
        """Refuse what is new, let what runs finish in time, then cut it."""
        self._state = State.DRAINING
        log.info("event=draining timeout_s=%g", self._drain_timeout_s)
        if not await self._admission.wait_idle(self._drain_timeout_s):
            log.warning("event=cut reason=drain_timeout")
            self._cut.set()
            await self._admission.wait_idle(_CUT_GRACE_S)

    async def stop(self) -> None:
        """End the engine; a failure stays visible as the last state."""
        if self._running is not None:
            self._running.cancel()
        if self._state is not State.FAILED:
            self._state = State.STOPPED
        await asyncio.to_thread(self._engine.shutdown)
        log.info("event=stopped")


def _in_thread(work: Callable[[], None]) -> asyncio.Future[None]:
    """A daemon: an import or a load cannot be interrupted, and must not keep the process."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()

    def tell(error: BaseException | None) -> None:
        if done.cancelled():
            return
        if error is None:
            done.set_result(None)
        else:
            done.set_exception(error)

    def run() -> None:
        try:
            work()
        except Exception as error:
            outcome: Exception | None = error
        else:
            outcome = None
        with contextlib.suppress(RuntimeError):  # the loop has ended: stopped while loading
            loop.call_soon_threadsafe(tell, outcome)

    threading.Thread(target=run, name="engine-start", daemon=True).start()
    return done


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
