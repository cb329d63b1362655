"""Models of one pool are shared by all of its Triton pods, each by itself."""

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster.node.deployed.headrace import TRITON, Headrace

MODELS = ("simple", "slow")
PARTITIONS = 8
"""Of each: HEADRACE_TOPICS__REQUEST_PARTITIONS of the base."""
REST_SECONDS = 60.0
"""Within which partitions come to rest after a pod came or went."""
DONE = "headrace_router_triton_duration_seconds_count"

pytestmark = [pytest.mark.usefixtures("redundant"), pytest.mark.timeout(600)]


def shares(headrace: Headrace, name: str) -> dict[str, list[float]]:
    """A metric of each model, by pod."""
    pods = headrace.pods(TRITON)
    return {model: [headrace.metric(pod, name, model=model) for pod in pods] for model in MODELS}


def await_even_shares(headrace: Headrace) -> None:
    def even() -> bool:
        found = shares(headrace, "headrace_router_partitions")
        assert found == {model: [PARTITIONS / 2] * 2 for model in MODELS}
        return True

    eventually(even, seconds=REST_SECONDS, what="each model's partitions are shared evenly")


def test_each_pod_runs_its_part_of_every_models_calls(headrace: Headrace) -> None:
    await_even_shares(headrace)
    before = shares(headrace, DONE)
    for model in MODELS:
        with headrace.load("--model", model, "--calls", "100") as load:
            assert load.stop().errors == ()
    after = shares(headrace, DONE)
    ran = {model: [now - then for now, then in zip(after[model], before[model], strict=True)] for model in MODELS}
    assert {model: sum(counts) for model, counts in ran.items()} == dict.fromkeys(MODELS, 100)
    assert all(min(counts) > 0 for counts in ran.values()), ran


def test_a_pod_that_replaces_another_has_its_part_of_every_model(headrace: Headrace) -> None:
    pod = headrace.pods(TRITON)[0]["metadata"]
    headrace.run("delete", "pod", pod["name"], "--timeout=200s", seconds=210)
    headrace.await_ready(TRITON, 2, seconds=240.0)
    await_even_shares(headrace)
