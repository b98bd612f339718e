"""Load a model for serving: verify it, start its engine, and have it generate a token."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from api.engine.artifact import Artifact
from api.engine.engine import Engine
from api.engine.messages import Message
from api.engine.prompt import Prompt
from api.engine.sampling import Sampling
from api.errors import ApiError, EngineStartError, StartError

PROBE = "probe"  # the request id of the token that shows that the engine works
PROBE_TIMEOUT_S = 60.0


class ServedModel:
    """A model that is being served: its artifact, its engine and its prompt template."""

    def __init__(self, artifact: Artifact, engine: Engine, prompt: Prompt) -> None:
        self.artifact = artifact
        self.engine = engine
        self.prompt = prompt
        self._users = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextlib.contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep the engine running while a request uses it."""
        self._users += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._users -= 1
            if self._users == 0:
                self._unused.set()

    async def wait_until_unused(self) -> None:
        await self._unused.wait()


async def load(artifact: Artifact, engine: Engine) -> ServedModel:
    """Verify the artifact, start the engine and have it generate a token. Raises: StartError."""

    def start() -> Prompt:
        with ThreadPoolExecutor(1) as pool:  # hash files while libraries are imported
            verified = pool.submit(artifact.verify)
            engine.import_libraries()
            verified.result()
        prompt = Prompt.load(artifact.directory)
        engine.start(prompt.thinking)
        return prompt

    try:
        prompt = await _in_thread(start)
        await _probe(engine, prompt)
    except StartError:
        raise
    except Exception as error:
        raise StartError(f"cannot load {artifact.directory}: {error!r}") from error
    return ServedModel(artifact, engine, prompt)


async def _probe(engine: Engine, prompt: Prompt) -> None:
    """Generate one token with every model. Raises: EngineStartError if one of them does not."""
    ids = prompt.encode([Message("user", "Hi")])
    for model in engine.models:
        try:
            async with asyncio.timeout(PROBE_TIMEOUT_S):
                async for _ in engine.generate(PROBE, ids, Sampling(), 1, stream=False, model=model):
                    pass
        except (ApiError, TimeoutError) as error:
            raise EngineStartError(
                f"the engine started and generates nothing as {model!r}: {error!r}"
            ) from None


def _in_thread(work: Callable[[], Any]) -> asyncio.Future[Any]:
    """Run `work` in a daemon thread: an import or a load cannot be interrupted and must not block an exit."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Any] = loop.create_future()

    def finish(result: Any, error: Exception | None) -> None:
        if not done.cancelled():
            done.set_exception(error) if error else done.set_result(result)

    def run() -> None:
        result, failure = None, None
        try:
            result = work()
        except Exception as error:
            failure = error
        with contextlib.suppress(RuntimeError):  # the loop has ended: the service stopped while loading
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=run, name="engine-start", daemon=True).start()
    return done
