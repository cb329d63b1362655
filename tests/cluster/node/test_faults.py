"""Faults under load, and what callers feel of them."""

import os
import signal
import time

import pytest

from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import GATEWAY, NAMESPACE, PARTS, TRITON, Headrace
from tests.cluster.node.recovery import Recoveries

RECOVERY_SECONDS = 240.0

pytestmark = [pytest.mark.usefixtures("redundant"), pytest.mark.timeout(600)]


@pytest.mark.parametrize("name", [GATEWAY, TRITON])
def test_a_pod_that_is_deleted_is_replaced_and_no_call_fails(
    headrace: Headrace, recoveries: Recoveries, name: str
) -> None:
    pod = headrace.pods(name)[0]["metadata"]["name"]
    with headrace.load() as load:
        began = time.time()
        headrace.run("delete", "pod", pod, "--timeout=200s", seconds=210)
        headrace.await_ready(name, 2, seconds=RECOVERY_SECONDS)
        report = load.stop()
    recoveries.add(f"pod of {name} deleted", report, began)
    assert report.errors == ()


@pytest.mark.parametrize("name", PARTS)
def test_a_process_that_is_killed_is_started_again(
    node: Node, headrace: Headrace, recoveries: Recoveries, name: str
) -> None:
    machine, part = node.require_own(), PARTS[name]
    pod = headrace.pods(part.deployment)[0]
    with headrace.load() as load:
        began = time.time()
        os.kill(machine.process(pod, part.program), signal.SIGKILL)
        headrace.await_restart(pod, name, seconds=RECOVERY_SECONDS)
        ready = time.time()
        with headrace.load("--calls", "4") as later:
            assert later.stop().errors == ()
        report = load.stop()
    recoveries.add(f"{name} killed; started again and ready after {ready - began:.0f} s", report, began)
    assert report.after(began)
    if part.deployment == TRITON:
        # The other router runs what this one had begun.
        assert report.errors == ()


def test_without_the_container_runtime_calls_go_on(node: Node, headrace: Headrace, recoveries: Recoveries) -> None:
    machine = node.require_own()
    # The runtime carries what kubectl says to a pod: these callers must do without.
    load = headrace.load_alone()
    began = time.time()
    machine.kill_runtime()
    # No container can be started, and those that are there serve on.
    assert headrace.kubectl.attempt("--namespace", NAMESPACE, "exec", "caller", "--", "true").returncode != 0
    machine.start_runtime()
    headrace.run("delete", "pod", headrace.pods(GATEWAY)[0]["metadata"]["name"], "--timeout=200s", seconds=210)
    headrace.await_ready(GATEWAY, 2, seconds=RECOVERY_SECONDS)
    report = load.stop()
    recoveries.add("container runtime killed and started again, then a pod of headrace-gateway deleted", report, began)
    assert report.after(began)
    assert report.errors == ()
