"""`python -m api [serve|check]`: every failure to start is one line on stderr and exit code 1."""

import argparse
import sys

from api.engine.artifact import Artifact, read_artifact
from api.errors import StartError
from api.settings import Settings, read_settings


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m api", description=__doc__)
    parser.add_argument(
        "verb",
        nargs="?",
        choices=("serve", "check"),
        default="serve",
        help="serve (default), or check the settings and the artifact without an engine",
    )
    verb = parser.parse_args().verb
    try:
        settings = read_settings()
        artifact = read_artifact(settings.artifacts_dir)
        if verb == "check":
            artifact.verify()
            print(f"ok: {artifact.manifest.name} ({artifact.directory}) can be served")
        else:
            serve(settings, artifact)
    except StartError as error:
        print(f"finechat api: {error}", file=sys.stderr)
        return 1
    return 0


def serve(settings: Settings, artifact: Artifact) -> None:
    """Serve until a signal; HTTP is open at once, the model is loaded behind it.

    Raises: StartError if the port is taken or the engine does not start.
    """
    from api.app import create_app
    from api.engine.engine import Engine
    from api.server import Server, listen
    from api.service import build_service
    from api.telemetry import configure_logging, log

    configure_logging()
    service = build_service(settings, artifact, Engine(settings, artifact))
    server = Server(create_app(settings, service), service.lifecycle)
    listener = listen(settings.host, settings.port)
    log.info("event=listening host=%s port=%d", settings.host, settings.port)
    server.run([listener])
    if service.lifecycle.failure is not None:
        raise service.lifecycle.failure
