"""The exceptions of the page.

    FrontendError
    ├── SettingsError      the environment does not describe a page; says which variable to set
    ├── TooMany            a visitor is over a limit
    ├── VoteRefused        a vote was not stored
    └── ApiError
        ├── Unreachable    no connection, or no answer in time
        ├── Refused        the API answered with an error status
        ├── Malformed      the answer is not that of an OpenAI-style API
        └── CutShort       the answer began and then broke off

Their messages are for the log. `texts` has what the page shows.
"""

from typing import Literal


class FrontendError(Exception):
    """A failure that this service expects."""


class SettingsError(FrontendError):
    """The message is one line that says what to set."""


class TooMany(FrontendError):
    """A visitor is over a limit.

    retry_after_s: None if a running answer must end first
    """

    def __init__(self, what: str, retry_after_s: int | None = None) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class VoteRefused(FrontendError):
    """A vote was not stored.

    reason: unknown (it belongs to no answers that this page gave), repeated, full (no room for more votes) or
    failed (it could not be written)
    """

    def __init__(self, reason: Literal["unknown", "repeated", "full", "failed"]) -> None:
        super().__init__(reason)
        self.reason = reason


class ApiError(FrontendError):
    """The API did not give a whole answer."""


class Unreachable(ApiError):
    """No connection, or silence for longer than the client waits."""


class Malformed(ApiError):
    """The answer is not that of an OpenAI-style API."""


class CutShort(ApiError):
    """The stream ended before the answer did."""


class Refused(ApiError):
    """The API answered with an error status.

    message: the API's own text, empty if the body carries none
    code: the `code` of OpenAI's error body, empty if there is none
    retry_after_s: from the Retry-After header, None if it is absent or not a number
    """

    def __init__(
        self, status: int, message: str = "", code: str = "", retry_after_s: int | None = None
    ) -> None:
        super().__init__(f"status={status} code={code or '-'}")
        self.status = status
        self.message = message
        self.code = code
        self.retry_after_s = retry_after_s
