"""Every failure that is reported to a person or a client. A dialect writes an ApiError in its own format.

StartError                     the service cannot start: one line, exit code 1
├── SettingsError              an environment variable is wrong or unsafe
├── ArtifactError              the artifact is missing, incomplete or altered
├── AdapterError               the base or an adapter cannot be served next to the model
└── EngineStartError           the port is taken, or vLLM did not come up
ClientGone                     the client hung up, so nobody is left to answer
ApiError                       an HTTP answer with an error body
├── InvalidRequest        400  a field is unknown, missing or out of range
│   └── ContextLengthExceeded  prompt and answer do not fit the model
├── Unauthorised          401
├── NotFound              404  no such path
│   └── ModelNotFound          no such model
├── MethodNotAllowed      405
├── BodyTimeout           408  the body did not arrive in time
├── DeadlineExceeded      408  the answer was not complete in the time it had
├── SwapRefused           409  the new weights are not served, and why
├── BodyTooLarge          413
├── NotJson               415
├── UnknownCoding         415  the body is compressed in a way that is not read here
├── RateLimited           429  the key has used up one of its limits
├── HeadersTooLarge       431
├── InternalError         500  a defect of ours; details are in the log only
└── Unavailable           503  with Retry-After
    ├── NotReady               starting, draining or failed
    ├── LimitsUnavailable      Redis, which holds keys and limits, does not answer
    ├── Overloaded             as much as API_MAX_QUEUE or API_MAX_QUEUE_TOKENS allows is in progress
    └── EngineFailed           the engine died or gave up on this request
"""

import math


class StartError(Exception):
    """The service cannot start; the message is the one line that a person reads."""


class SettingsError(StartError):
    pass


class ArtifactError(StartError):
    pass


class AdapterError(StartError):
    pass


class EngineStartError(StartError):
    pass


class ClientGone(Exception):
    pass


class ApiError(Exception):
    """A request fails. type, code, param: as OpenAI uses them. headers: of the answer."""

    status = 500
    type = "server_error"
    code: str | None = None
    headers: dict[str, str] = {}  # noqa: RUF012 - read only; subclasses replace it

    def __init__(self, message: str, *, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.param = param

    @property
    def reason(self) -> str:
        """Return one word for log and metrics; most errors of a request's fields have no code."""
        return self.code or "invalid_request"


class InvalidRequest(ApiError):
    status = 400
    type = "invalid_request_error"


class ContextLengthExceeded(InvalidRequest):
    """context: the most tokens that prompt and answer may have together."""

    code = "context_length_exceeded"

    def __init__(
        self, message: str, *, param: str, prompt_tokens: int, answer_tokens: int, context: int
    ) -> None:
        super().__init__(message, param=param)
        self.prompt_tokens = prompt_tokens
        self.answer_tokens = answer_tokens
        self.context = context


class Unauthorised(ApiError):
    status = 401
    type = "invalid_request_error"
    code = "invalid_api_key"
    headers = {"www-authenticate": "Bearer"}  # noqa: RUF012


class NotFound(ApiError):
    status = 404
    type = "invalid_request_error"
    code = "not_found"


class ModelNotFound(NotFound):
    code = "model_not_found"


class MethodNotAllowed(ApiError):
    status = 405
    type = "invalid_request_error"
    code = "method_not_allowed"


class BodyTimeout(ApiError):
    status = 408
    type = "invalid_request_error"
    code = "request_timeout"
    headers = {"connection": "close"}  # noqa: RUF012


class DeadlineExceeded(ApiError):
    status = 408
    type = "timeout_error"
    code = "deadline_exceeded"
    headers = {"x-should-retry": "false"}  # noqa: RUF012 - OpenAI's clients would try a 408 again


class SwapRefused(ApiError):
    status = 409
    type = "invalid_request_error"
    code = "swap_refused"


class BodyTooLarge(ApiError):
    status = 413
    type = "invalid_request_error"
    code = "request_too_large"


class NotJson(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_media_type"


class HeadersTooLarge(ApiError):
    status = 431
    type = "invalid_request_error"
    code = "headers_too_large"
    headers = {"connection": "close"}  # noqa: RUF012


class UnknownCoding(ApiError):
    status = 415
    type = "invalid_request_error"
    code = "unsupported_content_encoding"
    headers = {"accept-encoding": "gzip, zstd"}  # noqa: RUF012


class RateLimited(ApiError):
    status = 429
    type = "rate_limit_error"
    code = "rate_limit_exceeded"

    def __init__(self, message: str, retry_after_s: float | None) -> None:
        """retry_after_s: None if waiting does not help; OpenAI's clients then do not try again."""
        super().__init__(message)
        if retry_after_s is None:
            self.headers = {"x-should-retry": "false"}
        else:
            self.headers = {"retry-after": str(math.ceil(retry_after_s) or 1)}


class InternalError(ApiError):
    code = "internal_error"


class Unavailable(ApiError):
    status = 503
    headers = {"retry-after": "5"}  # noqa: RUF012


class NotReady(Unavailable):
    code = "not_ready"


class LimitsUnavailable(Unavailable):
    code = "limits_unavailable"


class Overloaded(Unavailable):
    code = "overloaded"
    headers = {"retry-after": "1"}  # noqa: RUF012


class EngineFailed(Unavailable):
    code = "engine_failed"
