"""What the kubelet does about processes that hang or take their time, as the manifests tell it to."""

import signal
import time
from datetime import datetime

import pytest

from tests.cluster.kubectl import Document
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import PARTS, TRITON, Headrace, restarts, status
from tests.cluster.node.faults import strike
from tests.cluster.node.recovery import Recoveries

LIVENESS_SECONDS = 300.0
"""Of the slowest probe: 6 times 15 s, 10 s of grace, models loaded; and as much again for a busy machine."""
LOADING_SECONDS = 20

pytestmark = pytest.mark.timeout(900)


@pytest.mark.usefixtures("redundant")
@pytest.mark.parametrize("name", ["gateway", "router", "triton"])
def test_what_hangs_takes_no_calls_and_is_started_again(
    node: Node, headrace: Headrace, recoveries: Recoveries, name: str
) -> None:
    def goes_unready_first(pod: Document) -> None:
        now = headrace.await_unready(pod, seconds=LIVENESS_SECONDS)
        assert "running" in status(now, name)["state"]
        assert restarts(now, name) == restarts(pod, name)

    machine = node.require_own()
    struck = strike(
        machine, headrace, PARTS[name], signal.SIGSTOP, seconds=LIVENESS_SECONDS, meanwhile=goes_unready_first
    )
    recoveries.add(f"{name} hangs; started again and ready after {struck.away:.0f} s", struck.report, struck.since)
    struck.check()


@pytest.mark.usefixtures("single")
def test_a_model_that_loads_slowly_takes_no_calls_until_it_has_loaded(
    headrace: Headrace, recoveries: Recoveries
) -> None:
    """And the pod that it is to replace goes on meanwhile."""
    old = {pod["metadata"]["uid"] for pod in headrace.pods(TRITON)}
    with headrace.load("--model", "slow", "--seconds", "0.2") as load:
        began = time.time()
        with headrace.slow_to_load(LOADING_SECONDS):
            headrace.await_rollout(TRITON)
            headrace.await_gone(TRITON, old, seconds=LIVENESS_SECONDS)
            report = load.stop()
            (pod,) = headrace.pods(TRITON)
    recoveries.add(f"rollout of a model that takes {LOADING_SECONDS} s to load", report, began)
    assert report.errors == ()
    assert _seconds_between(pod, "triton", "router") >= LOADING_SECONDS


def _seconds_between(pod: Document, first: str, second: str) -> float:
    begun, later = (
        datetime.fromisoformat(status(pod, name)["state"]["running"]["startedAt"]) for name in (first, second)
    )
    return (later - begun).total_seconds()
