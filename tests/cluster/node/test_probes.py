"""What the kubelet does about processes that hang or take their time, as the manifests tell it to."""

import os
import signal
import time
from datetime import datetime

import pytest

from tests.cluster.kubectl import Document
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import PARTS, TRITON, Headrace, status
from tests.cluster.node.recovery import Recoveries

LIVENESS_SECONDS = 300.0
"""Of the slowest probe: 6 times 15 s, 10 s of grace, models loaded; and as much again for a busy machine."""
LOADING_SECONDS = 20


@pytest.mark.usefixtures("redundant")
def test_triton_has_loaded_its_models_before_the_router_starts(headrace: Headrace) -> None:
    for pod in headrace.pods(TRITON):
        triton, router = (status(pod, name)["state"]["running"]["startedAt"] for name in ("triton", "router"))
        assert triton < router
        loaded = headrace.run("logs", pod["metadata"]["name"], "--container=triton", "--timestamps")
        models = [line.split()[0] for line in loaded.splitlines() if "successfully loaded" in line]
        assert len(models) == 2
        assert max(models)[:19] <= router[:19]


@pytest.mark.usefixtures("redundant")
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", ["gateway", "router", "triton"])
def test_what_hangs_is_started_again(node: Node, headrace: Headrace, recoveries: Recoveries, name: str) -> None:
    machine, part = node.require_own(), PARTS[name]
    pod = headrace.pods(part.deployment)[0]
    with headrace.load() as load:
        began = time.time()
        os.kill(machine.process(pod, part.program), signal.SIGSTOP)
        headrace.await_restart(pod, name, seconds=LIVENESS_SECONDS)
        took = time.time() - began
        with headrace.load("--calls", "4") as later:
            assert later.stop().errors == ()
        report = load.stop()
    recoveries.add(f"{name} hangs; started again and ready after {took:.0f} s", report, began)
    assert report.after(began)


@pytest.mark.timeout(900)
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
            pod = headrace.pods(TRITON)[0]
    recoveries.add(f"rollout of a model that takes {LOADING_SECONDS} s to load", report, began)
    assert report.errors == ()
    assert _seconds_between(pod, "triton", "router") >= LOADING_SECONDS


def _seconds_between(pod: Document, first: str, second: str) -> float:
    begun, later = (
        datetime.fromisoformat(status(pod, name)["state"]["running"]["startedAt"]) for name in (first, second)
    )
    return (later - begun).total_seconds()
