"""DSPy: its model, a stream, and a history.

DSPy asks for no schema where it does not know the model, so that the form of an answer is up to the model:
an answer that it cannot read has come all the same.
"""

import contextlib
import json
from typing import Any

import dspy
from dspy.utils.exceptions import AdapterParseError
from litellm import ContextWindowExceededError
from steps import CITY, COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

lm = dspy.LM(f"openai/{MODEL}", api_base=V1, api_key=KEY, max_tokens=32, cache=False, num_retries=0)
dspy.configure(lm=lm, adapter=dspy.JSONAdapter())
FORMAT: Any = {"type": "json_schema", "json_schema": {"name": "city", "schema": CITY, "strict": True}}


class Answer(dspy.Signature):
    """Answer briefly."""

    history: dspy.History = dspy.InputField()
    question: str = dspy.InputField()
    answer: str = dspy.OutputField()


@step
def plain() -> None:
    assert lm(COLOR)[0]


@step
def schema() -> None:
    assert json.loads(lm(COLOR, response_format=FORMAT)[0])["city"]


@step
async def stream() -> None:
    program: Any = dspy.streamify(dspy.Predict("question -> answer"))
    chunks = []
    with contextlib.suppress(AdapterParseError, ExceptionGroup):
        async for chunk in program(question=COLOR):
            chunks.append(chunk)
    assert chunks


@step
def turns() -> None:
    history = dspy.History(messages=[{"question": COLOR, "answer": "Red."}] * 2)
    before = len(lm.history)
    with contextlib.suppress(AdapterParseError):
        dspy.Predict(Answer)(question=COLOR, history=history)
    assert len(lm.history) > before


@step
def too_long() -> None:
    kinds: Any = (ContextWindowExceededError, dspy.ContextWindowExceededError)
    refused(kinds, lambda: lm(TOO_LONG))
