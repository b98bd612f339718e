"""What the chart's pods may do, and whom they reach and are reached by."""

import re
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.kubernetes import COMPONENT, PODS, Chart, Objects, container, inner_port, pod


def test_pods_are_as_closed_as_in_compose(objects: Objects) -> None:
    for name in PODS:
        spec = pod(objects, name)
        assert spec["automountServiceAccountToken"] is False
        user = spec["securityContext"]
        assert user["runAsNonRoot"] is True
        assert user["seccompProfile"] == {"type": "RuntimeDefault"}
        assert {user["runAsUser"], user["runAsGroup"], user["fsGroup"]} == {1000}
        for one in [*spec["containers"], *spec.get("initContainers", [])]:
            assert one["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in one["resources"]["limits"]


@pytest.mark.parametrize("file", ["Dockerfile.gpu", "Dockerfile.cpu", "frontend/Dockerfile"])
def test_the_user_is_the_one_of_the_images(file: str) -> None:
    assert re.findall(r"--uid (\d+)", (ROOT / file).read_text()) == ["1000"]


def test_only_the_trainer_writes_models(objects: Objects) -> None:
    writable = {
        name: [not mount.get("readOnly", False) for mount in container(objects, name)["volumeMounts"]
               if mount["name"] == "artifacts"]
        for name in PODS
    }  # fmt: skip
    assert writable == {"api": [False], "page": [], "trainer": [True]}


def test_every_pod_has_its_policy_and_both_directions_are_closed(objects: Objects) -> None:
    policies = {name: item["spec"] for (kind, name), item in objects.items() if kind == "NetworkPolicy"}
    assert set(policies) == set(PODS)
    for name, policy in policies.items():
        kind = "Job" if name == "trainer" else "Deployment"
        labels = objects[kind, name]["spec"]["template"]["metadata"]["labels"]
        assert policy["podSelector"]["matchLabels"] == labels
        assert policy["policyTypes"] == ["Ingress", "Egress"]


def test_the_page_reaches_the_api_and_nothing_else(objects: Objects) -> None:
    dns, api = objects["NetworkPolicy", "page"]["spec"]["egress"]
    assert _is_dns(dns)
    labels = objects["Deployment", "api"]["spec"]["template"]["metadata"]["labels"]
    assert api == {
        "ports": [{"port": inner_port(objects, "api")}],
        "to": [{"podSelector": {"matchLabels": labels}}],
    }


def test_the_api_calls_nobody_unless_it_is_allowed_to(chart: Chart, objects: Objects) -> None:
    assert "egress" not in objects["NetworkPolicy", "api"]["spec"]
    allowed = chart.render("--set-json", 'api.egress=[{"ports": [{"port": 4318}]}]')
    dns, collector = allowed["NetworkPolicy", "api"]["spec"]["egress"]
    assert _is_dns(dns) and collector == {"ports": [{"port": 4318}]}


def test_only_the_page_and_named_callers_reach_the_api(chart: Chart) -> None:
    objects = chart.render("--set-json", "api.callers=[]")
    [rule] = objects["NetworkPolicy", "api"]["spec"]["ingress"]
    assert rule["ports"] == [{"port": inner_port(objects, "api")}]
    assert [peer["podSelector"]["matchLabels"][COMPONENT] for peer in rule["from"]] == ["page"]
    # A rule without `from` lets everyone in; the page without callers must have no rule.
    closed = chart.render("--set-json", "page.callers=[]")["NetworkPolicy", "page"]["spec"]
    assert "ingress" not in closed


def test_the_trainer_reaches_public_addresses_by_https(objects: Objects) -> None:
    policy = objects["NetworkPolicy", "trainer"]["spec"]
    dns, hub = policy["egress"]
    assert _is_dns(dns) and "ingress" not in policy
    assert hub["ports"] == [{"port": 443}]
    blocked = [block for peer in hub["to"] for block in peer["ipBlock"]["except"]]
    assert {"10.0.0.0/8", "169.254.0.0/16", "172.16.0.0/12", "192.168.0.0/16", "fc00::/7"} <= set(blocked)


def _is_dns(rule: Any) -> bool:
    return {(port["port"], port["protocol"]) for port in rule["ports"]} == {(53, "UDP"), (53, "TCP")}
