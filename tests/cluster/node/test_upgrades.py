"""Rolling upgrades under load: every pod is replaced, and no call fails."""

import time

import pytest

from tests.cluster.node.deployed.headrace import GATEWAY, TRITON, Headrace
from tests.cluster.node.recovery import Recoveries

ROLLOUT_SECONDS = 400.0


@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", [GATEWAY, TRITON])
@pytest.mark.parametrize(("replicas", "model"), [(1, "simple"), (2, "slow")])
def test_every_pod_is_replaced_and_no_call_fails(
    headrace: Headrace, recoveries: Recoveries, name: str, replicas: int, model: str
) -> None:
    headrace.scale(name, replicas)
    before = {pod["metadata"]["uid"] for pod in headrace.pods(name)}
    with headrace.load("--model", model, "--seconds", "1.5") as load:
        began = time.time()
        headrace.restart(name, seconds=ROLLOUT_SECONDS)
        # The old pods leave once nobody needs them.
        headrace.await_gone(name, before, seconds=ROLLOUT_SECONDS)
        report = load.stop()
    recoveries.add(f"rolling upgrade of {name}, {replicas} of them, calls of `{model}`", report, began)
    assert report.errors == ()
    assert report.after(began)
