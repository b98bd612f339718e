"""What a key may still have: requests and tokens a minute, tokens a day, answers at once.

A request reserves the most it can cost before it runs, and gives back what it did not use when it ends.
The two limits a minute are token buckets: they hold a minute's worth and fill up steadily.
"""

import math
import time
from dataclasses import dataclass, field

from api.errors import RateLimited
from api.ledger.keys import Key, Limits
from api.ledger.usage import Usage, today

MINUTE_S = 60.0
RATE_HEADERS = [
    f"x-ratelimit-{part}-{what}"
    for what in ("requests", "tokens")
    for part in ("limit", "remaining", "reset")
]


@dataclass(slots=True)
class Bucket:
    size: int
    left: float = field(init=False)
    at: float = field(init=False)

    def __post_init__(self) -> None:
        self.left, self.at = self.size, time.monotonic()

    def add(self, amount: float) -> None:
        """What time has brought, and `amount`; never more than it holds."""
        now = time.monotonic()
        self.left = min(self.size, self.left + (now - self.at) * self.size / MINUTE_S + amount)
        self.at = now

    def seconds_until(self, amount: float) -> float:
        return max(0.0, (amount - self.left) * MINUTE_S / self.size)


class Account:
    """One key's state; it lives as long as the process, and follows the key's limits."""

    def __init__(self, limits: Limits) -> None:
        self.limits = limits
        self.requests = Bucket(limits.requests_per_minute) if limits.requests_per_minute else None
        self.tokens = Bucket(limits.tokens_per_minute) if limits.tokens_per_minute else None
        self.answers = 0
        self.reserved_today = 0

    def refusal(self, tokens: int, answers: int, used_today: int) -> RateLimited | None:
        """Why a request may not run now that can cost so much, if it may not."""
        for refusal in (
            self._answers(answers),
            _minute(self.requests, 1, "requests", "requests_per_minute"),
            _minute(self.tokens, tokens, "tokens", "tokens_per_minute"),
            self._day(tokens, used_today),
        ):
            if refusal is not None:
                refusal.headers = {**rate_headers(self), **refusal.headers}
                return refusal
        return None

    def _answers(self, answers: int) -> RateLimited | None:
        most = self.limits.answers_at_once
        if most is None or self.answers + answers <= most:
            return None
        return RateLimited(f"This key may have {most} answers at once. Try again when one has ended.", 1.0)

    def _day(self, tokens: int, used_today: int) -> RateLimited | None:
        most = self.limits.tokens_per_day
        if most is None or used_today + self.reserved_today + tokens <= most:
            return None
        return RateLimited(f"This key has too little left of its {most} tokens for {today()} (UTC).", None)


def _minute(bucket: Bucket | None, amount: int, what: str, limit: str) -> RateLimited | None:
    if bucket is None:
        return None
    if amount > bucket.size:
        return RateLimited(
            f"The request could cost {amount} {what}, and this key has {bucket.size} a minute "
            f"({limit}); ask for fewer with max_tokens.",
            None,
        )
    if amount <= bucket.left:
        return None
    wait_s = bucket.seconds_until(amount)
    return RateLimited(f"This key has used its {bucket.size} {what} a minute.", wait_s)


class Accounts:
    """Of all keys, in this process; shared.py has those of several replicas, with the same methods."""

    def __init__(self, usage: Usage) -> None:
        self._usage = usage
        self._accounts: dict[str, Account] = {}

    async def reserve(self, key: Key, tokens: int, answers: int) -> "Reservation":
        """tokens: the most the request can cost. Raises: RateLimited, and takes nothing then."""
        account = self._checked(key, tokens, answers)
        if account.requests:
            account.requests.add(-1)
        if account.tokens:
            account.tokens.add(-tokens)
        account.answers += answers
        account.reserved_today += tokens
        return Reservation(key.name, account, self._usage, tokens, answers)

    async def check(self, key: Key, tokens: int, answers: int) -> None:
        """Raises: RateLimited if `reserve` would."""
        self._checked(key, tokens, answers)

    def _checked(self, key: Key, tokens: int, answers: int) -> Account:
        account = self._account(key)
        for bucket in (account.requests, account.tokens):
            if bucket:
                bucket.add(0)
        if refusal := account.refusal(tokens, answers, self._usage.tokens_today(key.name)):
            raise refusal
        return account

    def _account(self, key: Key) -> Account:
        account = self._accounts.get(key.name)
        if account is None or account.limits != key.limits:
            fresh = Account(key.limits)
            if account is not None:  # its limits were changed while it ran
                fresh.answers, fresh.reserved_today = account.answers, account.reserved_today
            account = self._accounts[key.name] = fresh
        return account


@dataclass(slots=True)
class Reservation:
    """What a running request holds; `settle` it once."""

    key_name: str
    account: Account
    usage: Usage
    tokens: int
    answers: int

    def settle(self, prompt_tokens: int, completion_tokens: int) -> None:
        """Count what was used and give back the rest."""
        self.account.answers -= self.answers
        self.account.reserved_today -= self.tokens
        if self.account.tokens:
            self.account.tokens.add(self.tokens - prompt_tokens - completion_tokens)
        self.usage.add(self.key_name, prompt_tokens, completion_tokens)

    def headers(self) -> dict[str, str]:
        return rate_headers(self.account)


def rate_headers(account: Account) -> dict[str, str]:
    """OpenAI's x-ratelimit-*, for the limits that the key has."""
    headers = {}
    for what, bucket in (("requests", account.requests), ("tokens", account.tokens)):
        if bucket:
            bucket.add(0)
            headers[f"x-ratelimit-limit-{what}"] = str(bucket.size)
            headers[f"x-ratelimit-remaining-{what}"] = str(max(0, math.floor(bucket.left)))
            headers[f"x-ratelimit-reset-{what}"] = f"{bucket.seconds_until(bucket.size):.3f}s"
    return headers
