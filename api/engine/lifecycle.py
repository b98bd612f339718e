"""The life of the service: starting → ready → draining → stopped, or failed.

HTTP is open in every state but the last two; this module says whether a request may begin, and
ends those that run when the time to drain is over.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Coroutine
from enum import StrEnum
from typing import Any

from starlette.types import Receive

from api.access.admission import Admission
from api.engine.artifact import Artifact
from api.engine.engine import Engine
from api.engine.prompt import Prompt
from api.errors import ClientGone, EngineFailed, NotReady, StartError
from api.telemetry import log

_CUT_GRACE_S = 1.0


class State(StrEnum):
    STARTING = "starting"
    READY = "ready"
    DRAINING = "draining"
    STOPPED = "stopped"
    FAILED = "failed"


_EXPLANATIONS = {
    State.STARTING: "The model is being loaded. Try again in a few seconds.",
    State.READY: "Ready.",
    State.DRAINING: "The service is stopping; requests that run may finish.",
    State.STOPPED: "The service has stopped.",
    State.FAILED: "The engine has failed and must be restarted.",
}


class Lifecycle:
    """Owns the engine and the prompt, and every request's right to go on."""

    def __init__(
        self, artifact: Artifact, engine: Engine, admission: Admission, drain_timeout_s: float
    ) -> None:
        self._artifact = artifact
        self._engine = engine
        self._admission = admission
        self._drain_timeout_s = drain_timeout_s
        self._state = State.STARTING
        self._prompt: Prompt | None = None
        self._cut = asyncio.Event()
        self.failure: StartError | None = None

    @property
    def state(self) -> State:
        if self._state is State.READY and self._engine.is_dead:
            return State.FAILED
        return self._state

    @property
    def explanation(self) -> str:
        return _EXPLANATIONS[self.state]

    def require_ready(self) -> tuple[Engine, Prompt]:
        """Raises: EngineFailed, NotReady (both 503)."""
        if self.state is State.FAILED:
            raise EngineFailed(self.explanation)
        if self.state is not State.READY or self._prompt is None:
            raise NotReady(self.explanation)
        return self._engine, self._prompt

    def start(self) -> None:
        """Begin to load in a thread. A daemon: an import or a load cannot be interrupted."""
        loop = asyncio.get_running_loop()
        threading.Thread(target=self._load, args=(loop,), name="engine-start", daemon=True).start()

    def _load(self, loop: asyncio.AbstractEventLoop) -> None:
        begun = time.monotonic()
        failure: StartError | None = None
        prompt: Prompt | None = None
        try:
            self._artifact.verify()
            prompt = Prompt.load(self._artifact.directory)
            self._engine.start()
        except StartError as error:
            failure = error
        except Exception as error:
            failure = StartError(f"cannot load {self._artifact.directory}: {error!r}")
        duration_s = time.monotonic() - begun
        with contextlib.suppress(RuntimeError):  # the loop has ended: stopped while loading
            loop.call_soon_threadsafe(self._loaded, prompt, failure, duration_s)

    def _loaded(self, prompt: Prompt | None, failure: StartError | None, duration_s: float) -> None:
        if self._state is not State.STARTING:
            return
        self._prompt = prompt
        self.failure = failure
        self._state = State.READY if failure is None else State.FAILED
        if failure is None:
            log.info("event=ready model=%s duration_s=%.1f", self._artifact.name, duration_s)
            for gate in self._artifact.failed_gates:
                log.warning("event=failed_gate model=%s gate=%r", self._artifact.name, gate)

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
        if self._state is not State.FAILED:
            self._state = State.STOPPED
        await asyncio.to_thread(self._engine.shutdown)
        log.info("event=stopped")


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
