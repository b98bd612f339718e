from typing import Any

import pytest

import texts
from client import Answer
from errors import ApiError, CutShort, Malformed, Refused, TooMany, Unreachable, VoteRefused

FAILURES = [
    (Unreachable("ConnectError"), ["does not answer", "starting"]),
    (CutShort("eof"), ["cut off", "kept"]),
    (Malformed("html"), ["FRONTEND_API_URL"]),
    (Refused(401, "bad key"), ["key", "FRONTEND_API_KEY"]),
    (Refused(403), ["key", "FRONTEND_API_KEY"]),
    (Refused(404, "no such model", "model_not_found"), ["model", "FRONTEND_API_URL"]),
    (Refused(400, "x", "context_length_exceeded"), ["no longer fits", "new chat"]),
    (Refused(400, "maximum context length is 2048 tokens"), ["no longer fits", "new chat"]),
    (Refused(413), ["no longer fits", "new chat"]),
    (Refused(422, "temperature must be at most 1."), ["temperature must be at most 1"]),
    (Refused(429, retry_after_s=7), ["Too many chats", "in 7 seconds"]),
    (Refused(429, retry_after_s=1), ["in 1 second."]),
    (Refused(429), ["in a moment"]),
    (Refused(503, "loading the weights", "starting"), ["not ready", "loading the weights"]),
    (Refused(503, "", retry_after_s=20), ["not ready", "in 20 seconds"]),
    (Refused(500, "KeyError: 'x'"), ["failed", "500", "in a moment"]),
]


@pytest.mark.parametrize(("failure", "parts"), FAILURES)
def test_every_failure_says_what_is_wrong_and_what_to_do(failure: ApiError, parts: list[str]) -> None:
    said = texts.explain(failure)
    assert all(part in said for part in parts), said
    assert said.endswith(".")
    assert "Error" not in said
    assert "Traceback" not in said


def test_every_choice_that_is_offered_has_a_label() -> None:
    offered = {
        name
        for failure, _ in FAILURES
        for begun in (True, False)
        for alone in (True, False)
        for name in texts.failure_notice(failure, begun=begun, alone=alone)[1]
    }
    assert offered == set(texts.CHOICES)


@pytest.mark.parametrize(("wait_s", "part"), [(None, "running"), (12, "in 12 seconds")])
def test_a_visitor_over_a_limit_reads_what_to_wait_for(wait_s: int | None, part: str) -> None:
    said = texts.visitor_notice(TooMany("x", wait_s))
    assert part in said and "kept" in said


@pytest.mark.parametrize("reason", ["unknown", "repeated", "full", "failed"])
def test_every_refusal_of_a_vote_is_a_sentence(reason: Any) -> None:
    said = texts.vote_notice(VoteRefused(reason))
    assert said.endswith(".") and reason not in said


def test_a_visitor_who_votes_too_often_reads_how_long_to_wait() -> None:
    assert "in 12 seconds" in texts.vote_notice(TooMany("x", 12))


def test_note_has_length_speed_and_wait() -> None:
    answer = Answer(
        "x", prompt_tokens=1200, tokens=11, first_token_s=0.5, last_token_s=1.5, finish_reason="stop"
    )
    assert texts.answer_note(answer) == "11 tokens · 10.0 tokens/s · first after 0.50 s · prompt of 1,200"


def test_note_has_only_what_is_known() -> None:
    assert texts.answer_note(Answer()) == ""
    one = Answer("x", tokens=1, first_token_s=0.5, last_token_s=0.5)
    assert texts.answer_note(one) == "1 token · first after 0.50 s"


def test_note_says_that_the_length_limit_ended_the_answer() -> None:
    assert texts.answer_note(Answer(finish_reason="length")) == "ended at the length limit"
