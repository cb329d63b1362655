"""Rolling upgrades under load: every pod is replaced, and no call fails."""

import time

import pytest

from tests.cluster.node.deployed.headrace import GATEWAY, TRITON, Headrace
from tests.cluster.node.recovery import Recoveries

ROLLOUT_SECONDS = 400.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [GATEWAY, TRITON])
def test_every_pod_is_replaced_and_no_call_fails(headrace: Headrace, recoveries: Recoveries, name: str) -> None:
    """Of one pod alone, which is the hardest: there is no other to take over before the new one."""
    headrace.scale(name, 1)
    before = {pod["metadata"]["uid"] for pod in headrace.pods(name)}
    with headrace.load("--model", "slow", "--seconds", "1.5") as load:
        began = time.time()
        headrace.restart(name, seconds=ROLLOUT_SECONDS)
        # The old pods leave once nobody needs them.
        headrace.await_gone(name, before, seconds=ROLLOUT_SECONDS)
        report = load.stop()
    recoveries.add(f"rolling upgrade of {name}, one of it, calls of 1.5 s in flight", report, began)
    assert report.errors == ()
    assert report.after(began)
