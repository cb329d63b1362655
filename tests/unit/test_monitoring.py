"""Dashboards, rules and scrape configurations, compared with what there is to scrape and with each other."""

import re
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import combinations
from pathlib import Path

import pytest

from gateway.errors import leaves
from headrace.runtime.telemetry import CALL_SECONDS
from scripts import dashboards
from scripts.panels import DASHBOARDS as MADE
from scripts.panels import OURS
from tests.monitoring import (
    CONFIGS,
    DASHBOARDS,
    FOLDER,
    RULES,
    TESTS,
    Query,
    Rule,
    dashboard_queries,
    documented_queries,
    grouped,
    panels,
    read,
    rule_queries,
    rules,
    selectors,
)
from tests.unit.test_docs import DOCS, ROOT, anchors, bare, table, text_of

QUERIES = [*dashboard_queries(), *rule_queries(), *documented_queries()]
ALERTS = rules("alert")
TARGET_LABELS = {"job", "instance", "pool"}
"""Of every target, as the scrape configurations make them."""
FOREIGN: Mapping[str, set[str]] = {
    # Prometheus' own, of every target: who is away, and how much it exports.
    "up": set(),
    "scrape_samples_scraped": set(),
    # Of Prometheus' client in every process of ours: the page names the family.
    "process_cpu_seconds_total": set(),
    "process_resident_memory_bytes": set(),
    # Triton's: what goes on inside it nobody else can tell.
    "nv_gpu_utilization": {"gpu_uuid"},
    "nv_inference_request_success": {"model", "version"},
    "nv_inference_count": {"model", "version"},
    "nv_inference_exec_count": {"model", "version"},
    "nv_inference_queue_duration_us": {"model", "version"},
    "nv_inference_compute_infer_duration_us": {"model", "version"},
    # Envoy's: REST calls that never come as far as a gateway.
    "envoy_http_downstream_rq_xx": {"envoy_response_code_class", "envoy_http_conn_manager_prefix"},
}
"""Metrics that are not ours, with their labels."""
NOT_OURS = {"RATE_LIMITED", "BYTES_LIMITED", "CONCURRENCY_LIMITED", "QUOTA_EXHAUSTED", "REQUEST_SLOW"}
"""Retriable, and a limit or a slowness of the caller's own."""

OURS_FOR_GOOD = {"INTERNAL", "SEQUENCE_LOST"}
"""Our fault, and the very same call would fail again."""


@cache
def labels() -> dict[str, set[str]]:
    """The labels of every metric that a query may name, but for those of the target."""
    known: dict[str, set[str]] = {name: set(own) for name, own in FOREIGN.items()}
    for row in table(DOCS / "reference" / "metrics.md", "metric", columns=5, every=True):
        name, own = bare(row[0]), set(re.findall(r"`(\w+)`", row[2]))
        if row[1] == "histogram":
            known |= {f"{name}_bucket": own | {"le"}, f"{name}_sum": own, f"{name}_count": own}
        else:
            known[name] = own
    for rule in rules("record"):
        # A file's rules may ask for what those before them recorded.
        known[rule.name] = grouped(rule.expr) - {"le"} or set().union(
            *(known[name] for name, _ in selectors(rule.expr))
        )
    return known


def ids(queries: Iterable[Query]) -> list[str]:
    return [query.where for query in queries]


# Queries.


@pytest.mark.parametrize("query", QUERIES, ids=ids(QUERIES))
def test_every_metric_of_a_query_exists_with_its_labels(query: Query) -> None:
    asked = list(selectors(query.expr))

    assert asked
    for name, matched in asked:
        assert name in labels(), name
        assert matched.keys() <= labels()[name] | TARGET_LABELS, name
    assert grouped(query.expr) <= set().union(*(labels()[name] for name, _ in asked)) | TARGET_LABELS


@pytest.mark.parametrize("query", QUERIES, ids=ids(QUERIES))
def test_a_query_matches_values_that_there_are(query: Query) -> None:
    """Reasons, outcomes and bounds of histograms; a value that nobody has is an empty graph, and a silent alert."""
    page = text_of(DOCS / "reference" / "metrics.md")
    for name, matched in selectors(query.expr):
        for label, value in matched.items():
            if label == "le":
                assert float(value) in CALL_SECONDS
            elif label in {"reason", "outcome", "event"} and "*" not in value:
                for one in value.split("|"):
                    assert f"`{one}`" in page or one in reasons(), (name, one)


@pytest.mark.parametrize("query", [query for query in QUERIES if query.legend], ids=lambda query: query.where)
def test_a_legend_names_labels_that_the_answer_has(query: Query) -> None:
    named = set(re.findall(r"\{\{(\w+)\}\}", query.legend))
    left = grouped(query.expr) or set().union(*(labels()[name] for name, _ in selectors(query.expr))) | TARGET_LABELS

    assert named <= left


def test_every_recording_is_asked_for() -> None:
    asked = {name for query in QUERIES for name, _ in selectors(query.expr)}
    told = "".join(text_of(page) for page in (DOCS / "howto").glob("*.md"))

    assert [rule.name for rule in rules("record") if rule.name not in asked and rule.name not in told] == []


# Dashboards.


