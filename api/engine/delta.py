"""Turn vLLM's output into deltas: what one choice of an answer has received since the last one."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from api.engine.sampling import EngineFinishReason
from api.errors import EngineFailed

NO_LOGPROB = float("nan")
_FINISHED: dict[str, EngineFinishReason] = {"stop": "stop", "length": "length"}


@dataclass(slots=True)  # frozen would cost a microsecond a token
class Delta:
    """Hold what one choice has received since its last delta.

    logprobs: for each token a list of (token id, logprob), the token's own first; those of a prompt that is
    echoed come before them. cached_tokens: tokens of the prompt that came from the cache; set on the
    request's first delta and 0 on the others. stop: the stop string that ended the choice.
    """

    text: str
    tokens: int
    finish_reason: EngineFinishReason | None
    index: int = 0
    logprobs: list[list[tuple[int, float]]] | None = None
    cached_tokens: int = 0
    stop: str | None = None


@dataclass(slots=True)
class ThinkingDelta(Delta):
    """A delta of an answer that may begin with thinking.

    ids: of its tokens. generation/thinking.py takes the thinking out of the text and of `logprobs`.
    """

    ids: Sequence[int] = ()
    thinking: str = ""
    thinking_tokens: int = 0


def delta_of(output: Any, completion: Any, index: int, cached_tokens: int) -> Delta:
    """Return vLLM's output as a Delta. Raises: EngineFailed if the engine has ended the request itself."""
    reason = completion.finish_reason
    if reason is not None and reason not in _FINISHED:
        raise EngineFailed("The engine gave up on this request. Try again.")
    logprobs = None
    if completion.logprobs is not None:
        pairs = zip(completion.token_ids, completion.logprobs, strict=True)
        logprobs = [_own_first(token, found) for token, found in pairs]
    tokens = len(completion.token_ids)
    if reason is None:
        return Delta(completion.text, tokens, None, index, logprobs, cached_tokens)
    stop = completion.stop_reason if isinstance(completion.stop_reason, str) else None  # or a token's id
    return Delta(completion.text, tokens, _FINISHED[reason], index, logprobs, cached_tokens, stop)


def thinking_delta(output: Any, completion: Any, index: int, cached_tokens: int) -> ThinkingDelta:
    """Return vLLM's output as a ThinkingDelta, of which nothing is thinking yet. Raises: EngineFailed."""
    delta = delta_of(output, completion, index, cached_tokens)
    return ThinkingDelta(
        delta.text, delta.tokens, delta.finish_reason, index, delta.logprobs, cached_tokens, delta.stop,
        ids=completion.token_ids,
    )  # fmt: skip


def echoed(prompt_ids: list[int], output: Any, completion: Any, index: int, cached_tokens: int) -> Delta:
    """Return the Delta with the logprobs of the prompt before its own; vLLM gives them once a choice.

    Nothing is before the first token, so it has no logprob.
    """
    delta = delta_of(output, completion, index, cached_tokens)
    if output.prompt_logprobs:
        following = zip(prompt_ids[1:], output.prompt_logprobs[1:], strict=True)
        rows = [_own_first(token, found) for token, found in following]
        delta.logprobs = [[(prompt_ids[0], NO_LOGPROB)], *rows, *(delta.logprobs or [])]
    return delta


def _own_first(token: int, found: dict[int, Any]) -> list[tuple[int, float]]:
    """Return the token's own logprob, followed by all of `found` by rank."""
    ranked = sorted(found.items(), key=lambda item: item[1].rank)
    return [(token, found[token].logprob), *((id, entry.logprob) for id, entry in ranked)]
