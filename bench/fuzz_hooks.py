"""Give schemathesis the name of the served model and the allowed answers, for bench/endurance.py."""

import os
from typing import Any

import schemathesis
from schemathesis import Case, CheckContext, GenerationMode, Response

MODEL = os.environ["FUZZ_MODEL"]
# A request that the document allows may still be refused for reasons that a document cannot express.
UNSAYABLE = (
    "maximum context length",
    "prompt is too long",
    "has no token",
    "at least one token",
    "no tools to choose from",
    "there are two functions",
    "there is no function",
    "of type 'object'",
    "(at ",  # the place in a JSON Schema of something that the API does not enforce
    "a schema ",
    "cannot be enforced",
    "could end an answer before",
    "ends where the schema ends",
    "an answer may have at most",
    "belong",  # rules between fields
    "is missing",
    "is only allowed when stream",
    "it answers a call that is not before it",
    "needs logprobs",
    "needs a last message",
    "must have one that the model is shown",
    "needs add_generation_prompt",
    "has no such variable",
    "cannot continue a message",
    "only a message of the assistant",
    "chat template refuses",
    "more than 32768 values",
    "input: is empty",  # all of its items are left out
    # 64-bit limits, which schemathesis rounds to the precision of a float:
    "9223372036854775807",
    "must be an integer",
)


@schemathesis.hook  # type: ignore[untyped-decorator, unused-ignore]
def map_body(context: object, body: object) -> object:
    """Use the served model's name: with invented names three of four requests would end with a 404.

    17.0 is an integer to JSON Schema but not to the API, and no client writes integers that way.
    """
    if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) <= 256:
        body = {**body, "model": MODEL}
    return _as_written(body)


def _as_written(value: object) -> object:
    if isinstance(value, dict):
        return {name: _as_written(part) for name, part in value.items()}
    if isinstance(value, list):
        return [_as_written(part) for part in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value


@schemathesis.check
def no_defect(context: CheckContext, response: Response, case: Case[Any]) -> None:
    assert response.status_code < 500 or response.status_code == 503, response.text


@schemathesis.check
def refused_for_a_reason(context: CheckContext, response: Response, case: Case[Any]) -> None:
    valid = case.meta is not None and case.meta.generation.mode is GenerationMode.POSITIVE
    if valid and response.status_code == 400:
        assert any(reason in response.text for reason in UNSAYABLE), response.text