def test_every_dashboard_is_there() -> None:
    assert {path.stem for path in DASHBOARDS} == MADE.keys() == {"fleet", "model", "tenant"}


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_is_what_its_panels_give(path: Path) -> None:
    """`.venv/bin/python -m scripts.dashboards` writes them anew."""
    assert text_of(path) == dashboards.page(path.stem)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_every_panel_says_what_it_is(path: Path) -> None:
    for panel in panels(path):
        assert panel["title"]
        assert panel["description"].endswith("."), panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"], panel["title"]
        assert panel["targets"], panel["title"]
        assert all(target["legendFormat"] for target in panel["targets"]), panel["title"]
    assert len({panel["title"] for panel in panels(path)}) == len(panels(path))


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_panels_stand_beside_each_other(path: Path) -> None:
    places = [panel["gridPos"] for panel in panels(path)]

    assert all(place["x"] + place["w"] <= 24 for place in places)
    for one, other in combinations(places, 2):
        beside = one["x"] + one["w"] <= other["x"] or other["x"] + other["w"] <= one["x"]
        above = one["y"] + one["h"] <= other["y"] or other["y"] + other["h"] <= one["y"]
        assert beside or above, (one, other)


@pytest.mark.parametrize("path", DASHBOARDS, ids=lambda path: path.stem)
def test_a_dashboard_has_the_variables_that_it_uses(path: Path) -> None:
    text = text_of(path)
    declared = {variable["name"] for variable in read(path)["templating"]["list"]}

    used = set(re.findall(r"\$\{?([a-z]+)", text))
    assert used == declared
    assert set(re.findall(r"\$(__\w+)", text)) <= {"__rate_interval", "__all"}
    assert text.count('"type": "prometheus"') == text.count('"uid": "${datasource}"')


def test_documents_name_panels_that_there_are() -> None:
    """Alerts send who is woken to panels by name."""
    titles = {panel["title"] for path in DASHBOARDS for panel in panels(path)}
    titles |= {row["title"] for path in DASHBOARDS for row in read(path)["panels"]}
    texts = [rule.whole["annotations"]["description"] for rule in ALERTS]

    named = {name for text in texts for name in re.findall(r'"([^"]+)"', text)}
    assert named
    assert named <= titles


# Objectives.


def reasons() -> set[str]:
    return {"OK", "TRITON", "CANCELLED"} | {leaf.reason for leaf in leaves()}


def test_what_is_our_fault_is_what_is_retriable_and_no_limit_of_the_caller() -> None:
    retriable = {leaf.reason for leaf in leaves() if leaf.retriable and not leaf.reason.startswith("ADMIN_")}
    [bad] = [rule for rule in rules("record") if rule.name == "headrace:slo_availability_bad:rate5m"]
    [(_, matched)] = selectors(bad.expr)

    assert set(matched["reason"].split("|")) == (retriable - NOT_OURS) | OURS_FOR_GOOD
    assert matched["reason"] == OURS


# Alerts.


@pytest.mark.parametrize("alert", ALERTS, ids=lambda rule: rule.name)
def test_an_alert_says_what_is_the_matter_and_what_to_do(alert: Rule) -> None:
    told = alert.whole["annotations"]

    assert alert.name.startswith("Headrace")
    assert alert.whole["for"]
    assert alert.whole["labels"]["severity"] in {"page", "ticket"}
    assert told.keys() == {"summary", "description", "runbook"}
    assert len(told["description"].split()) > 20
    assert not told["summary"].endswith(".")
    page, anchor = told["runbook"].split("#")
    assert anchor == alert.name.lower()
    assert anchor in anchors(ROOT / page)


def test_names_of_rules_are_of_one_rule_each() -> None:
    names = [rule.name for rule in (*ALERTS, *rules("record"))]

    assert len(set(names)) == len(names)


def test_the_page_on_monitoring_has_every_alert_and_no_other() -> None:
    headings = re.findall(r"^### (Headrace\w+)$", text_of(DOCS / "howto" / "monitor.md"), re.MULTILINE)

    assert sorted(headings) == sorted(alert.name for alert in ALERTS)


def seen(*, firing: bool) -> set[str]:
    """The alerts that promtool's tests see firing, or silent."""
    groups = [group for path in TESTS for group in read(path)["tests"]]
    states = [
        (each["alertname"], bool(each.get("exp_alerts"))) for one in groups for each in one.get("alert_rule_test", ())
    ]
    for one in groups:
        for each in one.get("promql_expr_test", ()):
            asked = re.fullmatch(r'ALERTS\{alertname="(\w+)", alertstate="firing"\}', each["expr"])
            if asked is not None:
                assert all(f'alertname="{asked[1]}"' in sample["labels"] for sample in each["exp_samples"])
                states.append((asked[1], bool(each["exp_samples"])))
    return {name for name, fires in states if fires == firing}


@pytest.mark.parametrize("firing", [True, False], ids=["firing", "silent"])
def test_every_alert_is_seen(firing: bool) -> None:
    """tests/integration/test_rules.py runs what is only read here."""
    assert seen(firing=firing) == {alert.name for alert in ALERTS}


def test_every_condition_of_an_alert_can_be_tried_by_itself() -> None:
    for alert in ALERTS:
        for condition in alert.conditions:
            assert condition.count("(") == condition.count(")"), alert.name


# What is scraped.


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_scrape_configuration_takes_the_rules(path: Path) -> None:
    patterns = read(path)["rule_files"]

    assert {found for pattern in patterns for found in FOLDER.glob(pattern)} == set(RULES)


def test_pods_get_the_jobs_that_queries_ask_for() -> None:
    [scrape] = read(FOLDER / "prometheus-pods.yaml")["scrape_configs"]
    made: set[str] = set()
    for relabelled in scrape["relabel_configs"]:
        if relabelled.get("target_label") == "job":
            components = relabelled["regex"].strip("()").split("|")
            made |= {relabelled["replacement"].replace("$1", component) for component in components}
    asked = {matched["job"] for query in QUERIES for _, matched in selectors(query.expr) if "job" in matched}

    assert made == {"headrace-gateway", "headrace-router", "headrace-aggregator", "envoy", "triton"}
    assert asked - {"headrace-.*"} <= made
    assert TARGET_LABELS - {"job"} <= {relabelled.get("target_label") for relabelled in scrape["relabel_configs"]}
