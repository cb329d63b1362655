"""Autoscalers of deploy/k8s, as the real controller obeys them: up at once, down late, and never to and fro.

All of them live through the same story at the same time, told once for the module. Times are thirty times shorter than
in the manifests (`scaling.FASTER`), the controller's own included.
"""

import math
import operator
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise
from urllib.parse import quote

import pytest

from tests.cluster import manifests
from tests.cluster.conftest import Cluster
from tests.cluster.control_plane import HPA_SYNC_SECONDS, ControlPlane
from tests.cluster.kubectl import Document
from tests.cluster.manifests import Case
from tests.cluster.metrics_api import Metrics, Scaled, serving
from tests.cluster.scaling import Replicas, in_fast_motion, saw_tooth, steady, watched

SCENE = Case("scaling", manifests.ROOT / "base", (manifests.ROOT / "components" / "envoy",))
"""Every autoscaler that is the cluster's own; KEDA's are made by its operator."""
NERVOUS = "headrace-test-nervous"

TOOTH_SECONDS = 8.0
"""Four minutes: shorter than every window, longer than the way up takes."""
TEETH = 3
LOW, HIGH, OVERLOAD = 0.3, 0.7, 10.0
"""Of what the most pods that an autoscaler may run are worth."""
TOLERANCE = 0.1
"""Within a tenth of its target the controller leaves things as they are."""
SETTLE_SECONDS = 90.0
LATE_SECONDS = 3.0
"""Six looks. A controller that a busy machine keeps from looking for a whole window forgets what it had recommended."""
TELLINGS = 3

pytestmark = pytest.mark.timeout(600)


@dataclass
class Actor:
    """One autoscaler, what it looks at, and what it did."""

    name: str
    spec: Document
    scaled: Scaled
    replicas: Replicas
    moments: dict[str, float] = field(default_factory=dict)

    @property
    def least(self) -> int:
        return int(self.spec["minReplicas"])

    @property
    def most(self) -> int:
        return int(self.spec["maxReplicas"])

    @property
    def window(self) -> int:
        """How long less must have been enough before it runs less."""
        return int(self.spec["behavior"]["scaleDown"]["stabilizationWindowSeconds"])

    def between(self, begin: str, end: str) -> list[int]:
        """What it asked for from one moment to another."""
        last = self.replicas.since(self.moments[end])[1:]
        whole = self.replicas.since(self.moments[begin])
        return whole[: len(whole) - len(last)]


@dataclass
class Story:
    """What happened to all of them."""

    actors: list[Actor]

    def begin(self, moment: str) -> None:
        for actor in self.actors:
            actor.moments[moment] = time.monotonic()

    def climb(self, wanted: float, what: str) -> None:
        """Until each runs so large a part of its most, give or take the controller's tolerance."""
        for actor in self.actors:
            enough = max(actor.least, math.floor(wanted * actor.most / (1 + TOLERANCE)))
            actor.replicas.wait_for(
                partial(operator.le, enough),
                seconds=SETTLE_SECONDS,
                what=f"{actor.name} {what}",
            )

    def unwatched(self) -> float:
        """The longest time in which a controller did not look at what it scales, where that matters."""
        return max(
            actor.scaled.unwatched(actor.moments["saw-tooth"], actor.moments["idle again"]) for actor in self.actors
        )

    def load(self, share: float) -> None:
        """The same for each, as a part of its most."""
        for actor in self.actors:
            actor.scaled.load.wanted = steady(share * actor.most)


def nervous() -> list[Document]:
    """An autoscaler as ours must not be: it believes every sample."""
    labels = {"app": NERVOUS}
    container = {
        "name": "any",
        "image": "any",
        "resources": {"requests": {"cpu": "1"}},
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    security = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    names = {"name": NERVOUS, "namespace": SCENE.namespace}
    policies = [{"type": "Percent", "value": 100, "periodSeconds": 1}]
    return [
        {
            "apiVersion": "apps/v1",
            "kind": "Deployment",
            "metadata": names,
            "spec": {
                "selector": {"matchLabels": labels},
                "template": {
                    "metadata": {"labels": labels},
                    "spec": {"containers": [container], "securityContext": security},
                },
            },
        },
        {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": names,
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": NERVOUS},
                "minReplicas": 2,
                "maxReplicas": 10,
                "metrics": [
                    {
                        "type": "Pods",
                        "pods": {"metric": {"name": "any"}, "target": {"type": "AverageValue", "averageValue": "10"}},
                    }
                ],
                "behavior": {
                    "scaleUp": {"stabilizationWindowSeconds": 0, "policies": policies},
                    "scaleDown": {"stabilizationWindowSeconds": 0, "policies": policies},
                },
            },
        },
    ]


def _running(control_plane: ControlPlane) -> Metrics:
    def pods(namespace: str, selector: str) -> list[Document]:
        found = control_plane.ask(f"/api/v1/namespaces/{namespace}/pods?labelSelector={quote(selector)}")["items"]
        return [
            pod
            for pod in found
            if pod["status"].get("phase") == "Running" and "deletionTimestamp" not in pod["metadata"]
        ]

    return Metrics(pods)


