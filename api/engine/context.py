"""Check requests against the model's context length and vocabulary."""

from collections.abc import Iterable

from api.errors import ContextLengthExceeded, InvalidRequest


def token_budget(
    prompt_tokens: int,
    asked: int | None,
    max_model_len: int,
    prompt_field: str,
    limit_field: str,
    *,
    strict: bool,
) -> int:
    """Return how many tokens may be generated: as many as asked for, but no more than the context has left.

    strict: refuse to generate fewer than asked for. Raises: ContextLengthExceeded, also if no token is left.
    """
    room = max_model_len - prompt_tokens
    needed = asked if strict and asked else 1
    if room < needed:
        completion = asked or 1  # an answer has one token at least
        total = prompt_tokens + completion
        # Clients recognise this error by OpenAI's sentence (LiteLLM) or by the code in it (LangChain).
        raise ContextLengthExceeded(
            f"This model's maximum context length is {max_model_len} tokens. However, you requested "
            f"{total} tokens ({prompt_tokens} in the {prompt_field}, {completion} in the completion). Please "
            f"reduce the length of the {prompt_field} or completion. "
            f"({ContextLengthExceeded.code})",
            param=prompt_field if room < 1 else limit_field,
            prompt_tokens=prompt_tokens,
            answer_tokens=completion,
            context=max_model_len,
        )
    return min(asked or room, room)


def require_known_tokens(field: str, ids: Iterable[int], vocab_size: int) -> None:
    """Refuse token ids that the model does not have. Raises: InvalidRequest naming the field."""
    if (id := max(ids, default=0)) >= vocab_size:
        raise InvalidRequest(f"The model has no token {id}: its ids end at {vocab_size - 1}.", param=field)
