"""`python -m api replicas`: what it asks of Ray, whose functions are doubled here."""

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import httpx
import pytest

from api.errors import StartError
from api.http.access import SECURITY_HEADERS
from api.settings import Settings
from api.telemetry import log
from tests.support.api import House

MODULES = ("ray", "ray.serve", "ray.serve.config", "ray.serve.exceptions")
FINECHAT = "finechat"


class RayServeException(Exception):
    """Not a RuntimeError, as in Ray."""


@dataclass
class Cluster:
    """Stand in for a cluster, and for what Ray Serve runs there. calls: what was asked of it, in order."""

    applications: dict[str, Any] = field(default_factory=dict)
    calls: list[tuple[Any, ...]] = field(default_factory=list)
    deploy_error: Exception | None = None
    slow_deletions: int = 0

    def modules(self) -> dict[str, ModuleType]:
        serve = SimpleNamespace(
            ingress=lambda: lambda replica: replica,
            deployment=lambda replica, **_: SimpleNamespace(bind=lambda: replica),
            start=lambda **options: self.calls.append(("start", options["http_options"])),
            status=lambda: SimpleNamespace(applications=self.applications, proxies={}),
            run=self.run,
            delete=self.delete,
            shutdown=lambda: self.calls.append(("shutdown of Serve",)),
        )
        options = dict.fromkeys(
            ("AutoscalingConfig", "AutoscalingContext", "AutoscalingPolicy", "RequestRouterConfig"), dict
        )
        node = {"Alive": True, "Resources": {"CPU": 4.0}}
        ray: Any = ModuleType("ray")
        ray.serve = serve
        ray.init = lambda **options: self.calls.append(("init", options["address"]))
        ray.nodes = lambda: [node]
        ray.cluster_resources = lambda: node["Resources"]
        ray.shutdown = lambda: self.calls.append(("leave",))
        found: dict[str, Any] = {name: ModuleType(name) for name in MODULES}
        found |= {"ray": ray, "ray.serve": serve}
        vars(found["ray.serve.config"]).update(options)
        found["ray.serve.exceptions"].RayServeException = RayServeException
        return found

    def run(self, _: object, name: str, route_prefix: str) -> None:
        self.calls.append(("run", name, route_prefix))
        if self.deploy_error is not None:
            raise self.deploy_error
        self.applications[name] = SimpleNamespace(deployments={})

    def delete(self, name: str) -> None:
        self.calls.append(("delete", name))
        if self.slow_deletions:
            self.slow_deletions -= 1
            raise TimeoutError
        self.applications.pop(name, None)

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """On which another team's application runs. The signal comes at once."""

    def interrupted() -> None:
        raise KeyboardInterrupt

    cluster = Cluster({"theirs": SimpleNamespace(deployments={})})
    for name, module in cluster.modules().items():
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, "api.replicas", raising=False)
    monkeypatch.setattr(signal, "pause", interrupted)
    monkeypatch.setattr(log, "configure_logging", lambda: None)
    handler = signal.getsignal(signal.SIGTERM)
    yield cluster
    signal.signal(signal.SIGTERM, handler)
    sys.modules.pop("api.replicas", None)


def run(artifacts: Path, address: str | None = "auto") -> None:
    settings = Settings(artifacts_dir=artifacts, drain_timeout_s=1)
    importlib.import_module("api.replicas").run(settings, 1, 1, 1.0, address)


def test_only_its_own_application_ends_on_a_cluster_that_it_joined(cluster: Cluster, artifacts: Path) -> None:
    run(artifacts)
    assert cluster.verbs == ["init", "start", "run", "delete", "leave"]
    assert ("delete", FINECHAT) in cluster.calls
    assert set(cluster.applications) == {"theirs"}


def test_an_application_of_its_name_that_it_did_not_start_is_left_alone(
    cluster: Cluster, artifacts: Path
) -> None:
    theirs = cluster.applications[FINECHAT] = SimpleNamespace(deployments={})
    with pytest.raises(StartError, match="already runs an application finechat"):
        run(artifacts)
    assert cluster.verbs == ["init", "leave"], "deploying would have replaced it"
    assert cluster.applications[FINECHAT] is theirs


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (RuntimeError("Deploying application finechat failed:\nno"), "did not start: Deploying application"),
        (RayServeException("Prefix / is being used by application theirs."), "Prefix / is being used by"),
    ],
    ids=["a replica that does not start", "a path that is another's"],
)
def test_a_deployment_that_fails_is_reported_and_removed(
    cluster: Cluster, artifacts: Path, error: Exception, message: str
) -> None:
    cluster.deploy_error = error
    with pytest.raises(StartError, match=message):
        run(artifacts)
    assert cluster.verbs == ["init", "start", "run", "delete", "leave"]
    assert set(cluster.applications) == {"theirs"}


def test_without_an_address_it_joins_no_cluster_that_happens_to_run_here(
    cluster: Cluster, artifacts: Path
) -> None:
    run(artifacts, address=None)
    assert cluster.calls[0] == ("init", "local"), "None would join the machine's cluster, or RAY_ADDRESS"


@pytest.mark.anyio
async def test_an_answer_behind_rays_proxy_has_our_headers_and_one_request_id(
    cluster: Cluster, artifacts: Path, make_house: Callable[..., House]
) -> None:
    """Our own HTTP server adds the headers elsewhere; Ray's proxy adds the id that it gave the request."""
    house = make_house()
    replica = object.__new__(importlib.import_module("api.replicas").Replica)
    replica._service, replica._settings = house.service, house.settings
    app = replica.__serve_build_asgi_app__()
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://ray") as client:
        for path in ("/health/live", "/no/such/path"):
            answer = await client.get(path, headers={"x-request-id": "rays-own"})
            assert SECURITY_HEADERS.items() <= answer.headers.items()
            assert "x-request-id" not in answer.headers
        found = await client.get("/health/live", headers={"x-request-id": "not sane"})
        assert "x-request-id" in found.headers, "the log has another than the client's"


def test_idle_connections_of_rays_proxy_are_closed_as_ours_are(cluster: Cluster, artifacts: Path) -> None:
    run(artifacts)
    [options] = [call[1] for call in cluster.calls if call[0] == "start"]
    assert options["keep_alive_timeout_s"] == Settings().keep_alive_s == 75


def test_replicas_that_drain_longer_than_ray_waits_are_waited_for(cluster: Cluster, artifacts: Path) -> None:
    cluster.slow_deletions = 2
    run(artifacts)
    assert cluster.verbs == ["init", "start", "run", "delete", "delete", "delete", "leave"]


@pytest.mark.parametrize(
    ("loads", "replicas"),
    [([], 1), ([0.0], 1), ([0.8], 1), ([0.5, 0.5], 2), ([1.5, 1.5], 4), ([9.0], 4)],
    ids=["nothing known yet", "idle", "full", "shared", "behind", "more than there may be"],
)
def test_there_are_as_many_replicas_as_the_load_fills(
    cluster: Cluster, loads: list[float], replicas: int
) -> None:
    context: Any = SimpleNamespace(
        aggregated_metrics={"load": dict(enumerate(loads))} if loads else None,
        capacity_adjusted_min_replicas=1,
        capacity_adjusted_max_replicas=4,
    )
    desired = importlib.import_module("api.replicas").desired_replicas
    assert desired(context) == (replicas, {})
