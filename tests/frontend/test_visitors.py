import time

import pytest

from errors import TooMany
from visitors import Visitors


def test_one_visitor_has_so_many_answers_at_once_and_others_their_own() -> None:
    door = Visitors(streams=2, messages=9)
    with door.admitted("a", 2):
        with pytest.raises(TooMany) as refused, door.admitted("a", 1):
            pass
        with door.admitted("b", 2):
            pass
    assert refused.value.retry_after_s is None
    with door.admitted("a", 2):
        pass


def test_a_place_is_free_again_after_a_failure() -> None:
    door = Visitors(streams=1, messages=9)
    with pytest.raises(RuntimeError), door.admitted("a", 1):
        raise RuntimeError
    with door.admitted("a", 1):
        pass


def test_messages_a_minute_are_limited_and_the_wait_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 100.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    door = Visitors(streams=1, messages=2)
    with door.admitted("a", 1):
        now = 110.5
    with door.admitted("a", 1):
        now = 111.0
    with pytest.raises(TooMany) as refused, door.admitted("a", 1):
        pass
    assert refused.value.retry_after_s == 49
    now = 160.0
    with door.admitted("a", 1):
        pass
