"""Where the real scheduler puts the pods, on thirty nodes in three zones, and what a drain of a whole zone leaves."""

from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from tests.acceptance.eventually import eventually
from tests.cluster import manifests
from tests.cluster.conftest import Cluster
from tests.cluster.kubectl import Document, Kubectl
from tests.cluster.manifests import Case
from tests.cluster.scaling import watched

ZONE = "topology.kubernetes.io/zone"
HOST = "kubernetes.io/hostname"
MARK = "headrace-test"
"""A label of these pods alone, for the drain to leave all others where they are."""
REPLICAS = 9
READY_SECONDS = 90.0
DRAIN_SECONDS = 240

pytestmark = pytest.mark.timeout(500)


@dataclass(frozen=True)
class Scene:
    """Deployments of nine pods each."""

    kubectl: Kubectl
    case: Case
    deployments: tuple[Document, ...]
    zones: dict[str, str]
    """Of each node."""

    def pods(self, deployment: Document) -> list[Document]:
        """Those that are not on their way out."""
        labels = ",".join(f"{name}={value}" for name, value in deployment["spec"]["selector"]["matchLabels"].items())
        found = self.kubectl.items("pods", f"--namespace={self.case.namespace}", f"--selector={labels}")
        return [pod for pod in found if "deletionTimestamp" not in pod["metadata"]]

    def nodes(self, deployment: Document) -> Counter[str]:
        return Counter(pod["spec"]["nodeName"] for pod in self.pods(deployment))

    def by_zone(self, deployment: Document) -> Counter[str]:
        return Counter(self.zones[pod["spec"]["nodeName"]] for pod in self.pods(deployment))

    def all_ready(self, deployment: Document) -> bool:
        name = deployment["metadata"]["name"]
        found = self.kubectl.get("deployment", name, f"--namespace={self.case.namespace}")["status"]
        assert found.get("readyReplicas") == found.get("replicas") == REPLICAS, found
        return True


@contextmanager
def deployed(cluster: Cluster, folder: Path, name: str) -> Iterator[Scene]:
    """The base with Envoy; fixed numbers in place of autoscalers."""
    cluster.require_own()
    kubectl = cluster.kubectl
    case = Case(name, manifests.ROOT / "base", (manifests.ROOT / "components" / "envoy",))
    kept = [found for found in case.render(kubectl, folder) if found["kind"] != "HorizontalPodAutoscaler"]
    deployments = tuple(manifests.of_kind(kept, "Deployment"))
    for deployment in deployments:
        deployment["spec"]["replicas"] = REPLICAS
        deployment["spec"]["template"]["metadata"]["labels"][MARK] = name
    kubectl.apply(kept)
    zones = {node["metadata"]["name"]: node["metadata"]["labels"][ZONE] for node in kubectl.items("nodes")}
    scene = Scene(kubectl, case, deployments, zones)
    for deployment in deployments:
        waited = deployment["metadata"]["name"]
        eventually(partial(scene.all_ready, deployment), seconds=READY_SECONDS, what=f"{waited} is ready")
    yield scene
    kubectl.run("delete", "namespace", case.namespace, "--wait=false")


@pytest.fixture(scope="module")
def scene(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Scene]:
    """To be looked at."""
    with deployed(cluster, tmp_path_factory.mktemp("spread"), "spread") as scene:
        yield scene


@pytest.fixture
def drained(cluster: Cluster, tmp_path: Path) -> Iterator[Scene]:
    """To be taken apart."""
    with deployed(cluster, tmp_path, "drained") as scene:
        yield scene


def test_every_deployment_says_how_it_spreads(scene: Scene) -> None:
    """Over zones and over nodes, counting its own pods and no others."""
    assert scene.deployments
    for deployment in scene.deployments:
        constraints = deployment["spec"]["template"]["spec"]["topologySpreadConstraints"]
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert {constraint["topologyKey"] for constraint in constraints} == {ZONE, HOST}
        for constraint in constraints:
            assert constraint["labelSelector"]["matchLabels"].items() <= labels.items()


def test_pods_are_spread_evenly_over_zones_and_nodes(scene: Scene) -> None:
    """Three in each zone, and no two on one node while there are others."""
    for deployment in scene.deployments:
        assert sorted(scene.by_zone(deployment).values()) == [3, 3, 3], deployment["metadata"]["name"]
        assert set(scene.nodes(deployment).values()) == {1}, deployment["metadata"]["name"]


def test_a_zone_can_be_drained(drained: Scene) -> None:
    """Budgets slow it down and do not stop it: never is more than one pod missing, and the other zones take all."""
    lost = sorted(node for node, zone in drained.zones.items() if zone == "zone-0")
    with ExitStack() as stack:
        stack.callback(drained.kubectl.run, "uncordon", *lost)
        ready = {}
        for deployment in drained.deployments:
            name = deployment["metadata"]["name"]
            ready[name] = stack.enter_context(
                watched(drained.kubectl, drained.case.namespace, name, ".status.readyReplicas")
            )
            ready[name].wait_for(lambda now: now == REPLICAS, seconds=READY_SECONDS, what=f"{name} is ready")

        options = ("--ignore-daemonsets", "--delete-emptydir-data", f"--pod-selector={MARK}={drained.case.name}")
        drain = ("drain", *lost, *options, f"--timeout={DRAIN_SECONDS}s")
        drained.kubectl.run(*drain, seconds=DRAIN_SECONDS + 20)

        for deployment in drained.deployments:
            name = deployment["metadata"]["name"]
            eventually(partial(drained.all_ready, deployment), seconds=READY_SECONDS, what=f"{name} is ready elsewhere")
            assert drained.by_zone(deployment).keys() == {"zone-1", "zone-2"}, name
            assert set(drained.nodes(deployment).values()) == {1}, name
            assert min(change.replicas for change in ready[name].changes) >= REPLICAS - 1, name
