"""A running stack exports what docs/reference/metrics.md says, and calls show in it."""

import re

from prometheus_client.parser import text_string_to_metric_families

from tests.acceptance.calls import Client, simple
from tests.acceptance.eventually import eventually
from tests.acceptance.metrics import get, metric
from tests.acceptance.stack import Stack
from tests.unit.test_docs import DOCS, text_of

SECONDS = 30.0


def stated(process: str) -> set[str]:
    """The metrics of a process by the page, without `_total`, as the parser names them."""
    page = text_of(DOCS / "reference" / "metrics.md")
    named = re.findall(rf"^\| `(headrace_(?:{process}|build)_\w+)`", page, re.MULTILINE)
    return {name.removesuffix("_total") for name in named}


def exported(address: str) -> set[str]:
    """What a process exports of ours."""
    status, text = get(address, "/metrics")
    assert status == 200
    names = {family.name for family in text_string_to_metric_families(text)}
    return {name for name in names if name.startswith("headrace_")}


def test_gateway_and_router_export_what_the_page_has(stack: Stack) -> None:
    assert exported(stack.ready["admin"][0]) == stated("gateway")
    assert exported(stack.ready["router_admin"][0]) == stated("router")


def test_a_call_is_told_by_model_and_tenant_at_both_ends(stack: Stack, gateway: Client) -> None:
    edge, router = stack.ready["admin"][0], stack.ready["router_admin"][0]
    of_model = {"model": "simple"}
    before = {
        "calls": metric(edge, "headrace_gateway_model_calls_total", outcome="ok", **of_model),
        "tenant": metric(edge, "headrace_gateway_tenant_calls_total", outcome="ok", tenant="development"),
        "seconds": metric(edge, "headrace_gateway_call_duration_seconds_count", **of_model),
        "waits": metric(router, "headrace_router_queue_wait_seconds_count", **of_model),
    }

    gateway.infer(simple())

    assert metric(edge, "headrace_gateway_model_calls_total", outcome="ok", **of_model) == before["calls"] + 1
    assert metric(edge, "headrace_gateway_call_duration_seconds_count", **of_model) == before["seconds"] + 1
    assert metric(edge, "headrace_gateway_tenant_calls_total", outcome="ok", tenant="development") > before["tenant"]
    assert metric(router, "headrace_router_queue_wait_seconds_count", **of_model) == before["waits"] + 1
    assert metric(router, "headrace_router_window", **of_model) > 0
    assert metric(router, "headrace_router_partitions", **of_model) > 0
    assert 0 <= metric(edge, "headrace_gateway_announcements_age_seconds") < SECONDS
    eventually(
        lambda: metric(router, "headrace_router_oldest_wait_seconds", **of_model) == 0,
        seconds=SECONDS,
        what="nothing waits",
    )
