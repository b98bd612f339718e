"""Start the chat page: `python app.py`, configured by `FRONTEND_*` variables.

If it cannot start, it prints one line to standard error and exits with status 1.
"""

import logging
import os
import socket
import sys
import time

from errors import SettingsError
from settings import Settings, load_settings


def main() -> None:
    """Serve the page until SIGINT or SIGTERM."""
    try:
        settings = load_settings()
        listener = _listen(settings)
    except SettingsError as error:
        sys.exit(f"frontend: {error}")
    _log_in_utc()
    warn_of_a_space_without_proxies(settings)
    # Gradio reads these once, at import: it then sends no reports and fetches nothing from other hosts.
    os.environ.update(GRADIO_ANALYTICS_ENABLED="False", HF_HUB_OFFLINE="1")
    from server import serve

    serve(settings, listener)


def warn_of_a_space_without_proxies(settings: Settings) -> None:
    """Log what to set on a Space: all its visitors come from the addresses of its proxies."""
    if settings.space_id and not settings.trusted_proxies:
        logging.getLogger("frontend").warning(
            "all visitors of this Space share the limits of one visitor; set the variable "
            "FRONTEND_TRUSTED_PROXIES to the network of its proxies, 10.0.0.0/8, to distinguish visitors"
        )


def _listen(settings: Settings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    try:
        return socket.create_server((settings.host, settings.port), family=family)
    except OSError as error:
        reason = str(error.strerror).split(" (")[0]  # Python repeats the address in parentheses
        raise SettingsError(
            f"cannot listen on {settings.host}:{settings.port}: {reason}; "
            "set FRONTEND_HOST and FRONTEND_PORT to a free address"
        ) from error


def _log_in_utc() -> None:
    logging.Formatter.converter = time.gmtime
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)sZ level=%(levelname)s logger=%(name)s %(message)s",
        datefmt="%Y-%m-%dT%H:%M:%S",
    )
    logging.getLogger("httpx").setLevel(logging.WARNING)


if __name__ == "__main__":
    main()
