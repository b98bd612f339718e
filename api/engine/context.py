"""What a model can hold: so many tokens of prompt and answer together, and no ids but its own."""

from api.errors import ContextLengthExceeded, InvalidRequest
from api.generation.schema import Sampling


def token_budget(
    prompt_tokens: int, asked: int | None, max_model_len: int, prompt_field: str, limit_field: str
) -> int:
    """How many tokens may be generated: what was asked, or all that the context has left.

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


def require_known_tokens(request: Sampling, vocab_size: int) -> None:
    """Raises: InvalidRequest naming the field with a token id that the model does not have."""
    for name, ids in request.token_ids():
        if (id := max(ids, default=0)) >= vocab_size:
            raise InvalidRequest(f"The model has no token {id}: its ids end at {vocab_size - 1}.", param=name)
