"""Run the API's commands. A command that cannot start prints one line on stderr and exits with code 1."""

import argparse
import asyncio
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

from pydantic import ValidationError

from api.engine.artifact import Artifact, read_artifact
from api.engine.comparison import ComparisonModels, read_comparison_models
from api.engine.prompt import Prompt
from api.errors import LimitsUnavailable, SettingsError, StartError
from api.ledger.backends import open_ledger
from api.ledger.keys import NORMAL, Key, Limits
from api.ledger.ledger import Ledger
from api.settings import CONFIG, SECRETS, Settings, read_settings, reference

Verb = Callable[[Ledger], Awaitable[None]]


def main() -> int:
    arguments = _parser().parse_args()
    try:
        settings = read_settings()
        if arguments.verb == "keys":
            _keys(settings, arguments)
        elif arguments.verb == "usage":
            _usage(settings, arguments.day)
        elif arguments.verb == "replicas":
            _replicas(settings, arguments)
        else:
            artifact = read_artifact(settings.artifacts_dir)
            comparison = read_comparison_models(settings.base_dir, settings.adapters)
            if arguments.verb == "check":
                _with_ledger(settings, settings.keys_file, None, lambda ledger: ledger.verify())
                artifact.verify()
                prompt = Prompt.load(artifact.directory)
                print(f"ok: {artifact.manifest.name} ({artifact.directory}) can be served")
                print("".join(f"    {line}\n" for line in prompt.described()), end="")
                if comparison:
                    comparison.verify(artifact)
                    print(f"ok: {' and '.join(comparison.names)} can be served for comparison")
            else:
                serve(settings, artifact, comparison)
    except StartError as error:
        print(f"finechat api: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m api",
        description=__doc__,
        epilog=_settings_help(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    verbs.add_parser("serve", help="serve until a signal (the default)")
    replicas = verbs.add_parser(
        "replicas", help="serve with several processes behind Ray Serve (docs/scale.md)"
    )
    replicas.add_argument(
        "--replicas", type=int, default=1, metavar="N", help="minimum number of replicas (1)"
    )
    replicas.add_argument("--most", type=int, metavar="N", help="maximum under load (the minimum)")
    replicas.add_argument("--cpus", type=float, default=1, metavar="N", help="CPUs of each replica (1)")
    replicas.add_argument("--address", help="Ray cluster to join, or auto (none: start one on this machine)")
    verbs.add_parser("check", help="check the settings and the artifact without an engine")
    of_keys = verbs.add_parser("keys", help="create, list and revoke keys in API_KEYS_FILE or API_REDIS_URL")
    actions = of_keys.add_subparsers(dest="action", metavar="ACTION", required=True)
    create = actions.add_parser("create", help="create a key and print it; it is not shown again")
    create.add_argument("name")
    priority = Key.model_fields["priority"].description
    create.add_argument("--priority", type=int, choices=range(10), default=NORMAL, metavar="N", help=priority)
    for name, field in Limits.model_fields.items():
        create.add_argument(f"--{name.replace('_', '-')}", type=int, metavar="N", help=field.description)
    actions.add_parser("list", help="print names and limits")
    actions.add_parser("revoke", help="make a key invalid").add_argument("name")
    usage = verbs.add_parser(
        "usage", help="print requests and tokens by key and day, from API_USAGE_FILE or API_REDIS_URL"
    )
    usage.add_argument("--day", help="YYYY-MM-DD in UTC (all days)")
    return parser


def _settings_help() -> str:
    lines = [f"  {name} ({default})\n      {text}" for name, default, text in reference()]
    head = f"settings (default); the first of environment, {CONFIG} and {SECRETS} that has a setting decides:"
    return "\n".join([head, *lines, "vLLM's and OpenTelemetry's own variables (VLLM_*, OTEL_*) also apply."])


def _with_ledger(settings: Settings, keys_file: Path | None, usage_file: Path | None, do: Verb) -> None:
    """Call `do` with the ledger of the settings. Raises: SettingsError."""
    redis_url = settings.redis_url.get_secret_value() if settings.redis_url else None
    ledger = open_ledger(keys_file=keys_file, usage_file=usage_file, redis_url=redis_url)

    async def run() -> None:
        try:
            await do(ledger)
        except LimitsUnavailable as error:
            raise SettingsError(f"API_REDIS_URL cannot be used: {error.__cause__}") from None
        finally:
            await ledger.close()

    asyncio.run(run())


def _keys(settings: Settings, arguments: argparse.Namespace) -> None:
    async def create(ledger: Ledger) -> None:
        try:
            limits = Limits(**{name: getattr(arguments, name) for name in Limits.model_fields})
        except ValidationError as error:
            first = error.errors()[0]
            raise SettingsError(f"--{str(first['loc'][0]).replace('_', '-')}: {first['msg']}") from None
        print(await ledger.create(arguments.name, limits, arguments.priority))

    async def revoke(ledger: Ledger) -> None:
        await ledger.revoke(arguments.name)

    async def print_keys(ledger: Ledger) -> None:
        for key in await ledger.keys():
            known = key.limits.model_dump(exclude_none=True)
            limits = " ".join(f"{name}={value}" for name, value in known.items()) or "no limits"
            print(f"{key.name}  made {key.created_at}  priority={key.priority} {limits}")

    verb = {"create": create, "revoke": revoke, "list": print_keys}[arguments.action]
    _with_ledger(settings, settings.keys_file, None, verb)


def _usage(settings: Settings, day: str | None) -> None:
    file = settings.usage_file
    if settings.redis_url is None:
        if file is None:
            raise SettingsError("API_USAGE_FILE names no file")
        if not file.exists():
            raise SettingsError(f"API_USAGE_FILE {file} does not exist: nothing has been served yet")

    async def print_usage(ledger: Ledger) -> None:
        for line in await ledger.usage(day):
            print(
                f"{line.day}  {line.key}  requests={line.requests} prompt_tokens={line.prompt_tokens} "
                f"completion_tokens={line.completion_tokens}"
            )

    _with_ledger(settings, None, file, print_usage)


def _replicas(settings: Settings, arguments: argparse.Namespace) -> None:
    fewest, most = arguments.replicas, arguments.most or arguments.replicas
    if not 1 <= fewest <= most:
        raise SettingsError(f"--replicas {fewest} must be from 1 to --most {most}")
    if most > 1 and settings.redis_url is None:
        raise SettingsError(
            "several replicas need API_REDIS_URL: otherwise each would count limits and usage by itself"
        )
    read_artifact(settings.artifacts_dir).verify()
    try:
        from api.replicas import run
    except ModuleNotFoundError as error:
        raise SettingsError(
            f"{error.name} is not installed: `uv pip install --python .venv/api -r api/requirements-ray.txt`"
        ) from None
    run(settings, fewest, most, arguments.cpus, arguments.address)


def serve(settings: Settings, artifact: Artifact, comparison: ComparisonModels | None) -> None:
    """Serve until a signal. HTTP is open at once, while the model loads.

    Raises: StartError if the port is taken or the engine does not start.
    """
    from api.app import create_admin_app, create_app
    from api.engine import fork_server
    from api.engine.engine import Engine
    from api.engine.environment import set_engine_environment
    from api.engine.processes import kill_all_engines
    from api.http.idle import IdleConnections
    from api.http.server import AdminServer, Server, allow_many_files, listen
    from api.service import build_service
    from api.telemetry.log import configure_logging, log

    configure_logging()
    service = build_service(settings, artifact, lambda new: Engine(settings, new, comparison), comparison)
    # The other half of the files is for connections that are served.
    idle = IdleConnections(settings.keep_alive_s, min(settings.max_idle_connections, allow_many_files() // 2))
    admin = None
    if settings.admin_port and settings.admin_key:
        admin_app = create_admin_app(service, settings.admin_key.get_secret_value())
        admin = AdminServer(admin_app, listen("127.0.0.1", settings.admin_port, "API_ADMIN_PORT"), idle)
    listener = listen(settings.host, settings.port)
    log.info("event=listening host=%s port=%d", settings.host, settings.port)
    set_engine_environment()
    try:
        fork_server.start()
        app = create_app(service, settings.cors_origins)
        Server(app, service.lifecycle, idle, admin).run([listener])
    finally:
        kill_all_engines()
    if service.lifecycle.failure is not None:
        raise service.lifecycle.failure
