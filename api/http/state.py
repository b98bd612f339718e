"""The state of a request while it is served, shared by the layers around its route."""

from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.responses import Response
from starlette.types import Scope, Send

from api.errors import ApiError
from api.ledger.keys import Key
from api.telemetry.metrics import Tally

ErrorWriter = Callable[[ApiError], bytes]
_STATE = "finechat"


@dataclass(slots=True)
class RequestState:
    """One request's state. `RequestLog` creates it, the layers inside fill it in.

    send: the server's own; chunks of a stream go through it past all layers, which change only the start of
    an answer. error_body: writes an error in the dialect of the path. key: None where none is needed. tally:
    None until the prompt is rendered. refusal: the reason of the error that the client was sent. ignored:
    request fields that change nothing here, by the dialects' own names.
    """

    send: Send
    error_body: ErrorWriter
    key: Key | None = None
    tally: Tally | None = None
    refusal: str | None = None
    ignored: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, scope: Scope) -> "RequestState":
        """Return the state of the request that `scope` belongs to."""
        state: RequestState = scope[_STATE]
        return state

    def attach(self, scope: Scope) -> None:
        """Make `of` find this state."""
        scope[_STATE] = self

    def refuse(self, error: ApiError) -> Response:
        """Note why the request is refused, and return the response that says so."""
        self.refusal = error.reason
        return Response(
            self.error_body(error), error.status, headers=error.headers, media_type="application/json"
        )
