"""Faults under load, and what callers feel of them."""

import signal
import time

import pytest

from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import GATEWAY, NAMESPACE, PARTS, TRITON, Headrace
from tests.cluster.node.deployed.load import BUSY
from tests.cluster.node.faults import strike
from tests.cluster.node.recovery import Recoveries

RECOVERY_SECONDS = 240.0
TAKEN_OVER_SECONDS = 50.0
"""Within which another pod has what one had that said that it leaves: 15 s, and the rest for a busy machine."""

pytestmark = [pytest.mark.usefixtures("redundant"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", [GATEWAY, TRITON])
def test_a_pod_that_is_deleted_is_replaced_and_no_call_fails(
    headrace: Headrace, recoveries: Recoveries, name: str
) -> None:
    with headrace.load(*BUSY) as load:
        pod = headrace.busiest(name, "slow")["metadata"]["name"]
        began = time.time()
        headrace.run("delete", "pod", pod, "--timeout=200s", seconds=210)
        headrace.await_ready(name, 2, seconds=RECOVERY_SECONDS)
        report = load.stop()
    recoveries.add(f"pod of {name} deleted", report, began)
    assert report.errors == ()
    assert max(report.longest, report.silence(began)) < TAKEN_OVER_SECONDS


@pytest.mark.parametrize("name", PARTS)
def test_a_process_that_is_killed_is_started_again(
    node: Node, headrace: Headrace, recoveries: Recoveries, name: str
) -> None:
    struck = strike(node.require_own(), headrace, PARTS[name], signal.SIGKILL, seconds=RECOVERY_SECONDS)
    recoveries.add(f"{name} killed; started again and ready after {struck.away:.0f} s", struck.report, struck.since)
    struck.check()


def test_without_the_container_runtime_calls_go_on(node: Node, headrace: Headrace, recoveries: Recoveries) -> None:
    machine = node.require_own()
    # The runtime carries what kubectl says to a pod: these callers must do without.
    with headrace.load_alone(*BUSY) as load:
        began = time.time()
        machine.kill_runtime()
        # No container can be started, and those that are there serve on.
        assert headrace.kubectl.attempt("--namespace", NAMESPACE, "exec", "caller", "--", "true").returncode != 0
        machine.start_runtime()
        pod = headrace.busiest(GATEWAY, "slow")["metadata"]["name"]
        headrace.run("delete", "pod", pod, "--timeout=200s", seconds=210)
        headrace.await_ready(GATEWAY, 2, seconds=RECOVERY_SECONDS)
        ready = time.time()
        report = load.stop()
    recoveries.add("container runtime killed and started again, then a pod of headrace-gateway deleted", report, began)
    assert report.after(ready)
    assert report.errors == ()
    assert max(report.longest, report.silence(began)) < TAKEN_OVER_SECONDS
