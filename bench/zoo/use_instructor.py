"""instructor: structured answers by tools and by schema, its retries and its partial objects."""

from typing import Any, Literal

import instructor
import openai
from instructor.core import InstructorRetryException
from pydantic import BaseModel, field_validator
from steps import COLOR, KEY, MODEL, TOO_LONG, V1, refused, step

api = openai.OpenAI(base_url=V1, api_key=KEY, max_retries=0)
by_tools = instructor.from_openai(api, mode=instructor.Mode.TOOLS)
ASK: Any = {"model": MODEL, "messages": [{"role": "user", "content": COLOR}], "max_tokens": 64}
tried: list[str] = []


class Trip(BaseModel):
    city: Literal["Paris", "Rome"]


class Refused(Trip):
    @field_validator("city")
    @classmethod
    def refuse_twice(cls, city: str) -> str:
        tried.append(city)
        if len(tried) < 3:
            raise ValueError("say it again")
        return city


@step
def schema_by_tools() -> None:
    assert isinstance(by_tools.create(**ASK, response_model=Trip, max_retries=0), Trip)


@step
def schema() -> None:
    by_schema = instructor.from_openai(api, mode=instructor.Mode.JSON_SCHEMA)
    assert isinstance(by_schema.create(**ASK, response_model=Trip, max_retries=0), Trip)


@step
def stream() -> None:
    parts = list(by_tools.create_partial(**ASK, response_model=Trip))
    assert parts[-1].city in ("Paris", "Rome")


@step
def turns() -> None:
    """Its retries: each sends the call that was wrong, and a result that says why."""
    assert by_tools.create(**ASK, response_model=Refused, max_retries=3).city and len(tried) >= 3


@step
def too_long() -> None:
    long = {**ASK, "messages": [{"role": "user", "content": TOO_LONG}]}
    asked = {"response_model": Trip, "max_retries": 0}
    error = refused(
        (InstructorRetryException, openai.BadRequestError),  # type: ignore[arg-type]
        lambda: by_tools.create(**long, **asked),
    )
    assert "context_length_exceeded" in str(error), error
