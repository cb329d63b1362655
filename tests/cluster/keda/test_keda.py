"""A pool that sleeps, woken by calls: no pod, one by KEDA's operator, several by its autoscaler, and none again.

KEDA's own operator and metrics adapter ask the overlay's Kafka and a Prometheus, by components/keda's triggers.
What is shorter than deployed is said in deployed/kustomization.yaml.
"""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import groupby
from typing import Self
from urllib.parse import quote

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster.node.conftest import Node
from tests.cluster.node.deployed.headrace import ADDRESS, NAMESPACE, TRITON, Headrace
from tests.cluster.node.deployed.load import Load
from tests.cluster.node.machine import Machine

CALLERS, CALLS, SECONDS = 60, 180, 2.0
"""One pod, which runs two at once, would need three minutes."""
SHORT_CALLS = 90
"""One a second: for longer than the cooldown of deployed/kustomization.yaml."""
MOST = 3
"""Of deployed/kustomization.yaml."""
PATIENCE_SECONDS = 240.0
"""A caller's deadline: longer than a start, as components/keda asks."""
SEEN_SECONDS = 40.0
"""Two scrapes and a look of KEDA's."""
ASLEEP_SECONDS = 240.0
SCALED_SECONDS = 300.0
SCALED_OBJECT = f"/apis/keda.sh/v1alpha1/namespaces/{NAMESPACE}/scaledobjects/{TRITON}"
DEPLOYMENT = f"/apis/apps/v1/namespaces/{NAMESPACE}/deployments/{TRITON}"
PODS = f"/api/v1/namespaces/{NAMESPACE}/pods?labelSelector=" + quote(f"app.kubernetes.io/name={TRITON}")
EXTERNAL = f"/apis/external.metrics.k8s.io/v1beta1/namespaces/{NAMESPACE}"
OF_THE_POOL = "?labelSelector=" + quote(f"scaledobject.keda.sh/name={TRITON}")
TRIGGERS = ("lag", "oldest-wait", "unowned", "running", "answered")
PATIENT = f"""\
import time
import caller
caller.DEADLINE_SECONDS = {PATIENCE_SECONDS}
print(time.time(), flush=True)
caller.main()
"""


@dataclass(frozen=True)
class Sample:
    """One look, in seconds since the epoch."""

    at: float
    wanted: int
    ready: int
    pods: int
    """Those on their way out included."""
    lag: float
    unowned: float


