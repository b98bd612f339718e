"""`python -m api replicas`: run several copies of this service behind Ray Serve, on the nodes of a cluster.

Ray Serve places the replicas, hands requests to them, replaces those that fail and changes their number. A
replica is the whole application with an engine of its own and the settings of its node's environment, so no
secret passes through Ray. New weights need nothing here: every replica follows `models/current`.

Nothing but that verb imports this module, and Ray is installed from requirements-ray.txt.

Tried with Ray 2.60 on one machine without a GPU: replicas of the real model, one of them killed, and the end
of this command on a cluster that it had joined, where another team's application stayed. Not tried: GPUs,
more than one host, autoscaling under load, SIGTERM in the middle of a stream.
"""

import asyncio
import contextlib
import math
import signal
import socket
import time
from pathlib import Path
from typing import Any

import ray
from ray import serve
from ray.serve.config import AutoscalingConfig, AutoscalingContext, AutoscalingPolicy, RequestRouterConfig
from ray.serve.exceptions import RayServeException
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.engine.artifact import read_artifact
from api.engine.comparison import read_comparison_models
from api.engine.engine import Engine
from api.engine.lifecycle import State
from api.errors import StartError
from api.http.access import SECURITY_HEADERS
from api.service import build_service
from api.settings import Settings, read_settings
from api.telemetry.log import configure_logging, log

NAME = "finechat"
_CONNECT_S = 5.0
_END_S = 60.0  # for replicas to end once they have drained
TARGET_LOAD = 0.8  # share of a replica's capacity above which another replica is added
# Ray sends requests with the same X-Session-Id to the same replica, which has their prompts in its cache.
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
_ROOT = Path(__file__).parent.parent


@serve.ingress()
class Replica:
    """One replica. If it does not start, its exception says why, and Ray shows it."""

    async def __init__(self) -> None:  # type: ignore[misc]  # Ray Serve awaits it
        configure_logging()
        self._settings = settings = read_settings()
        artifact = read_artifact(settings.artifacts_dir)
        comparison = read_comparison_models(settings.base_dir, settings.adapters)
        self._service = build_service(
            settings, artifact, lambda new: Engine(settings, new, comparison), comparison
        )
        self._service.lifecycle.start()
        while self._service.lifecycle.state is State.STARTING:  # Ray sends no request before this returns
            await asyncio.sleep(0.1)
        await self.check_health()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        return _behind_proxy(create_app(self._service, self._settings.cors_origins))

    async def check_health(self) -> None:
        """Report whether the replica works. Raises: StartError if not; Ray then replaces it."""
        if failure := self._service.lifecycle.failure:
            raise failure

    async def record_autoscaling_stats(self) -> dict[str, float]:
        """Return how full this replica is: by answers or by waiting tokens, whichever is more."""
        admission = self._service.admission
        answers = (admission.running + admission.waiting) / self._settings.max_num_seqs
        return {"load": max(answers, admission.waiting_tokens / self._settings.max_queue_tokens)}


def _behind_proxy(app: ASGIApp) -> ASGIApp:
    """Answer with the headers that our own HTTP server adds elsewhere.

    Ray's proxy adds none of them, but it echoes a request's id itself, so ours is left out.
    """
    fixed = [(name.encode(), value.encode()) for name, value in SECURITY_HEADERS.items()]

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        ids = {pair for pair in scope.get("headers", ()) if pair[0] == b"x-request-id"}

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                own = [pair for pair in message["headers"] if tuple(pair) not in ids]
                message["headers"] = [*fixed, *own]
            await send(message)

        await app(scope, receive, send_with_headers)

    return answer


def desired_replicas(context: AutoscalingContext) -> tuple[int, dict[str, Any]]:
    """Return how many replicas keep the mean load below TARGET_LOAD."""
    load = sum((context.aggregated_metrics or {}).get("load", {}).values())
    fewest, most = context.capacity_adjusted_min_replicas, context.capacity_adjusted_max_replicas
    return min(most, max(fewest, math.ceil(load / TARGET_LOAD))), {}


def run(settings: Settings, fewest: int, most: int, cpus: float, address: str | None) -> None:
    """Start the replicas, wait for a signal, then drain and delete them.

    address: of the Ray cluster to join, or "auto". None starts a cluster on this machine that ends with them.
    Raises: StartError if the cluster or the replicas cannot be had.
    """
    configure_logging()
    _connect(address)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # not before: Ray sets a handler of its own
    try:
        _require_room(settings, cpus)
        _require_free_name()
        _serve_until_signal(settings, _deployment(settings, fewest, most, cpus))
    except KeyboardInterrupt:
        pass
    finally:
        ray.shutdown()  # ends a cluster of our own, and only leaves one that was joined