@pytest.fixture(scope="module")
def story(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    """Idle, saw-tooth, overload, idle again; then with a metric that nobody measures."""
    control_plane = cluster.require_own()
    metrics = _running(control_plane)
    documents = SCENE.render(cluster.kubectl, tmp_path_factory.mktemp("scaling"))
    nervously = nervous()
    autoscalers = [
        in_fast_motion(found) for found in manifests.of_kind([*documents, *nervously], "HorizontalPodAutoscaler")
    ]
    others = [found for found in [*documents, *nervously] if found["kind"] != "HorizontalPodAutoscaler"]
    cluster.kubectl.apply(others)
    labels = {
        found["metadata"]["name"]: found["spec"]["selector"]["matchLabels"]
        for found in manifests.of_kind(others, "Deployment")
    }
    with ExitStack() as stack:
        actors = []
        for autoscaler in autoscalers:
            target = autoscaler["spec"]["scaleTargetRef"]["name"]
            actors.append(
                Actor(
                    autoscaler["metadata"]["name"],
                    autoscaler["spec"],
                    Scaled.by(autoscaler, labels[target]),
                    stack.enter_context(watched(cluster.kubectl, SCENE.namespace, target)),
                )
            )
        metrics.scaled[SCENE.namespace] = [actor.scaled for actor in actors]
        stack.enter_context(serving(control_plane, metrics))
        cluster.kubectl.apply(autoscalers)
        told = Story(actors)
        for _ in range(TELLINGS):
            _tell(told)
            if told.unwatched() < LATE_SECONDS:
                break
        yield told
    cluster.kubectl.run("delete", "namespace", SCENE.namespace, "--wait=false")


def _tell(story: Story) -> None:
    story.begin("idle")
    story.climb(0, "runs its least")

    for actor in story.actors:
        actor.scaled.away.clear()
        actor.scaled.load.wanted = saw_tooth(low=LOW * actor.most, high=HIGH * actor.most, seconds=TOOTH_SECONDS)
    story.climb(HIGH * 0.9, "is up to the saw-tooth")
    story.begin("saw-tooth")
    time.sleep(TEETH * TOOTH_SECONDS)  # the pace of the load
    story.begin("overload")

    story.load(OVERLOAD)
    story.climb(1 + TOLERANCE, "runs its most")
    time.sleep(10 * HPA_SYNC_SECONDS)  # it looks again and again, and must not ask for more
    story.begin("over")

    story.load(0.0)
    for actor in story.actors:
        actor.replicas.wait_for(
            partial(operator.ge, actor.least),
            seconds=SETTLE_SECONDS,
            what=f"{actor.name} is back at its least",
        )
    story.begin("idle again")

    story.load(HIGH)
    story.climb(HIGH * 0.9, "is up again")
    # CPU is idle, and what else is looked at can't be asked.
    for actor in story.actors:
        actor.scaled.away |= set(actor.scaled.targets) - {"cpu"}
    story.begin("blind")
    story.load(0.0)
    time.sleep(max(actor.window for actor in story.actors) + 10 * HPA_SYNC_SECONDS)  # nothing is to come
    story.begin("end")


def ours(story: Story) -> list[Actor]:
    """Without the one that is there to show what is kept out."""
    return [actor for actor in story.actors if actor.name != NERVOUS]


def test_every_autoscaler_has_a_part(story: Story) -> None:
    assert {actor.name for actor in ours(story)} >= {"headrace-gateway", "headrace-triton", "headrace-envoy"}


def test_a_saw_tooth_makes_nothing_flap(story: Story) -> None:
    """Tooth by tooth the load falls to less than half, and not one pod goes."""
    for actor in ours(story):
        seen = actor.between("saw-tooth", "overload")
        assert seen == sorted(seen), actor.name
        assert seen[-1] <= math.ceil(HIGH * actor.most), actor.name


def test_the_same_saw_tooth_makes_a_nervous_one_flap(story: Story) -> None:
    """So the load would do harm, were it not for the windows."""
    (actor,) = (actor for actor in story.actors if actor.name == NERVOUS)
    seen = actor.between("saw-tooth", "overload")

    assert sum(after < before for before, after in pairwise(seen)) >= TEETH - 1


def test_overload_asks_for_the_most_and_for_no_more(story: Story) -> None:
    """Whatever the metrics say: partitions, nodes and the budget end there."""
    for actor in ours(story):
        assert actor.between("overload", "over")[-1] == actor.most, actor.name
        assert max(change.replicas for change in actor.replicas.changes) == actor.most, actor.name


def test_pods_go_late_and_one_by_one(story: Story) -> None:
    """No sooner than the window after the load has gone, and no faster than the policy lets them."""
    for actor in ours(story):
        (policy,) = actor.spec["behavior"]["scaleDown"]["policies"]
        moment, end = actor.moments["over"], actor.moments["idle again"]
        falls = [change for change in actor.replicas.changes if moment < change.at <= end]

        assert [change.replicas for change in falls] == list(range(actor.most - 1, actor.least - 1, -1)), actor.name
        assert falls[0].at - moment >= actor.window - 2 * HPA_SYNC_SECONDS, actor.name
        fastest = (len(falls) - 1) * policy["periodSeconds"] / policy["value"]
        assert falls[-1].at - falls[0].at >= fastest - 2 * HPA_SYNC_SECONDS, actor.name


def test_nothing_goes_while_a_metric_is_away(story: Story) -> None:
    """Who can't be asked may be busy; an idle CPU alone is no reason."""
    for actor in ours(story):
        if set(actor.scaled.targets) == {"cpu"}:
            continue
        seen = actor.between("blind", "end")
        assert seen == sorted(seen), actor.name
