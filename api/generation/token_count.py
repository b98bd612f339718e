"""Count the tokens of a request's prompts, and generate nothing."""

import asyncio

from api.generation.request import GenerationRequest
from api.generation.runner import Runner
from api.http.state import RequestState


async def count_tokens(runner: Runner, request: GenerationRequest, state: RequestState) -> int:
    """Return the number of tokens of all prompts; it costs the key a request.

    Rendering takes a place as answers do: an overloaded service has no time for it either.
    Raises: ApiError.
    """
    if state.key is not None:
        runner.ledger.check(state.key, 1)
    with runner.admission.places(1):
        served = runner.lifecycle.require_ready()
        if state.key is not None:
            reservation = await runner.ledger.admit(state.key, 1, 1)
            reservation.settle(0, 0)
        prompts, ignored = await asyncio.to_thread(request.encode, served.prompt)
        state.ignored |= ignored
        return sum(map(len, prompts))
