"""What the chart promises: to Kubernetes, and of our own services."""

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.support import ROOT
from tests.support.kubernetes import CHART, PODS, Ask, Chart, Objects, Refused, container, inner_port, pod

VERSIONS = ("1.30", "1.37")
ALL_THAT_MAY_BE_LEFT_OUT = (
    "--set", "artifacts.storageClass=nfs,api.env.API_PRESET=latency,page.env.FRONTEND_TITLE=Ours",
    "--set-json", 'api.egress=[{"ports": [{"port": 4318}]}]',
)  # fmt: skip
ENDS_WITHIN_S = 25  # from the drained API to its last process; measured: 10 s
METRICS = """
import json
from api.telemetry.metrics import Metrics
print(json.dumps([metric.name for metric in Metrics().registry.collect()]))
"""
ROUTES = """
import json
from api.operations import health, metrics
routes = [*health.router.routes, *metrics.router.routes]
print(json.dumps({route.path: route.path in health.OPEN_PATHS for route in routes}))
"""
API_SETTINGS = """
import json, os
from api.settings import read_settings, reference
known = {name for name, _, _ in reference()}
settings = read_settings()
print(json.dumps({
    "unknown": sorted(set(filter(lambda name: name.startswith("API_"), os.environ)) - known),
    "port": settings.port, "drain_s": settings.drain_timeout_s, "admin_port": settings.admin_port,
    "keys": [settings.key.get_secret_value(), settings.admin_key.get_secret_value()],
    "redis": settings.redis_url.get_secret_value(),
}))
"""
REDIS = "redis://redis:6379/0"
PAGE_SETTINGS = """
import json
from middleware import EXACT
from settings import load_settings
settings = load_settings()
print(json.dumps({
    "port": settings.port, "api": str(settings.api_url), "paths": sorted(EXACT),
    "proxies": settings.trusted_proxies,
}))
"""


@pytest.mark.parametrize("version", VERSIONS)
def test_every_object_fits_kubernetes_own_schema(chart: Chart, version: str) -> None:
    for options in ((), ALL_THAT_MAY_BE_LEFT_OUT):
        for item in chart.render(*options).values():
            kubernetes_validate.validate(item, version, strict=True)


def test_a_misspelled_field_would_be_reported(objects: Objects) -> None:
    wrong = copy.deepcopy(objects)
    container(wrong, "api")["livenessProbe"]["timeoutSecond"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="timeoutSecond"):
        kubernetes_validate.validate(wrong["Deployment", "api"], VERSIONS[-1], strict=True)


def test_helm_finds_nothing_to_mend(chart: Chart) -> None:
    chart.run("lint", "--strict", str(CHART), "--values", str(chart.values))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("api.replicas=2", "replicas"),
        ("api.minReplicas=0", "minReplicas"),
        ("artifacts.accessMode=ReadWriteAll", "accessMode"),
        ("api.env.API_KEY=sk-1", "API_KEY"),
        ("page.env.FRONTEND_API_KEY=sk-1", "FRONTEND_API_KEY"),
    ],
)
def test_what_is_no_value_of_the_chart_is_refused_by_name(chart: Chart, wrong: str, message: str) -> None:
    with pytest.raises(Refused, match=message):
        chart.render("--set", wrong)


def test_every_value_changes_something(helm: Path) -> None:
    """A value that nothing uses would render the same."""
    chart = Chart(helm, CHART / "values.yaml")
    usual = chart.render()
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    leaves = list(_leaves(values))
    assert len(leaves) > 20
    for path, value in leaves:
        option, other = "--set-string", "7"
        if isinstance(value, dict):
            path = f"{path}.OTHER"
        elif isinstance(value, list):
            option, other = "--set-json", '[{"to": [{"podSelector": {}}]}]'
        elif isinstance(value, int):  # and bool
            option, other = "--set", "false" if value is True else "7"
        elif value == "ReadWriteMany":
            other = "ReadWriteOnce"
        assert chart.render(option, f"{path}={other}") != usual, f"{path} is used by nothing"


