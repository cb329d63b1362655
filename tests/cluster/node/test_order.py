"""A pod's Triton, a native sidecar: it starts first and stops last."""

import os
import select

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster.kubectl import Document
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import GATEWAY, PARTS, TRITON, Headrace, status
from tests.cluster.node.faults import REPUBLISHED

CALL_SECONDS = 15
"""Longer than Triton waits for what it runs once it is told to stop (`--exit-timeout-secs`)."""
GONE_SECONDS = 120.0
"""A third of the pod's grace."""
LOADING_SECONDS = 200
"""Longer than the pod may take to go."""


@pytest.mark.usefixtures("single")
def test_triton_outlives_the_router_and_what_it_still_runs(node: Node, headrace: Headrace) -> None:
    machine = node.require_own()
    (pod,) = headrace.pods(TRITON)
    republished = headrace.total(GATEWAY, REPUBLISHED)
    with headrace.load("--model", "slow", "--seconds", str(CALL_SECONDS), "--calls", "1", wait=False) as load:
        assert headrace.busiest(TRITON, "slow")["metadata"]["uid"] == pod["metadata"]["uid"]
        router, triton = (os.pidfd_open(machine.process(pod, PARTS[name].program)) for name in ("router", "triton"))
        try:
            headrace.run("delete", "pod", pod["metadata"]["name"], "--wait=false")
            assert await_end(router, triton) == {router}
            assert await_end(triton) == {triton}
        finally:
            os.close(router)
            os.close(triton)
        report = load.stop()
    assert (len(report.answered), report.errors) == (1, ())
    assert headrace.total(GATEWAY, REPUBLISHED) == republished, "it was answered where it ran first"
    headrace.await_ready(TRITON, 1, seconds=GONE_SECONDS)
    (new,) = headrace.pods(TRITON)
    assert_models_first(headrace, new)


@pytest.mark.usefixtures("single")
def test_a_pod_that_is_told_to_go_while_its_models_load_goes(headrace: Headrace) -> None:
    """Triton obeys nobody then, and would stay for all of the pod's grace."""
    old = {pod["metadata"]["uid"] for pod in headrace.pods(TRITON)}
    with headrace.slow_to_load(LOADING_SECONDS):

        def loading() -> str | None:
            pods = headrace.pods(TRITON)
            new = [
                pod for pod in pods if pod["metadata"]["uid"] not in old and "initContainerStatuses" in pod["status"]
            ]
            running = [pod for pod in new if "running" in status(pod, "triton")["state"]]
            return running[0]["metadata"]["name"] if running else None

        pod = eventually(loading, seconds=GONE_SECONDS, what="a new pod loads its models")
        headrace.run("delete", "pod", pod, f"--timeout={GONE_SECONDS:g}s", seconds=GONE_SECONDS + 10)


def await_end(*processes: int) -> set[int]:
    """Those that have ended when the first has."""
    ended, _, _ = select.select(processes, (), (), GONE_SECONDS)
    return set(ended)


def assert_models_first(headrace: Headrace, pod: Document) -> None:
    """Triton had loaded its models before the router started."""
    triton, router = (status(pod, name)["state"]["running"]["startedAt"] for name in ("triton", "router"))
    assert triton < router
    loaded = headrace.run("logs", pod["metadata"]["name"], "--container=triton", "--timestamps")
    models = [line.split()[0] for line in loaded.splitlines() if "successfully loaded" in line]
    assert len(models) == 2
    assert max(models)[:19] <= router[:19]
