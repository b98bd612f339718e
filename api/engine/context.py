"""Check requests against the model's context length and vocabulary."""

from collections.abc import Iterable

from api.errors import ContextLengthExceeded, InvalidRequest


def token_budget(
    prompt_tokens: int, asked: int | None, max_model_len: int, prompt_field: str, limit_field: str
) -> int:
    """Return how many tokens may be generated: as many as asked for, or all that the context has left.

    Raises: ContextLengthExceeded if prompt and answer do not fit together.
    """
    room = max_model_len - prompt_tokens
    if room < (asked or 1):
        wish = f"{asked} tokens of answer" if asked else "an answer"
        raise ContextLengthExceeded(
            f"The context holds {max_model_len} tokens; the prompt takes {prompt_tokens}, which "
            f"leaves no room for {wish}.",
            param=prompt_field if room < 1 else limit_field,
        )
    return asked or room


def require_known_tokens(field: str, ids: Iterable[int], vocab_size: int) -> None:
    """Refuse token ids that the model does not have. Raises: InvalidRequest naming the field."""
    if (id := max(ids, default=0)) >= vocab_size:
        raise InvalidRequest(f"The model has no token {id}: its ids end at {vocab_size - 1}.", param=field)
