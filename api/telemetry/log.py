"""The service's log: key=value lines on stderr in UTC, each with the id of its request.

A line never holds a prompt, a completion or a key.
"""

import logging
import sys
import time
from contextvars import ContextVar

log = logging.getLogger("api")

current_request_id: ContextVar[str] = ContextVar("request_id", default="-")


def configure_logging() -> None:
    """Install one handler on stderr for the whole process."""
    handler = logging.StreamHandler(sys.stderr)
    handler.addFilter(_add_request_id)
    formatter = logging.Formatter(
        "time=%(asctime)s.%(msecs)03dZ level=%(levelname)s logger=%(name)s "
        "request_id=%(request_id)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    formatter.converter = time.gmtime
    handler.setFormatter(formatter)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    log.setLevel(logging.INFO)


def _add_request_id(record: logging.LogRecord) -> bool:
    record.request_id = current_request_id.get()
    return True