def _connect(address: str | None) -> None:
    """Join the cluster, or start one on this machine. Raises: StartError."""
    try:
        if address and address != "auto":
            host, _, port = address.rpartition(":")
            socket.create_connection((host, int(port)), _CONNECT_S).close()  # Ray would try for minutes
        # Without an address Ray would join whatever cluster runs on this machine.
        ray.init(
            address=address or "local", log_to_driver=False, logging_level="ERROR", include_dashboard=False
        )
    except (OSError, RuntimeError, ValueError) as error:
        raise StartError(f"no Ray cluster at {address or 'this machine'}: {_one_line(error)}") from None


def _require_room(settings: Settings, cpus: float) -> None:
    """Check that a node is large enough for a replica. Raises: StartError."""
    gpus = _gpus_per_replica(settings)
    if not any(_fits(node, cpus, gpus) for node in ray.nodes()):
        raise StartError(f"no node of the cluster has the {cpus:g} CPUs and {gpus} GPUs of a replica")


def _require_free_name() -> None:
    """Refuse to replace somebody else's application. Raises: StartError if one of this name runs."""
    if NAME in serve.status().applications:
        raise StartError(
            f"the cluster already runs an application {NAME}: stop the command that started it, or delete it "
            "(docs/scale.md)"
        )


def _deployment(settings: Settings, fewest: int, most: int, cpus: float) -> Any:
    return serve.deployment(
        Replica,
        name=NAME,
        ray_actor_options={
            "num_cpus": cpus,
            "num_gpus": _gpus_per_replica(settings),
            "runtime_env": {"env_vars": {"PYTHONPATH": str(_ROOT)}},
        },
        # A replica refuses by itself what is too much, with OpenAI's error body.
        max_ongoing_requests=2 * settings.max_queue,
        graceful_shutdown_timeout_s=settings.drain_timeout_s,
        health_check_period_s=1,
        max_constructor_retry_count=1,
        request_router_config=RequestRouterConfig(request_router_class=_ROUTER),
        autoscaling_config=AutoscalingConfig(
            min_replicas=fewest, max_replicas=most, policy=AutoscalingPolicy(policy_function=desired_replicas)
        ),
    )


def _serve_until_signal(settings: Settings, deployment: Any) -> None:
    """Deploy, wait, and delete what was deployed; nothing else in the cluster is touched.

    Serve itself stays: on a cluster that was joined, others may use it.
    """
    if serve.status().proxies:
        log.warning("event=serve_runs_already note='its host and port hold, not API_HOST and API_PORT'")
    address = {"host": settings.host, "port": settings.port}
    serve.start(http_options={**address, "keep_alive_timeout_s": settings.keep_alive_s})
    try:
        serve.run(deployment.bind(), name=NAME, route_prefix="/")
        signal.pause()
    except (RuntimeError, RayServeException) as error:
        raise StartError(f"the replicas did not start: {_failure() or _one_line(error)}") from None
    finally:
        _delete(settings.drain_timeout_s)


def _delete(drain_timeout_s: float) -> None:
    """Delete our application and wait until its replicas have drained."""
    deadline = time.monotonic() + drain_timeout_s + _END_S
    while time.monotonic() < deadline:
        with contextlib.suppress(TimeoutError):  # Ray waits for 60 s
            serve.delete(NAME)
            return


def _gpus_per_replica(settings: Settings) -> int:
    """Return 0 where the cluster has no GPU."""
    if not ray.cluster_resources().get("GPU", 0):
        return 0
    return settings.tensor_parallel_size * settings.data_parallel_size


def _fits(node: dict[str, Any], cpus: float, gpus: int) -> bool:
    has = node["Resources"]
    return bool(node["Alive"]) and has.get("CPU", 0) >= cpus and has.get("GPU", 0) >= gpus


def _failure() -> str:
    """Return the message of our own error, which Ray keeps at the end of a traceback; "" without one."""
    application = serve.status().applications.get(NAME)
    deployment = application.deployments.get(NAME) if application else None
    lines = deployment.message.splitlines() if deployment else []
    errors = [line for line in lines if "api.errors." in line]
    return errors[-1].partition("api.errors.")[2] if errors else ""


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or repr(error)
