"""Rolling upgrades under load: every pod is replaced, and no call fails."""

import time

import pytest

from tests.cluster.node.deployed.headrace import ENVOY, ENVOY_ADDRESS, GATEWAY, TRITON, Headrace
from tests.cluster.node.recovery import Recoveries

ROLLOUT_SECONDS = 400.0

pytestmark = pytest.mark.timeout(900)


def replace(headrace: Headrace, *names: str) -> None:
    """Every pod of these deployments at once, until the old ones, which leave once nobody needs them, are gone."""
    before = {name: _uids(headrace, name) for name in names}
    for name in names:
        headrace.run("rollout", "restart", f"deployment/{name}")
    for name, uids in before.items():
        headrace.await_rollout(name, seconds=ROLLOUT_SECONDS)
        headrace.await_gone(name, uids, seconds=ROLLOUT_SECONDS)


def _uids(headrace: Headrace, name: str) -> set[str]:
    return {pod["metadata"]["uid"] for pod in headrace.pods(name)}


@pytest.mark.parametrize("name", [GATEWAY, TRITON])
def test_every_pod_is_replaced_and_no_call_fails(headrace: Headrace, recoveries: Recoveries, name: str) -> None:
    """Of one pod alone, which is the hardest: there is no other to take over before the new one."""
    headrace.scale(name, 1)
    with headrace.load("--model", "slow", "--seconds", "1.5") as load:
        began = time.time()
        replace(headrace, name)
        ended = time.time()
        report = load.stop()
    recoveries.add(f"rolling upgrade of {name}, one of it, calls of 1.5 s in flight", report, began)
    assert report.errors == ()
    assert report.after(ended)


def test_envoy_is_replaced_and_no_call_through_it_fails(headrace: Headrace, recoveries: Recoveries) -> None:
    """One of it, with gRPC on connections that stay and are silent most of the time, and REST on one for each call."""
    with (
        headrace.load("--callers", "20", "--pause", "0.2", address=ENVOY_ADDRESS) as grpc,
        headrace.load("--rest", "--seconds", "0.5", address=ENVOY_ADDRESS) as rest,
    ):
        began = time.time()
        replace(headrace, ENVOY)
        ended = time.time()
        reports = {"gRPC": grpc.stop(), "REST": rest.stop()}
    for protocol, report in reports.items():
        recoveries.add(f"rolling upgrade of Envoy, one of it, {protocol} calls", report, began)
    assert {protocol: report.errors for protocol, report in reports.items()} == {"gRPC": (), "REST": ()}
    assert all(report.after(ended) for report in reports.values())


@pytest.mark.usefixtures("redundant")
def test_all_gateways_and_triton_pods_are_replaced_together_and_no_call_fails(
    headrace: Headrace, recoveries: Recoveries
) -> None:
    """Two of each, as a new version of both does it."""
    with headrace.load("--model", "slow", "--seconds", "1.5", "--callers", "8") as load:
        began = time.time()
        replace(headrace, GATEWAY, TRITON)
        ended = time.time()
        report = load.stop()
    recoveries.add("rolling upgrade of both, two of each, calls of 1.5 s in flight", report, began)
    assert report.errors == ()
    assert report.after(ended)
