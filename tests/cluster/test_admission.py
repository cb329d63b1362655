"""Pods are admitted where `restricted` is enforced; bad copies of them are not.

A workload is admitted whatever its pods are like: they fail later, one by one, in events that nobody reads. So each pod
template is sent as a pod of its own.
"""

import json

from tests.cluster import manifests
from tests.cluster.applied import Applied
from tests.cluster.conftest import Cluster
from tests.cluster.kubectl import Document, Kubectl, as_stream

DRY = ("create", "--dry-run=server", "--validate=strict", "-f", "-")


def admitted(kubectl: Kubectl, pods: list[Document]) -> tuple[list[Document], str]:
    """Those that the server would run, as it would run them, and what it says against the others."""
    done = kubectl.attempt(*DRY, "--output=json", given=as_stream(pods), seconds=120)
    decoder = json.JSONDecoder()
    found: list[Document] = []
    rest = done.stdout.strip()
    while rest:
        answer, end = decoder.raw_decode(rest)
        found += answer["items"] if answer["kind"] == "List" else [answer]
        rest = rest[end:].strip()
    return found, done.stderr


def names(pods: list[Document]) -> set[str]:
    return {pod["metadata"]["name"] for pod in pods}


def test_every_pod_is_admitted_as_it_is(applied: Applied, cluster: Cluster) -> None:
    """With its service account, its priority and its runtime class: admission looks all of them up."""
    pods = applied.pods
    assert pods

    found, said = admitted(cluster.kubectl, pods)

    assert said == ""
    assert names(found) == names(pods)


def test_every_bad_copy_is_refused(applied: Applied, cluster: Cluster) -> None:
    """Each for the one thing that is bad about it."""
    bad = [copy for pod in applied.pods for copy in manifests.spoilt(pod)]

    found, said = admitted(cluster.kubectl, bad)

    assert names(found) == set()
    refused = {
        name
        for line in said.splitlines()
        if 'violates PodSecurity "restricted' in line
        for name in names(bad)
        if f'pods "{name}" is forbidden' in line
    }
    assert refused == names(bad)


def test_no_pod_carries_a_token_that_it_has_no_use_for(applied: Applied, cluster: Cluster) -> None:
    """The server adds one to every pod unless told otherwise; only who is bound to a role needs it."""
    bound = {
        subject["name"]
        for binding in manifests.of_kind(applied.known, "RoleBinding", "ClusterRoleBinding")
        for subject in binding["subjects"]
        if subject["kind"] == "ServiceAccount"
    }
    found, _ = admitted(cluster.kubectl, applied.pods)

    with_token = {
        pod["metadata"]["name"]
        for pod in found
        if pod["spec"]["serviceAccountName"] not in bound
        and any(
            "serviceAccountToken" in source
            for volume in pod["spec"].get("volumes", [])
            for source in volume.get("projected", {}).get("sources", [])
        )
    }
    assert with_token == set()
