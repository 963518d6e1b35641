"""The alert rules and the dashboard: their tools load them, and every metric in them is one that a worker serves."""

import json
import re
from urllib.request import build_opener

import pytest
import yaml

from extraction.format.commit import commit_name, parse_commit
from extraction.storage import open_storage
from extraction.worker.metrics import Metrics
from tests.helpers.runs import make_run
from tests.helpers.workers import ROOT

RULES = yaml.safe_load((ROOT / "deploy/prometheus-rules.yaml").read_text())
DASHBOARD = json.loads((ROOT / "deploy/grafana-dashboard.json").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
QUERIES = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS = [alert["expr"] for alert in ALERTS] + QUERIES


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """What a worker serves after a commit: {metric: its labels}."""
    storage = open_storage(str(tmp_path_factory.mktemp("run")))
    make_run(storage, [[8] * 3])
    name = commit_name(0, 0)
    metrics = Metrics(0)
    try:
        metrics.on_commit(parse_commit(storage.read(name), name))
        text = build_opener().open(f"http://{metrics.address}:{metrics.port}/metrics").read().decode()
    finally:
        metrics.close()
    return {found[1]: set(re.findall(r"(\w+)=", found[2])) for found in re.finditer(r"^(\w+){(.*)} ", text, re.M)}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_and_label_is_served(served, expression):
    names = set(re.findall(r"\bextraction_\w+", expression))
    assert names <= served.keys()
    known = {"job", "instance"} | {label for name in names for label in served[name]}
    used = set(re.findall(r"(\w+)!?=~?\"", expression))
    for labels in re.findall(r"\b(?:by|without|on|ignoring) \((.*?)\)", expression):
        used |= set(re.split(r", *", labels))
    assert used <= known
    assert names or "up{" in expression


def test_every_metric_of_a_worker_is_on_the_dashboard(served):
    assert served.keys() == set(re.findall(r"\bextraction_\w+", " ".join(QUERIES)))


def test_the_alerts_say_of_what(served):
    for alert in ALERTS:
        labels = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
        (name, *_) = [*re.findall(r"\bextraction_\w+", alert["expr"]), ""]
        assert labels <= {"instance", *served.get(name, ())}


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_prometheus_language_takes_every_expression(expression):
    promql_parser = pytest.importorskip("promql_parser", reason="of the extra test")
    promql_parser.parse(expression.replace("$__rate_interval", "1m"))  # a variable of Grafana's
    with pytest.raises(ValueError):
        promql_parser.parse(expression + " by")


def test_grafana_takes_the_dashboard_and_knows_every_key():
    pytest.importorskip("grafana_foundation_sdk", reason="of the extra test")
    from grafana_foundation_sdk.cog import plugins
    from grafana_foundation_sdk.cog.encoder import JSONEncoder
    from grafana_foundation_sdk.models.dashboard import Dashboard

    plugins.register_default_plugins()
    written = json.loads(JSONEncoder(sort_keys=True).encode(Dashboard.from_json(DASHBOARD)))
    assert not list(_lost(DASHBOARD, written, "dashboard"))
    assert list(_lost(DASHBOARD | {"pannels": []}, written, "dashboard")) == ["dashboard.pannels"]


def _lost(given, found, place):
    """The places whose value is not found."""
    if isinstance(given, dict):
        for key, value in given.items():
            if key in found:
                yield from _lost(value, found[key], f"{place}.{key}")
            else:
                yield f"{place}.{key}"
    elif isinstance(given, list):
        assert len(given) == len(found), place
        for number, (one, other) in enumerate(zip(given, found, strict=True)):
            yield from _lost(one, other, f"{place}[{number}]")
    elif given != found:
        yield place