@dataclass
class Watch:
    """Looks once a second, from a thread of its own, until the block ends."""

    machine: Machine
    samples: list[Sample] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> Self:
        self._metrics = dict(
            zip(TRIGGERS, self.machine.ask(SCALED_OBJECT)["status"]["externalMetricNames"], strict=True)
        )
        self._thread = threading.Thread(target=self._look, name="watch", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._thread.join()

    def await_state(self, holds: Callable[[Sample], bool], *, seconds: float, what: str) -> Sample:
        """The first look from now on at which it holds."""
        seen = len(self.samples)
        return eventually(lambda: next(filter(holds, self.samples[seen:]), None), seconds=seconds, what=what)

    def first(self, holds: Callable[[Sample], bool], *, since: float) -> float:
        """When it was first seen to hold after that."""
        return next(sample.at for sample in self.samples if sample.at >= since and holds(sample))

    def _look(self) -> None:
        while not self._ended.is_set():
            with suppress(OSError):  # a busy machine's API server is late; the next look is soon
                self.samples.append(self._sample())
            self._ended.wait(1.0)

    def _sample(self) -> Sample:
        found = self.machine.ask(DEPLOYMENT)
        return Sample(
            at=time.time(),
            wanted=found["spec"]["replicas"],
            ready=found["status"].get("readyReplicas", 0),
            pods=len(self.machine.ask(PODS)["items"]),
            lag=self._metric("lag"),
            unowned=self._metric("unowned"),
        )

    def _metric(self, trigger: str) -> float:
        """What KEDA answers the autoscaler now; 0 where it has no answer."""
        try:
            (item,) = self.machine.ask(f"{EXTERNAL}/{self._metrics[trigger]}{OF_THE_POOL}")["items"]
        except OSError:
            return 0.0
        quantity: str = item["value"]
        return float(quantity.removesuffix("m")) / (1000 if quantity.endswith("m") else 1)


@contextmanager
def slow_calls(headrace: Headrace, *, callers: int, calls: int, seconds: float) -> Iterator[tuple[Load, float]]:
    """Stock clients that wait as long as a start takes, and when they began; it ends by itself."""
    words = ("exec", "--stdin", "--namespace", NAMESPACE, "caller", "--", "env", "PYTHONPATH=/caller")
    slow = ("--model", "slow", "--seconds", str(seconds), "--pause", "0")
    many = ("--callers", str(callers), "--calls", str(calls))
    with headrace.kubectl.started(*words, "python3", "-c", PATIENT, "--url", ADDRESS, *slow, *many) as process:
        assert process.stdout is not None
        began = float(process.stdout.readline())
        yield Load(process), began


@pytest.fixture
def watch(node: Node, headrace: Headrace) -> Iterator[Watch]:
    """Of the pool that KEDA scales."""
    machine = node.require_own()
    assert headrace.pods(TRITON)
    eventually(
        lambda: _condition(machine, "Ready") == "True" and machine.ask(SCALED_OBJECT)["status"]["externalMetricNames"],
        seconds=SCALED_SECONDS,
        what="KEDA takes the ScaledObject",
    )
    with Watch(machine) as watch:
        yield watch


def _condition(machine: Machine, kind: str) -> str:
    conditions = machine.ask(SCALED_OBJECT).get("status", {}).get("conditions", ())
    return next((condition["status"] for condition in conditions if condition["type"] == kind), "Unknown")


def _asleep(now: Sample) -> bool:
    return now.wanted == now.pods == 0


@pytest.mark.timeout(1500)
def test_calls_keep_a_pool_awake_and_wake_one_that_sleeps_and_all_are_answered(
    node: Node, headrace: Headrace, watch: Watch, times: list[tuple[str, float]]
) -> None:
    machine = node.require_own()
    # Begun at once, so there is no lag: what runs is all that KEDA can see of it.
    with slow_calls(headrace, callers=1, calls=1, seconds=SEEN_SECONDS) as (load, _):
        eventually(lambda: _condition(machine, "Active") == "True", seconds=SEEN_SECONDS, what="the call is seen")
        assert load.stop().errors == ()
    # Each is over in milliseconds, long before anybody looks.
    began = time.time()
    with headrace.load("--model", "simple", "--callers", "1", "--calls", str(SHORT_CALLS), "--pause", "1") as load:
        report = load.stop()
    assert (len(report.answered), report.errors) == (SHORT_CALLS, ())
    assert all(sample.wanted for sample in watch.samples if began <= sample.at <= report.answered[-1])
    asleep = watch.await_state(_asleep, seconds=ASLEEP_SECONDS, what="the pool sleeps").at
    times.append(("after short calls: none is left", asleep - report.answered[-1]))

    with slow_calls(headrace, callers=CALLERS, calls=CALLS, seconds=SECONDS) as (load, began):
        watch.await_state(lambda now: now.ready == MOST, seconds=SCALED_SECONDS, what=f"{MOST} pods are ready")
        report = load.stop()
    gone = watch.await_state(_asleep, seconds=ASLEEP_SECONDS, what="the pool sleeps again").at

    first_ready = watch.first(lambda now: now.ready > 0, since=began)
    for what, at in (
        ("one pod is wanted", watch.first(lambda now: now.wanted > 0, since=began)),
        ("one is ready", first_ready),
        ("the first answer", report.answered[0]),
        (f"{MOST} are wanted", watch.first(lambda now: now.wanted == MOST, since=began)),
        (f"{MOST} are ready", watch.first(lambda now: now.ready == MOST, since=began)),
        ("the last answer", report.answered[-1]),
        ("none is wanted", watch.first(lambda now: now.wanted == 0, since=report.answered[-1])),
        ("none is left", gone),
    ):
        times.append((f"{CALLERS} calls at once: {what}", at - began))
    assert (len(report.answered), report.errors) == (CALLS, ())
    held = [sample for sample in watch.samples if began <= sample.at < first_ready]
    assert max(sample.lag for sample in held) == CALLERS, "the log holds every call, and KEDA sees them"
    assert max(sample.unowned for sample in held) == CALLERS, "gateways say so, too"
    wanted = [count for count, _ in groupby(now.wanted for now in watch.samples if asleep <= now.at <= gone)]
    assert wanted[:2] == [0, 1], "one pod is woken"
    assert wanted[-2:] == [MOST, 0], "the autoscaler brings the rest, and all go at once"
    assert wanted[:-1] == sorted(wanted[:-1])
