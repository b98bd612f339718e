"""The life of a generation request, the same for every dialect.

The request is authorised and validated. Here it is admitted, rendered, generated and sent, whole or as a
stream; then it is accounted. Admission comes before rendering, so that an overloaded service spends no time
on prompts that it will not answer.
"""

import asyncio
import contextlib
import dataclasses
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from typing import Annotated

from fastapi import Header, Response
from pydantic import Field
from pydantic.json_schema import SkipJsonSchema
from starlette.types import Receive, Scope, Send

from api.engine.context import token_budget
from api.engine.delta import Delta
from api.engine.grammars import Grammars
from api.engine.lifecycle import Lifecycle
from api.engine.served import ServedModel
from api.engine.thinking import Thinks
from api.errors import ApiError, ClientGone, DeadlineExceeded
from api.generation.admission import Admission
from api.generation.answer_schema import AnswerSchema
from api.generation.answers import Answers
from api.generation.checked import Check, checked
from api.generation.events import Collected, Dialect, Identity
from api.generation.merged import merged
from api.generation.request import GenerationRequest
from api.generation.thinking import thought
from api.http.state import RequestState
from api.ledger.keys import NORMAL, Key
from api.ledger.ledger import Ledger
from api.telemetry.log import current_request_id
from api.telemetry.metrics import Metrics, Tally

_STREAM_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"x-accel-buffering", b"no"),
]

# A header, because OpenAI's clients set headers and refuse fields they do not know.
Timeout = Annotated[
    Annotated[float, Field(ge=0.001, le=86_400)] | SkipJsonSchema[None],
    Header(alias="x-request-timeout", description="Seconds."),
]


@dataclass(frozen=True, slots=True)
class Runner:
    """The parts of the service that a generation needs.

    timeout_s: the longest that one may take. strict_max_tokens: refuse a limit that the context cannot hold.
    """

    lifecycle: Lifecycle
    admission: Admission
    grammars: Grammars
    ledger: Ledger
    metrics: Metrics
    timeout_s: float
    strict_max_tokens: bool

    def respond(self, request: GenerationRequest, dialect: Dialect, timeout_s: float | None) -> Response:
        """Return a response that generates the answers when it is sent.

        timeout_s: how long the client allows; `self.timeout_s` holds as well.
        """
        timeout_s = self.timeout_s if timeout_s is None else min(timeout_s, self.timeout_s)
        return Generation(self, request, dialect, timeout_s)


