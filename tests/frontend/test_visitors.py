import time

import pytest

from errors import TooMany
from visitors import Visitors


def test_each_visitor_has_a_limit_of_concurrent_answers() -> None:
    visitors = Visitors(streams=2, messages=9)
    with visitors.admitted("a", 2):
        with pytest.raises(TooMany) as refused, visitors.admitted("a", 1):
            pass
        with visitors.admitted("b", 2):
            pass
    assert refused.value.retry_after_s is None
    with visitors.admitted("a", 2):
        pass


def test_a_place_is_free_again_after_a_failure() -> None:
    visitors = Visitors(streams=1, messages=9)
    with pytest.raises(RuntimeError), visitors.admitted("a", 1):
        raise RuntimeError
    with visitors.admitted("a", 1):
        pass


def test_messages_a_minute_are_limited_and_the_error_has_the_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    visitors = Visitors(streams=1, messages=2)
    with visitors.admitted("a", 1):
        now = 110.5
    with visitors.admitted("a", 1):
        now = 111.0
    with pytest.raises(TooMany) as refused, visitors.admitted("a", 1):
        pass
    assert refused.value.retry_after_s == 49
    now = 160.0
    with visitors.admitted("a", 1):
        pass


def test_votes_a_minute_are_limited_apart_from_messages() -> None:
    visitors = Visitors(streams=1, messages=1)
    visitors.count_vote("a")
    with visitors.admitted("a", 1):
        pass
    with pytest.raises(TooMany):
        visitors.count_vote("a")
    visitors.count_vote("b")