def _leaves(values: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in values.items():
        place = f"{path}.{name}" if path else name
        if isinstance(value, dict) and value and name not in ("env", "nodeSelector"):
            yield from _leaves(value, place)
        else:
            yield place, value


def test_probes_ask_what_answers_without_a_key(objects: Objects, ask: Ask) -> None:
    is_open = ask("api", ROUTES, {})
    probes = {
        name: container(objects, "api")[f"{name}Probe"] for name in ("startup", "readiness", "liveness")
    }
    paths = {name: probe["httpGet"]["path"] for name, probe in probes.items()}
    assert paths == {"startup": "/health/ready", "readiness": "/health/ready", "liveness": "/health/live"}
    assert all(is_open[path] for path in paths.values())
    page = container(objects, "page")
    answered = ask("frontend", PAGE_SETTINGS, _told(objects, "page"))["paths"]
    for name in probes:
        assert page[f"{name}Probe"]["httpGet"]["path"] in answered


def test_a_start_may_take_as_long_as_in_compose(objects: Objects) -> None:
    probe = container(objects, "api")["startupProbe"]
    [minutes] = re.findall(r"--start-period=(\d+)m", (ROOT / "Dockerfile.gpu").read_text())
    assert probe["periodSeconds"] * probe["failureThreshold"] >= 60 * int(minutes)


def test_the_api_starts_with_its_settings_and_secrets(objects: Objects, ask: Ask, tmp_path: Path) -> None:
    for secret in _secrets(objects, "api"):
        for item in secret["items"]:
            content = REDIS if item["key"] == "API_REDIS_URL" else f"the-content-of-{item['key']}"
            (tmp_path / item["path"]).write_text(content)
    environment = _told(objects, "api")
    mounted = {m["name"]: m["mountPath"] for m in container(objects, "api")["volumeMounts"]}
    assert environment["API_SECRETS_DIR"] == mounted["secrets"]
    # API_HOST: of the Dockerfiles, and only with a strong key
    environment |= {"API_SECRETS_DIR": str(tmp_path), "API_HOST": "0.0.0.0"}
    settings = ask("api", API_SETTINGS, environment)
    assert settings["keys"] == ["the-content-of-API_KEY", "the-content-of-API_ADMIN_KEY"]
    assert settings["redis"] == REDIS
    assert settings["unknown"] == []
    assert settings["port"] == inner_port(objects, "api") != settings["admin_port"]


def test_the_page_starts_with_its_settings_and_finds_the_api(objects: Objects, ask: Ask) -> None:
    settings = ask("frontend", PAGE_SETTINGS, _told(objects, "page"))
    assert settings["port"] == inner_port(objects, "page")
    service = objects["Service", "api"]
    [port] = service["spec"]["ports"]
    assert settings["api"] == f"http://{service['metadata']['name']}:{port['port']}/"


def test_the_page_trusts_the_proxy_that_a_value_names_and_no_other(chart: Chart, ask: Ask) -> None:
    usual = ask("frontend", PAGE_SETTINGS, _told(chart.render(), "page"))
    assert usual["proxies"] == ""
    objects = chart.render("--set", "page.env.FRONTEND_TRUSTED_PROXIES=10.244.0.0/16")
    assert ask("frontend", PAGE_SETTINGS, _told(objects, "page"))["proxies"] == "10.244.0.0/16"


def test_a_service_of_kubernetes_cannot_become_a_setting(objects: Objects, ask: Ask) -> None:
    """Kubernetes sets variables for every Service in its pods; for one named api, API_PORT."""
    links = {"API_PORT": "tcp://10.0.0.1:8000"}
    assert "API_PORT=tcp://10.0.0.1:8000" in ask("api", API_SETTINGS, links)
    assert all(pod(objects, name)["enableServiceLinks"] is False for name in PODS)


@pytest.mark.parametrize("drain_s", [0, 30, 600])
def test_streams_have_their_time_when_a_pod_ends(chart: Chart, drain_s: int) -> None:
    objects = chart.render("--set", f"api.drainSeconds={drain_s}")
    settled = container(objects, "api")["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert float(_told(objects, "api")["API_DRAIN_TIMEOUT_S"]) == drain_s
    assert pod(objects, "api")["terminationGracePeriodSeconds"] >= settled + drain_s + ENDS_WITHIN_S
    assert objects["Deployment", "api"]["spec"]["strategy"]["rollingUpdate"]["maxUnavailable"] == 0


def test_the_autoscaler_reads_a_metric_that_the_api_has(objects: Objects, ask: Ask) -> None:
    scaler = objects["HorizontalPodAutoscaler", "api"]["spec"]
    [metric] = scaler["metrics"]
    name = metric["pods"]["metric"]["name"]
    assert name in ask("api", METRICS, {})
    [rule] = yaml.safe_load((ROOT / "monitoring" / "prometheus-adapter.yml").read_text())["rules"]["custom"]
    assert rule["seriesQuery"].partition("{")[0] == name
    deployment = objects["Deployment", "api"]
    assert scaler["scaleTargetRef"]["name"] == deployment["metadata"]["name"]
    assert "replicas" not in deployment["spec"], "every upgrade would undo what the autoscaler did"
    limit = _told(objects, "api").get("API_MAX_NUM_SEQS", "64")
    assert int(metric["pods"]["target"]["averageValue"]) <= int(limit)


def test_prometheus_is_given_the_operators_key_where_its_operator_is(chart: Chart, ask: Ask) -> None:
    assert ("PodMonitor", "api") not in chart.render()
    monitor = chart.render("--api-versions", "monitoring.coreos.com/v1")["PodMonitor", "api"]["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint["path"] in ask("api", ROUTES, {})
    assert endpoint["authorization"]["credentials"] == {"name": "finechat", "key": "API_ADMIN_KEY"}


def test_a_tenth_of_the_replicas_at_most_is_disrupted(objects: Objects) -> None:
    budget = objects["PodDisruptionBudget", "api"]["spec"]
    assert budget["maxUnavailable"] == "10%"  # Kubernetes rounds it up: one of two
    assert budget["selector"] == objects["Deployment", "api"]["spec"]["selector"]


def test_keys_come_from_the_secret_and_each_pod_sees_its_own(chart: Chart) -> None:
    objects = chart.render("--set", "secret=somewhere")
    assert not any(kind == "Secret" for kind, _ in objects)
    seen = {}
    for name in PODS:
        secrets = _secrets(objects, name)
        variables = [
            v["valueFrom"]["secretKeyRef"] for v in container(objects, name)["env"] if "valueFrom" in v
        ]
        assert {v["name"] for v in (*secrets, *variables)} == {"somewhere"}
        items = [item["key"] for secret in secrets for item in secret["items"]]
        seen[name] = sorted([*items, *(v["key"] for v in variables)])
    api = ["API_ADMIN_KEY", "API_KEY", "API_REDIS_URL"]
    assert seen == {"api": api, "page": ["API_KEY"], "trainer": ["HF_TOKEN"]}


def test_gpus_are_asked_for_where_there_are_some(chart: Chart, objects: Objects) -> None:
    for name in ("api", "trainer"):
        limits, spec = container(objects, name)["resources"]["limits"], pod(objects, name)
        if chart.values.name == "values.yaml":
            assert limits["nvidia.com/gpu"] == 1
            assert spec["nodeSelector"] and spec["tolerations"][0]["key"] == "nvidia.com/gpu"
        else:
            assert "nvidia.com/gpu" not in limits and "nodeSelector" not in spec
    assert "nvidia.com/gpu" not in container(objects, "page")["resources"]["limits"]


def test_another_profile_or_image_is_another_job(chart: Chart) -> None:
    def name(*options: str) -> str:
        return str(chart.render(*options)["Job", "trainer"]["metadata"]["name"])

    usual = name()
    assert name("--set", "api.memory=9Gi") == usual
    assert len({usual, name("--set", "trainer.profile=t4-qlora"), name("--set", "images.trainer=a:2")}) == 3
    assert ("Job", "trainer") not in chart.render("--set", "trainer.profile=")


def test_profiles_are_the_trainers(objects: Objects) -> None:
    verb, option, profile = container(objects, "trainer")["args"]
    assert (verb, option) == ("run", "--config")
    assert (ROOT / "trainer" / "configs" / f"{profile}.yaml").is_file()


def _secrets(objects: Objects, name: str) -> list[Any]:
    """What its volumes show of Secrets."""
    volumes = pod(objects, name)["volumes"]
    projected = [
        source["secret"] for v in volumes if "projected" in v for source in v["projected"]["sources"]
    ]
    return projected + [{"name": v["secret"]["secretName"], **v["secret"]} for v in volumes if "secret" in v]


def _told(objects: Objects, name: str) -> dict[str, str]:
    """A container's variables; those from the Secret with some content."""
    return {v["name"]: v.get("value", "of-the-secret") for v in container(objects, name)["env"]}
