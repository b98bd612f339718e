"""Look at each answer that had to obey a schema once it is complete."""

from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing

import orjson

from api.engine.delta import Delta
from api.errors import EngineFailed

Check = Callable[[str], Awaitable[str]]


async def checked(
    deltas: AsyncGenerator[Delta, None],
    check: Check | None,
    read: Callable[[str], str],
    errors: dict[int, str],
    may_be_cut: bool,
) -> AsyncGenerator[Delta, None]:
    """Yield `deltas`. Before the last of an answer, write into `errors` how the answer disobeys its schema.

    check: returns that, or "" for an answer that obeys; None if the engine enforces all of the schema.
    read: returns an answer that is a call as JSON, and any other as it is.
    may_be_cut: strings of the client end an answer.

    Raises: EngineFailed for an answer that has ended by itself and is no JSON: vLLM ends an answer without a
    word if the grammar library reaches one of its limits.
    """
    written: defaultdict[int, list[str]] = defaultdict(list)
    async with aclosing(deltas):
        async for delta in deltas:
            written[delta.index].append(delta.text)
            if delta.finish_reason is not None:
                answer = read("".join(written.pop(delta.index)))
                if delta.finish_reason == "stop" and not may_be_cut and not _is_json(answer):
                    raise EngineFailed("The answer could not be held to its schema. Try again.")
                if check is not None and (error := await check(answer)):
                    errors[delta.index] = error
            yield delta


def _is_json(text: str) -> bool:
    try:
        orjson.loads(text)
    except orjson.JSONDecodeError:
        return False
    return True