class Generation(Response):
    """One request and its answers. It is raw ASGI, so that a chunk goes straight to the server."""

    def __init__(
        self, runner: Runner, request: GenerationRequest, dialect: Dialect, timeout_s: float
    ) -> None:
        super().__init__()
        self._runner = runner
        self._request = request
        self._dialect = dialect
        self._timeout_s = timeout_s
        self._id = f"{dialect.id_prefix}{uuid.uuid4().hex}"
        self._created = int(time.time())
        self._streaming: Answers | None = None  # once the stream has begun

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        runner, request, state = self._runner, self._request, RequestState.of(scope)
        if state.key is not None:  # no work is done for a key that has nothing left
            runner.ledger.check(state.key, request.answers)
        with runner.admission.places(request.answers, request.answers_field):
            try:
                await runner.lifecycle.supervise(self._in_time(state, scope, receive, send), receive)
            except ClientGone:
                runner.metrics.aborted.inc()
            except ApiError as error:
                if self._streaming is None:
                    raise
                state.refusal = error.reason
                last = self._streaming.fail(error)
                await state.send({"type": "http.response.body", "body": last, "more_body": False})

    async def _in_time(self, state: RequestState, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            async with asyncio.timeout(self._timeout_s):
                served = self._runner.lifecycle.require_ready()
                with served.in_use():
                    await self._run(served, state, scope, receive, send)
        except TimeoutError:
            raise DeadlineExceeded(f"The answer was not complete after {self._timeout_s:g} s.") from None

    async def _run(
        self, served: ServedModel, state: RequestState, scope: Scope, receive: Receive, send: Send
    ) -> None:
        runner, request, key = self._runner, self._request, state.key
        prompts, schema, thinks = await self._render(served, state)
        limits = self._limits(prompts, served.engine.max_model_len)
        tally = state.tally = Tally(
            key.name if key else "",
            sum(map(len, prompts)),
            request.answers,
            request.stream,
            runner.metrics,
        )
        if thinks is not None:
            tally.thinking_tokens = 0
        most = tally.prompt_tokens + sum(limits) * request.sampling.choices
        async with contextlib.AsyncExitStack() as held:
            headers = await held.enter_async_context(self._reserved(key, most, tally))
            if schema is not None:
                closing = thinks.closing if thinks else None
                await runner.grammars.require(
                    schema.text, served.artifact, schema.param, closing, schema.rules
                )
            priority = key.priority if key else NORMAL
            turn = runner.admission.turn(tally.key, request.answers, most, priority)
            await held.enter_async_context(turn)
            tally.take_turn()
            identity = Identity(self._id, self._created, request.model, served.artifact.manifest.id)
            errors: dict[int, str] = {}
            deltas = self._generate(served, prompts, limits, key, schema, thinks)
            if thinks is not None:
                deltas = thought(deltas, thinks, request.sampling, served.prompt, request.show_thinking)
            if schema is not None:
                read = partial(request.offer.as_json, prompt=served.prompt)
                deltas = checked(deltas, self._check(schema), read, errors, bool(request.sampling.stop))
            async with aclosing(deltas):
                if request.stream:
                    events = self._dialect.frames(identity, request.answers)
                    answers = Answers(events, request, served.prompt, tally, errors)
                    with runner.metrics.active_streams.track_inprogress():
                        await self._stream(deltas, answers, headers, send, state.send)
                else:
                    collected = Collected(request.answers)
                    answers = Answers(collected, request, served.prompt, tally, errors)
                    async for delta in deltas:
                        answers.read(delta)
                    body = self._dialect.body(identity, collected.answers, answers.usage())
                    await Response(body, 200, headers, "application/json")(scope, receive, send)

    async def _render(
        self, served: ServedModel, state: RequestState
    ) -> tuple[list[list[int]], AnswerSchema | None, Thinks | None]:
        """Return the token ids of every prompt, the schema that an answer must obey, and how it thinks.

        Note in `state` the fields that change nothing.
        """
        request, prompt = self._request, served.prompt
        request.require_known_tokens(served.engine.vocab_size)
        request.require_reachable(served.engine.max_model_len)
        # A long prompt and many schemas take milliseconds: not on the event loop.
        (prompts, ignored), schema = await asyncio.to_thread(
            lambda: (request.encode(prompt), request.answer_schema(prompt))
        )
        state.ignored |= ignored
        request.require_echoable(prompts, served.engine.vocab_size)
        return prompts, schema, request.thinks(prompt, prompts)

    def _limits(self, prompts: list[list[int]], context: int) -> list[int]:
        """Return how many tokens each answer to each prompt may have."""
        asked, fields = self._request.max_tokens, self._request.fields
        strict = self._runner.strict_max_tokens
        return [
            token_budget(len(ids), asked, context, fields.prompt, fields.max_tokens, strict=strict)
            for ids in prompts
        ]

    @contextlib.asynccontextmanager
    async def _reserved(self, key: Key | None, most: int, tally: Tally) -> AsyncIterator[dict[str, str]]:
        """Reserve the most that the request can cost its key; yield the rate-limit headers of the answer.

        A request that had no turn or failed on our side costs no tokens; one that its client left costs the
        tokens that it had by then. Raises: RateLimited before anything is generated.
        """
        if key is None:
            yield {}
            return
        reservation = await self._runner.ledger.admit(key, most, self._request.answers)
        self._runner.metrics.key_requests.labels(key.name).inc()
        ours = False
        try:
            yield reservation.headers()
        except Exception as error:
            ours = not isinstance(error, ClientGone)
            raise
        finally:
            charged = tally.turn is not None and not ours
            used = (tally.prompt_tokens, tally.completion_tokens) if charged else (0, 0)
            reservation.settle(*used)
            self._runner.metrics.key_tokens.labels(key.name).inc(sum(used))

    def _generate(
        self,
        served: ServedModel,
        prompts: list[list[int]],
        limits: list[int],
        key: Key | None,
        schema: AnswerSchema | None,
        thinks: Thinks | None,
    ) -> AsyncGenerator[Delta, None]:
        request, sampling, each_token = self._request, self._request.sampling, self._request.stream
        if thinks is not None and sampling.stop:  # `thought` looks for them
            sampling, each_token = dataclasses.replace(sampling, stop=None), True
        show_controls = bool(request.offer.tools) and served.prompt.calls_in_controls
        salt = self._runner.ledger.cache_salt(key) if key else None
        streams = [
            served.engine.generate(
                f"{current_request_id.get()}.{self._id}-{i}", ids, sampling, limit,
                stream=each_token, model=request.model, logprobs=request.logprobs, cache_salt=salt,
                json_schema=schema.text if schema else None, rules=schema.rules if schema else None,
                echo=request.echo, thinks=thinks, ends=served.prompt.ends, show_controls=show_controls,
            )
            for i, (ids, limit) in enumerate(zip(prompts, limits, strict=True))
        ]  # fmt: skip
        return streams[0] if len(streams) == 1 else merged(streams, sampling.choices)

    async def _stream(
        self,
        deltas: AsyncIterator[Delta],
        answers: Answers,
        headers: dict[str, str],
        send: Send,
        send_body: Send,
    ) -> None:
        """Send events as they come. Headers wait for the first: until then a failure is an HTTP status.

        send_body: the server's own `send`.
        """
        async for delta in deltas:
            if body := answers.read(delta):
                if self._streaming is None:
                    own = [(name.encode(), value.encode()) for name, value in headers.items()]
                    start = {"type": "http.response.start", "status": 200}
                    await send({**start, "headers": [*_STREAM_HEADERS, *own]})
                    self._streaming = answers
                more = answers.running > 0
                await send_body({"type": "http.response.body", "body": body, "more_body": more})

    def _check(self, schema: AnswerSchema) -> Check | None:
        """Return the check of complete answers, or None if the engine enforces all of the schema."""
        if not schema.check:
            return None
        grammars = self._runner.grammars
        return lambda answer: grammars.check(answer, schema.check)
