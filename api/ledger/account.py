"""How much one key has left: requests and tokens a minute, tokens a day, answers at once.

An account belongs to the name of a key. It outlives a change of the limits and a new key of the same name, so
neither gives anything back that was used. scripts/common.lua computes the same in Redis.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from api.errors import RateLimited
from api.ledger.keys import Limits

MINUTE_S = 60.0
ROUNDING = 1e-6
RATE_HEADERS = [
    f"x-ratelimit-{part}-{what}"
    for what in ("requests", "tokens")
    for part in ("limit", "remaining", "reset")
]


@dataclass(slots=True)
class Bucket:
    """One limit a minute: what is charged drains steadily, `size` in a minute.

    Charges drain in order. A charge that is reduced later gets back only what has not drained yet, because
    the time that the rest took up is gone. So at most size * (1 + T) is used within any T minutes.
    """

    size: int | None  # None: no such limit
    at: float  # when `spent` was true
    spent: float = 0.0
    charges: OrderedDict[str, float] = field(
        default_factory=OrderedDict
    )  # what is left of each, oldest first

    def drain(self, now: float) -> None:
        if self.size is None:
            return
        gone = max(0.0, now - self.at) * self.size / MINUTE_S
        self.at = now
        while gone > 0 and self.charges:
            id, left = self.charges.popitem(last=False)
            if left > gone:
                self.charges[id] = left - gone
                self.charges.move_to_end(id, last=False)
            self.spent -= min(left, gone)
            gone -= left
        if not self.charges:
            self.spent = 0.0

    def charge(self, id: str, amount: float) -> None:
        if self.size is not None:
            self.charges[id] = amount
            self.spent += amount

    def give_back(self, id: str, amount: float) -> None:
        """Reduce a charge, as far as it has not drained."""
        if self.size is None:
            return
        back = min(max(0.0, amount), self.charges.get(id, 0.0))
        if back:
            self.charges[id] -= back
            self.spent -= back

    def fits(self, amount: float) -> bool:
        return self.size is None or self.spent + amount <= self.size + ROUNDING

    @property
    def left(self) -> float:
        return math.inf if self.size is None else max(0.0, self.size - self.spent)

    def seconds_until(self, amount: float) -> float:
        """Return the wait until `amount` is left."""
        return (
            0.0 if self.size is None else max(0.0, (amount - self.size + self.spent) * MINUTE_S / self.size)
        )


class Account:
    """One key's state. answers, tokens_held: of its running requests."""

    def __init__(self, limits: Limits, now: Callable[[], float]) -> None:
        """now: a clock in seconds."""
        self.limits = limits
        self.requests = Bucket(limits.requests_per_minute, now())
        self.tokens = Bucket(limits.tokens_per_minute, now())
        self.answers = 0
        self.tokens_held = 0
        self._now = now

    def follow(self, limits: Limits) -> None:
        """Apply other limits from now on. What has been used and what runs stays counted."""
        self.drain()
        self.limits = limits
        self.requests.size, self.tokens.size = limits.requests_per_minute, limits.tokens_per_minute

    def drain(self) -> None:
        for bucket in (self.requests, self.tokens):
            bucket.drain(self._now())

    def refusal(self, tokens: int, answers: int, used_today: int, day: str) -> RateLimited | None:
        """Return why a request that can cost this much must not run now, or None if it may."""
        self.drain()
        for refusal in (
            self._never(tokens, answers),
            self._answers(answers),
            _minute(self.requests, 1, "requests"),
            _minute(self.tokens, tokens, "tokens"),
            self._day(tokens, used_today, day),
        ):
            if refusal is not None:
                refusal.headers = {**self.rate_headers(), **refusal.headers}
                return refusal
        return None

    def rate_headers(self) -> dict[str, str]:
        """Return OpenAI's x-ratelimit-* headers for the limits that the key has."""
        self.drain()
        headers = {}
        for what, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket.size is not None:
                headers[f"x-ratelimit-limit-{what}"] = str(bucket.size)
                headers[f"x-ratelimit-remaining-{what}"] = str(math.floor(bucket.left + ROUNDING))
                headers[f"x-ratelimit-reset-{what}"] = duration(bucket.seconds_until(bucket.size))
        return headers

    def _never(self, tokens: int, answers: int) -> RateLimited | None:
        """Refuse what is more than a whole limit of the key, however long the client waits."""
        limits = self.limits
        for asked, most, could, unit, name in (
            (answers, limits.answers_at_once, "asks for", "answers at once", "answers_at_once"),
            (tokens, limits.tokens_per_minute, "could cost", "tokens a minute", "tokens_per_minute"),
            (tokens, limits.tokens_per_day, "could cost", "tokens a day", "tokens_per_day"),
        ):
            if most is not None and asked > most:
                what = unit.partition(" ")[0]
                return RateLimited(
                    f"The request {could} {asked} {what}, and this key may have {most} {unit} ({name}). "
                    "It can never run; ask for less.",
                    None,
                )
        return None

    def _answers(self, answers: int) -> RateLimited | None:
        most = self.limits.answers_at_once
        if most is None or self.answers + answers <= most:
            return None
        return RateLimited(f"This key may have {most} answers at once. Try again when one has ended.", 1.0)

    def _day(self, tokens: int, used_today: int, day: str) -> RateLimited | None:
        most = self.limits.tokens_per_day
        if most is None or used_today + self.tokens_held + tokens <= most:
            return None
        message = f"This key has too little left of its {most} tokens for {day} (UTC)."
        if used_today + tokens <= most:  # an answer that ends may return what it does not use
            return RateLimited(f"{message} Running requests hold {self.tokens_held} of them.", 1.0)
        return RateLimited(message, None)


def duration(seconds: float) -> str:
    """Return a time as OpenAI writes it, rounded up: 0s, 120ms, 8.64s, 1m0s, 1h0m0s."""
    ms = math.ceil(round(seconds * 1000, 3))
    if ms < 1000:
        return f"{ms}ms" if ms else "0s"
    minutes, ms = divmod(ms, 60_000)
    hours, minutes = divmod(minutes, 60)
    parts = (f"{hours}h" if hours else "", f"{minutes}m" if hours or minutes else "", f"{ms / 1000:g}s")
    return "".join(parts)


def _minute(bucket: Bucket, amount: int, what: str) -> RateLimited | None:
    if bucket.size is None or bucket.fits(amount):
        return None
    wait_s = bucket.seconds_until(amount)
    return RateLimited(f"This key has used its {bucket.size} {what} a minute.", wait_s)
