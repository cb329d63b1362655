"""A node is drained: one pod of a kind at a time, each with its calls."""

import json
import time
from collections.abc import Iterator

import pytest

from tests.cluster.node.deployed.headrace import GATEWAY, NAMESPACE, TRITON, Headrace
from tests.cluster.node.recovery import Recoveries

DRAIN_SECONDS = 300.0
TOO_MANY = "disruption budget"

pytestmark = [pytest.mark.usefixtures("redundant"), pytest.mark.timeout(900)]


@pytest.fixture
def cordoned(headrace: Headrace) -> Iterator[list[str]]:
    """Every node of the cluster takes no new pods, so that what is evicted is not replaced."""
    found = headrace.kubectl.items("nodes")
    nodes = [node["metadata"]["name"] for node in found if not node["spec"].get("unschedulable")]
    headrace.kubectl.run("cordon", *nodes)
    yield nodes
    headrace.kubectl.run("uncordon", *nodes)


def evict(headrace: Headrace, pod: str) -> str:
    """Ask as `kubectl drain` does; empty where it is granted, else why not."""
    body = {"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": NAMESPACE}}
    path = f"/api/v1/namespaces/{NAMESPACE}/pods/{pod}/eviction"
    done = headrace.kubectl.attempt("create", "--raw", path, "-f", "-", given=json.dumps(body))
    return "" if done.returncode == 0 else done.stderr


@pytest.mark.parametrize("name", [GATEWAY, TRITON])
def test_the_second_pod_stays_until_the_first_is_replaced_and_no_call_fails(
    headrace: Headrace, recoveries: Recoveries, cordoned: list[str], name: str
) -> None:
    first, second = (pod["metadata"] for pod in headrace.pods(name))
    with headrace.load("--model", "slow", "--seconds", "2") as load:
        began = time.time()
        assert evict(headrace, first["name"]) == ""
        assert TOO_MANY in evict(headrace, second["name"])
        headrace.await_gone(name, {first["uid"]}, seconds=DRAIN_SECONDS)
        # Gone, and not replaced: still none to spare.
        assert TOO_MANY in evict(headrace, second["name"])
        headrace.kubectl.run("uncordon", *cordoned)
        headrace.await_ready(name, 2, seconds=DRAIN_SECONDS)
        assert evict(headrace, second["name"]) == ""
        headrace.await_gone(name, {second["uid"]}, seconds=DRAIN_SECONDS)
        headrace.await_ready(name, 2, seconds=DRAIN_SECONDS)
        report = load.stop()
    recoveries.add(f"both pods of {name} evicted, one after the other, with calls of 2 s in flight", report, began)
    assert report.errors == ()
