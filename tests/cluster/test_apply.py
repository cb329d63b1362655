"""A real API server takes everything in deploy/k8s as it is, and would say so if it did not."""

import copy
import json
from functools import partial

from tests.acceptance.eventually import eventually
from tests.cluster import manifests
from tests.cluster.applied import Applied
from tests.cluster.conftest import Cluster
from tests.cluster.kubectl import Document, apply_words, as_stream

READY_SECONDS = 90.0
MISSPELT = "headraceMisspelt"


def test_every_overlay_and_component_is_found() -> None:
    """What is discovered is what the design names: an empty folder proves nothing."""
    overlays = {case.name for case in manifests.overlays()}
    home = manifests.ROOT / "components"
    components = {case.components[-1].relative_to(home).parts[0] for case in manifests.components()}

    assert set(manifests.OVERLAYS) - overlays == set()
    assert set(manifests.COMPONENTS) - components == set()


def test_the_server_takes_it_without_a_warning(applied: Applied) -> None:
    """A warning is a field that will go, or a pod that `restricted` refuses."""
    assert applied.said == ""


def test_the_namespace_enforces_restricted(applied: Applied) -> None:
    (namespace,) = (found for found in applied.objects if found["kind"] == "Namespace")

    assert namespace["metadata"]["name"] == applied.namespace
    assert namespace["metadata"]["labels"].items() >= manifests.STRICT.items()


def test_applying_again_changes_nothing(applied: Applied) -> None:
    """Neither the server's defaults nor its controllers write a field of ours."""
    assert applied.difference == ""


def test_every_kind_is_defined(applied: Applied) -> None:
    """What nobody defines is not sent, and would go unchecked: a typing error, or an operator without definitions."""
    assert applied.unknown == ()


def test_a_misspelt_field_is_refused_wherever_it_is(applied: Applied, cluster: Cluster) -> None:
    """So each of these objects was really compared with its definition."""
    wrong = [_misspelt(found) for found in applied.known if found["kind"] != "Namespace"]

    done = cluster.kubectl.attempt(*apply_words("--dry-run=server"), given=as_stream(wrong))

    assert done.stdout == ""
    assert sum(MISSPELT in line for line in done.stderr.splitlines()) == len(wrong), done.stderr


def _misspelt(document: Document) -> Document:
    wrong = copy.deepcopy(document)
    wrong.get("spec", wrong)[MISSPELT] = 1
    return wrong


def test_every_workload_becomes_ready(applied: Applied, cluster: Cluster) -> None:
    """Scheduled on nodes that have room, GPUs and taints; each volume claimed; each Job complete."""
    cluster.require_own()
    workloads = manifests.of_kind(applied.known, "Deployment", "StatefulSet", "Job")
    assert workloads

    for workload in workloads:
        eventually(
            partial(_done, cluster, workload),
            seconds=READY_SECONDS,
            what=f"{workload['kind']} {workload['metadata']['name']} is ready",
        )


def _done(cluster: Cluster, workload: Document) -> bool:
    kind, names = workload["kind"], workload["metadata"]
    words = (kind, names["name"], f"--namespace={names['namespace']}", "--ignore-not-found", "--output=json")
    text = cluster.kubectl.run("get", *words)
    if not text and "ttlSecondsAfterFinished" in workload["spec"]:
        return True  # only a Job that ended is taken away
    found = json.loads(text)
    status = found.get("status", {})
    if kind == "Job":
        return bool(status.get("succeeded"))
    wanted = found["spec"]["replicas"]
    assert status.get("readyReplicas", 0) == wanted, status
    return bool(status.get("observedGeneration") == found["metadata"]["generation"])
