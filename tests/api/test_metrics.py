"""What /metrics says, and that the dashboard and the operator's page speak of it and of nothing else."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from api.telemetry.metrics import FastHistogram, Metrics
from tests.support.api import House

DOCS = Path(__file__).parents[2] / "docs"
NAMES = {metric.name for metric in Metrics().registry.collect()}


@pytest.mark.anyio
async def test_every_metric_is_a_panel_of_the_dashboard_and_the_other_way_round(
    make_house: Callable[..., House],
) -> None:
    async with make_house().client() as client:
        text = (await client.get("/metrics")).text
    served = {family.name for family in text_string_to_metric_families(text)}
    assert NAMES <= served
    dashboard = json.loads((DOCS / "grafana.json").read_text(encoding="utf-8"))
    asked = " ".join(target["expr"] for panel in dashboard["panels"] for target in panel["targets"])
    # As they are written there: counters with _total, histograms with _bucket.
    found = {re.sub(r"_(total|bucket)$", "", name) for name in re.findall(r"finechat_\w+", asked)}
    assert found == NAMES


def test_the_dashboard_asks_for_labels_that_are_there() -> None:
    labels = {"le"} | {
        label for metric in vars(Metrics()).values() for label in getattr(metric, "_labelnames", ())
    }
    dashboard = (DOCS / "grafana.json").read_text(encoding="utf-8")
    asked = {label for group in re.findall(r"by \(([\w, ]+)\)", dashboard) for label in group.split(", ")}
    assert asked and asked <= labels
    assert set(re.findall(r"\{\{(\w+)\}\}", dashboard)) <= asked


def test_every_metric_is_explained() -> None:
    page = (DOCS / "operations.md").read_text(encoding="utf-8")
    found = {re.sub(r"_total$", "", name) for name in re.findall(r"^\| `(finechat_\w+)", page, re.MULTILINE)}
    assert found == NAMES


def test_the_fast_histogram_counts_as_prometheus_own() -> None:
    fast = FastHistogram("x_seconds", "x", (0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 2.0):
        fast.observe(value)
    [family] = fast.collect()
    found = {(sample.name, sample.labels.get("le")): sample.value for sample in family.samples}
    assert found == {
        ("x_seconds_bucket", "0.1"): 2,
        ("x_seconds_bucket", "1.0"): 3,
        ("x_seconds_bucket", "+Inf"): 4,
        ("x_seconds_count", None): 4,
        ("x_seconds_sum", None): 2.65,
    }
